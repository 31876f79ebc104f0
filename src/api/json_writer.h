// Writes JSON text that is always valid UTF-8 and never throws, whatever bytes a model emits.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace hadal::api {

/// Appends `text` as a JSON string with quotes; bytes that are not UTF-8 become U+FFFD.
void append_json_string(std::string& out, std::string_view text);

/// Commas come by themselves; nesting is the caller's business.
class JsonWriter {
 public:
  JsonWriter() = default;

  /// Goes on after `start`, the beginning of a JSON text without a trailing comma.
  explicit JsonWriter(std::string start) : out_(std::move(start)) {}

  JsonWriter& begin_object() { return open('{'); }

  JsonWriter& end_object() { return close('}'); }

  JsonWriter& begin_array() { return open('['); }

  JsonWriter& end_array() { return close(']'); }

  JsonWriter& key(std::string_view name);
  JsonWriter& string(std::string_view text);
  JsonWriter& integer(int64_t value);
  /// Shortest text that reads back as the same float; values that JSON cannot say become -9999.
  JsonWriter& number(float value);
  JsonWriter& number(double value);
  JsonWriter& boolean(bool value);
  JsonWriter& null();
  /// `json` is one whole JSON value.
  JsonWriter& raw(std::string_view json);

  std::string take() { return std::move(out_); }

 private:
  JsonWriter& open(char bracket);
  JsonWriter& close(char bracket);
  void separate();

  std::string out_;
};

}  // namespace hadal::api
