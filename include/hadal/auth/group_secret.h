// The secret that the nodes of a group share, and how one proves to another that it knows it. The
// secret comes from a file, never from a flag's value or the environment, where others could read
// it.
#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include <hadal/base/result.h>
#include <hadal/net/tcp.h>

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

/// What to change when nodes may not meet at `address` with this secret: without one, only
/// loopback addresses are safe.
std::optional<std::string> why_not_without_secret(const GroupSecret& secret,
                                                  const TcpAddress& address);

using Nonce = std::array<std::byte, 32>;
using Mac = std::array<std::byte, 32>;

/// From the system's generator.
Nonce random_nonce();

/// HMAC-SHA256 of what both sides have seen. `transcript` must hold both nonces, and begin with
/// words that no other protocol and not the other direction uses, so that no proof fits elsewhere.
Mac prove(const GroupSecret& secret, std::span<const std::byte> transcript);

/// In a time that does not depend on where they differ.
bool is_equal(const Mac& a, const Mac& b);

}  // namespace hadal
