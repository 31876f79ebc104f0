// From argv to flag values as argparse reads them: unique prefixes (`--tp 16`), `--flag=value`,
// underscores for dashes, several values after a list flag, and the last of two equal flags wins.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/base/result.h>

#include "flag_table.h"

namespace hadal {

/// Values by flag name; toggles hold "true" or, from a config file, "false".
using FlagValues = std::map<std::string, std::vector<std::string>, std::less<>>;

/// The row that `name` (without dashes in front) means: exact name or alias, then a unique prefix
/// among the flags of SGLang v0.4.3, then of list B, then of ours, so that no flag added later
/// makes an old prefix ambiguous. invalid_argument names the nearest flag or the candidates.
Result<const FlagSpec*> resolve_flag(std::string_view name, uint16_t command);

/// Rewrites the arguments after the command word as `--full-name=value` (toggles without a value,
/// list flags once per value); other words stay where they are.
Result<std::vector<std::string>> canonical_arguments(std::span<const std::string> arguments,
                                                     uint16_t command);

/// invalid_argument when `value` is not of the flag's kind.
Status check_kind(const FlagSpec& flag, std::string_view value);

/// The values in a `--config` file: one JSON object, keys are flag names with dashes or
/// underscores. `origin` names the file in messages.
Result<FlagValues> parse_config_file(std::string_view json,
                                     std::string_view origin,
                                     uint16_t command);

}  // namespace hadal
