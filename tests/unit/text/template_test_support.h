// JSON of the test data to template values, and small builders.
#pragma once

#include <fstream>
#include <sstream>
#include <string>

#include <nlohmann/json.hpp>

#include <hadal/text/chat_template.h>

namespace hadal::test {

using Json = nlohmann::ordered_json;

inline TemplateValue to_value(const Json& json, bool is_content) {
  TemplateValue value;
  value.is_content = is_content;
  if (json.is_boolean()) {
    value.value = json.get<bool>();
  } else if (json.is_number_integer()) {
    value.value = json.get<int64_t>();
  } else if (json.is_number()) {
    value.value = json.get<double>();
  } else if (json.is_string()) {
    value.value = json.get<std::string>();
  } else if (json.is_array()) {
    auto list = std::make_shared<TemplateValue::List>();
    for (const Json& item : json)
      list->push_back(to_value(item, is_content));
    value.value = std::shared_ptr<const TemplateValue::List>(list);
  } else if (json.is_object()) {
    auto object = std::make_shared<TemplateValue::Object>();
    for (const auto& [key, item] : json.items())
      object->emplace_back(key, to_value(item, is_content));
    value.value = std::shared_ptr<const TemplateValue::Object>(object);
  }
  return value;
}

/// The context of a render: messages and tools are request data, the rest is the server's.
inline TemplateValue to_context(const Json& variables) {
  auto object = std::make_shared<TemplateValue::Object>();
  for (const auto& [key, item] : variables.items())
    object->emplace_back(key, to_value(item, key == "messages" || key == "tools"));
  TemplateValue value;
  value.value = std::shared_ptr<const TemplateValue::Object>(object);
  return value;
}

inline std::string data_path(const std::string& name) {
  return std::string(HADAL_SOURCE_DIR) + "/tests/data/templates/" + name;
}

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// The rendered text, or "error: message".
inline std::string render(const std::string& source,
                          const Json& variables,
                          const TemplateLimits& limits = {}) {
  const auto parsed = ChatTemplate::parse(source, limits);
  if (!parsed)
    return "error: " + parsed.error().message;
  const auto prompt = parsed.value().render(to_context(variables));
  return prompt ? prompt.value().text : "error: " + prompt.error().message;
}

/// The text with its content ranges in «».
inline std::string render_marked(const std::string& source, const Json& variables) {
  const auto parsed = ChatTemplate::parse(source);
  if (!parsed)
    return "error: " + parsed.error().message;
  const auto prompt = parsed.value().render(to_context(variables));
  if (!prompt)
    return "error: " + prompt.error().message;
  std::string marked;
  int64_t at = 0;
  const std::string& text = prompt.value().text;
  const auto part = [&](int64_t begin, int64_t end) {
    return text.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  };
  for (const ByteRange& range : prompt.value().content) {
    marked += part(at, range.begin) + "«" + part(range.begin, range.end) + "»";
    at = range.end;
  }
  return marked + part(at, static_cast<int64_t>(text.size()));
}

}  // namespace hadal::test
