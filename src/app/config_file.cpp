// The `--config` file: flags as one flat JSON object. Nested values are taken only for flags that
// hold JSON themselves.
#include <nlohmann/json.hpp>

#include "arguments.h"

namespace hadal {

namespace {

using nlohmann::json;

constexpr int kDepthMax = 32;

Error file_error(std::string_view origin, const std::string& message) {
  return Error{ErrorCode::invalid_argument, std::string(origin) + ": " + message};
}

/// The text a value would have on the command line; nothing for a kind that a flag cannot hold.
Result<std::string> scalar_text(const json& value, std::string_view origin, const FlagSpec& flag) {
  const bool is_json = flag.kind == FlagKind::json && value.is_object();
  if (value.is_string()) {
    return value.get<std::string>();
  }
  if (value.is_boolean() || value.is_number() || is_json) {
    return value.dump();
  }
  return file_error(origin,
                    "key '" + std::string(flag.name) +
                        "': expected a string, number or boolean, got " + value.type_name());
}

}  // namespace

Result<FlagValues> parse_config_file(std::string_view text,
                                     std::string_view origin,
                                     uint16_t command) {
  bool too_deep = false;
  const auto depth_guard = [&](int depth, json::parse_event_t, json&) {
    too_deep = too_deep || depth > kDepthMax;
    return depth <= kDepthMax;
  };
  const json document = json::parse(text, depth_guard, /*allow_exceptions=*/false);
  if (too_deep || !document.is_object()) {
    return file_error(origin, "expected one JSON object of flags");
  }
  FlagValues values;
  for (const auto& [key, value] : document.items()) {
    auto flag = resolve_flag(key, command);
    if (!flag) {
      return file_error(origin, flag.error().message);
    }
    const FlagSpec& spec = *flag.value();
    if (spec.name == "config") {
      return file_error(origin, "a config file cannot name another one");
    }
    if (value.is_null()) {
      continue;
    }
    std::vector<std::string> texts;
    const json items = value.is_array() ? value : json::array({value});
    if (value.is_array() && spec.kind != FlagKind::list) {
      return file_error(origin, "key '" + std::string(spec.name) + "': expected one value");
    }
    for (const json& item : items) {
      auto text_of_item = scalar_text(item, origin, spec);
      if (!text_of_item) {
        return text_of_item.error();
      }
      if (Status kind = check_kind(spec, text_of_item.value()); !kind) {
        return file_error(origin, kind.error().message);
      }
      texts.push_back(std::move(text_of_item).value());
    }
    const bool is_off = spec.kind == FlagKind::toggle && !texts.empty() && texts.back() == "false";
    if (!texts.empty() && !is_off) {
      values[std::string(spec.name)] = std::move(texts);
    }
  }
  return values;
}

}  // namespace hadal
