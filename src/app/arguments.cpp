// Prefix resolution is part of SGLang's interface: manifests say `--tp`, which no version declares.
#include "arguments.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <utility>

namespace hadal {

namespace {

Error usage_error(std::string message) {
  return Error{ErrorCode::invalid_argument, std::move(message)};
}

/// Levenshtein distance; both strings are flag names or one argument, cut to 64 bytes.
size_t edit_distance(std::string_view a, std::string_view b) {
  a = a.substr(0, 64);
  b = b.substr(0, 64);
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({above + 1, row[j - 1] + 1, replaced});
      diagonal = above;
    }
  }
  return row[b.size()];
}

template <class Visit>
void for_each_name(const FlagSpec& flag, Visit visit) {
  visit(flag.name);
  std::string_view rest = flag.aliases;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    visit(rest.substr(0, comma));
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
  }
}

std::string nearest_flag(std::string_view name, uint16_t command) {
  std::string_view best;
  size_t best_distance = 0;
  for (const FlagSpec& flag : flag_table()) {
    if ((flag.commands & command) == 0) {
      continue;
    }
    for_each_name(flag, [&](std::string_view candidate) {
      const size_t distance = edit_distance(name, candidate);
      if (best.empty() || distance < best_distance) {
        best = candidate;
        best_distance = distance;
      }
    });
  }
  return std::string(best);
}

/// 0 = SGLang v0.4.3, 1 = later SGLang, 2 = ours.
int prefix_tier(FlagGroup group) {
  switch (group) {
    case FlagGroup::sglang_a:
    case FlagGroup::sglang_c:
      return 0;
    case FlagGroup::sglang_b:
      return 1;
    case FlagGroup::hadal:
      return 2;
  }
  return 2;
}

std::vector<const FlagSpec*> prefix_matches(std::string_view prefix, uint16_t command, int tier) {
  std::vector<const FlagSpec*> matches;
  for (const FlagSpec& flag : flag_table()) {
    if ((flag.commands & command) == 0 || prefix_tier(flag.group) != tier) {
      continue;
    }
    bool found = false;
    for_each_name(flag, [&](std::string_view name) { found = found || name.starts_with(prefix); });
    if (found) {
      matches.push_back(&flag);
    }
  }
  return matches;
}

bool is_flag_word(std::string_view word) {
  return word.size() > 2 && word.starts_with("--");
}

}  // namespace

Result<const FlagSpec*> resolve_flag(std::string_view name, uint16_t command) {
  std::string dashed(name);
  std::replace(dashed.begin(), dashed.end(), '_', '-');
  if (const FlagSpec* flag = find_flag(dashed);
      flag != nullptr && (flag->commands & command) != 0) {
    return flag;
  }
  for (int tier = 0; tier <= 2 && !dashed.empty(); ++tier) {
    const std::vector<const FlagSpec*> matches = prefix_matches(dashed, command, tier);
    if (matches.size() == 1) {
      return matches.front();
    }
    if (matches.size() > 1) {
      std::string message = "--" + dashed + " is ambiguous; it could be";
      for (size_t i = 0; i < matches.size(); ++i) {
        message += (i == 0 ? " --" : ", --") + std::string(matches[i]->name);
      }
      return usage_error(message);
    }
  }
  return usage_error("unknown flag --" + dashed + "; the nearest is --" +
                     nearest_flag(dashed, command));
}

Status check_kind(const FlagSpec& flag, std::string_view value) {
  const std::string name = "--" + std::string(flag.name);
  if (flag.kind == FlagKind::integer) {
    int64_t number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc{} || end != value.data() + value.size()) {
      return usage_error(name + ": expected an integer, got '" + std::string(value) + "'");
    }
  } else if (flag.kind == FlagKind::number) {
    double number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc{} || end != value.data() + value.size() || !std::isfinite(number)) {
      return usage_error(name + ": expected a number, got '" + std::string(value) + "'");
    }
  } else if (flag.kind == FlagKind::toggle && value != "true" && value != "false") {
    return usage_error(name + ": takes no value, got '" + std::string(value) + "'");
  }
  return ok_status();
}

Result<std::vector<std::string>> canonical_arguments(std::span<const std::string> arguments,
                                                     uint16_t command) {
  std::vector<std::string> result;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view word = arguments[i];
    if (word == "--") {  // everything after it is positional
      result.insert(result.end(), arguments.begin() + static_cast<ptrdiff_t>(i), arguments.end());
      break;
    }
    if (!is_flag_word(word) || word == "--help" || word == "--version") {
      result.emplace_back(word);
      continue;
    }
    const size_t equals = word.find('=');
    auto flag = resolve_flag(word.substr(2, equals == word.npos ? word.npos : equals - 2), command);
    if (!flag) {
      return flag.error();
    }
    const FlagSpec& spec = *flag.value();
    const std::string name = "--" + std::string(spec.name);
    std::vector<std::string> values;
    if (equals != word.npos) {
      if (spec.kind == FlagKind::toggle) {
        return usage_error(name + ": takes no value");
      }
      values.emplace_back(word.substr(equals + 1));
    } else if (spec.kind != FlagKind::toggle) {
      const size_t most = spec.kind == FlagKind::list ? arguments.size() : 1;
      while (values.size() < most && i + 1 < arguments.size() && !is_flag_word(arguments[i + 1])) {
        values.push_back(arguments[++i]);
      }
      if (values.empty()) {
        return usage_error(name + ": expected a value");
      }
    }
    if (spec.kind == FlagKind::toggle) {
      result.push_back(name);
    }
    for (const std::string& value : values) {
      HADAL_RETURN_IF_ERROR(check_kind(spec, value));
      result.push_back(name + "=" + value);
    }
  }
  return result;
}

}  // namespace hadal
