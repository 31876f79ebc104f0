// The command line: which command, its flags, and the words that are not flags.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include <hadal/base/result.h>

#include "arguments.h"

namespace hadal {

struct CommandLine {
  FlagCommands command = kServe;
  FlagValues values;
  std::vector<std::string> words;  ///< generate: the prompt; bench: the suite; simulate: the trace
  /// Text to print and leave with exit code 0 (`--help`, `--version`).
  std::optional<std::string> immediate_output;
};

/// `arguments` without the program's name. invalid_argument (exit 64) says what was not understood.
Result<CommandLine> parse_command_line(std::span<const std::string> arguments);

/// Version, commit, compiler and backends.
std::string version_text();

}  // namespace hadal
