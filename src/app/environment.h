// What the process is told by its surroundings, as a value: only main() reads the real environment.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace hadal {

struct Environment {
  std::map<std::string, std::string, std::less<>> variables;
  std::string hostname;

  std::optional<std::string> get(std::string_view name) const {
    const auto found = variables.find(name);
    if (found == variables.end() || found->second.empty()) {
      return std::nullopt;
    }
    return found->second;
  }
};

/// The variables that hadal knows: LWS_* (rank defaults), HF_HOME and HOME (the model cache),
/// HADAL_KERNEL_FAMILY, and those of NCCL that doctor checks.
Environment read_environment();

}  // namespace hadal
