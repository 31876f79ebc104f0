// See json_fields.h.
#include "json_fields.h"

#include <cmath>

namespace hadal {

using nlohmann::json;

namespace {

constexpr int kDepthMax = 8;

}  // namespace

Result<json> parse_json_object(std::string_view text, std::string_view origin) {
  bool too_deep = false;
  const auto depth_guard = [&](int depth, json::parse_event_t, json&) {
    too_deep = too_deep || depth > kDepthMax;
    return depth <= kDepthMax;
  };
  json document = json::parse(text, depth_guard, /*allow_exceptions=*/false);
  if (too_deep || !document.is_object())
    return Error{ErrorCode::invalid_argument, std::string(origin) + ": expected one JSON object"};
  return document;
}

JsonFields::JsonFields(const json& object, std::string where, std::string& error)
    : object_(object), where_(std::move(where)), error_(error) {
  if (!object.is_object())
    fail("expected an object");
}

void JsonFields::fail(const std::string& what) {
  if (error_.empty())
    error_ = where_ + ": " + what;
}

const json* JsonFields::find(const char* name) {
  known_.insert(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::string JsonFields::text(const char* name) {
  const json* value = find(name);
  if (value == nullptr || !value->is_string()) {
    fail(std::string(name) + ": expected a string");
    return {};
  }
  return value->get<std::string>();
}

void JsonFields::toggle(const char* name, bool& out) {
  const json* value = find(name);
  if (value == nullptr)
    return;
  if (!value->is_boolean()) {
    fail(std::string(name) + ": expected true or false");
    return;
  }
  out = value->get<bool>();
}

bool JsonFields::read_number(const char* name, double low, double high, double& out) {
  const json* value = find(name);
  if (value == nullptr)
    return false;
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!(number >= low && number <= high)) {
    fail(std::string(name) + ": expected a number in " + json(low).dump() + ".." +
         json(high).dump());
    return false;
  }
  out = number;
  return true;
}

const json& JsonFields::object(const char* name) {
  static const json kEmpty = json::object();
  const json* value = find(name);
  return value == nullptr ? kEmpty : *value;
}

const json* JsonFields::list(const char* name) {
  const json* value = find(name);
  if (value != nullptr && !value->is_array()) {
    fail(std::string(name) + ": expected a list");
    return nullptr;
  }
  return value;
}

void JsonFields::check_names() {
  if (!object_.is_object())
    return;
  for (const auto& [name, value] : object_.items()) {
    if (!known_.contains(name))
      fail("unknown member '" + name + "'");
  }
}

}  // namespace hadal
