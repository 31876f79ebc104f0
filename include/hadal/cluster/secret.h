// The secret that the nodes of a group share. It comes from a file, never from a flag's value or
// the environment, where others could read it.
#pragma once

#include <filesystem>
#include <string>

#include <hadal/base/result.h>

namespace hadal {

inline constexpr const char* kDefaultSecretFile = "/etc/hadal/group-secret";

/// The bytes of a secret; empty only when none was asked for.
struct GroupSecret {
  std::string bytes;

  bool empty() const { return bytes.empty(); }
};

/// Reads `path`, without white space at its end. A file that does not exist is an error when
/// `is_required` (the flag was given), else no secret. An empty file, one that every
/// user may write and one of more than 4 KiB are errors: a secret that does not protect is none.
/// (Kubernetes mounts Secrets readable by all users of the pod, so reading is not checked.)
Result<GroupSecret> read_group_secret(const std::filesystem::path& path, bool is_required);

}  // namespace hadal
