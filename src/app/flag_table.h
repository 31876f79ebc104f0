// Every command-line flag, one row each: the parser, --help, `check`, the config file and the
// README's table read the same rows, so a flag cannot be parsed and then forgotten.
#pragma once

#include <span>
#include <string_view>

namespace hadal {

/// What the text after a flag must look like.
enum class FlagKind : uint8_t { toggle, integer, number, text, path, json, list };

/// Where a flag comes from; also its order in --help.
enum class FlagGroup : uint8_t {
  hadal,     ///< ours
  sglang_a,  ///< SGLang v0.4.3: honoured or refused
  sglang_b,  ///< added to SGLang soon after, already in manifests: honoured or refused
  sglang_c,  ///< names a part that hadal does not have: one warning line, or refused
};

enum class FlagHandling : uint8_t {
  honoured,   ///< build_config reads it
  implied,    ///< hadal always behaves as the flag asks
  cuda_only,  ///< tunes machinery of the CUDA backend: no effect on the CPU backend
  limited,    ///< only the values in `accepted` are taken; another is refused with `reason`
  warned,     ///< ignored with one warning line that gives `reason`
  refused,    ///< any use is an error that gives `reason`
};

/// The commands on which a flag is valid.
enum FlagCommands : uint16_t {
  kServe = 1,
  kGenerate = 2,
  kCheck = 4,
  kBench = 8,
  kDoctor = 16,
  kRank = 32,
  kReplay = 64,
  kSimulate = 128,  ///< takes only the flags whose rows name it
  kShard = 256,
  kAllCommands = kServe | kGenerate | kCheck | kBench | kDoctor | kRank | kReplay | kShard
};

struct FlagSpec {
  std::string_view name;     ///< without dashes in front
  std::string_view aliases;  ///< comma-separated other full names
  FlagKind kind = FlagKind::toggle;
  FlagGroup group = FlagGroup::hadal;
  FlagHandling handling = FlagHandling::honoured;
  std::string_view default_text;  ///< for --help; empty for toggles
  std::string_view accepted;      ///< comma-separated values; empty = any of its kind
  std::string_view help;          ///< what it does in hadal
  std::string_view reason;        ///< why it is ignored, limited or refused
  uint16_t commands = kAllCommands;
};

/// All rows, in the order of --help.
std::span<const FlagSpec> flag_table();

/// The row with this exact name or alias; nullptr when there is none.
const FlagSpec* find_flag(std::string_view name);

/// True when `value` is one of the comma-separated `list`.
bool list_contains(std::string_view list, std::string_view value);

}  // namespace hadal
