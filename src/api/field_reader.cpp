// The accessors; every message says what was expected and what was found.
#include "field_reader.h"

#include <array>
#include <cmath>
#include <cstdio>

namespace hadal::api {

namespace {

constexpr double kExactIntegers = 9007199254740992.0;  // 2^53

std::string number_text(double value) {
  std::array<char, 32> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%.10g", value);
  return buffer.data();
}

}  // namespace

const TemplateValue::Object* as_object(const TemplateValue& value) {
  const auto* object = std::get_if<std::shared_ptr<const TemplateValue::Object>>(&value.value);
  return object == nullptr ? nullptr : object->get();
}

const TemplateValue::List* as_list(const TemplateValue& value) {
  const auto* list = std::get_if<std::shared_ptr<const TemplateValue::List>>(&value.value);
  return list == nullptr ? nullptr : list->get();
}

const std::string* as_string(const TemplateValue& value) {
  return std::get_if<std::string>(&value.value);
}

std::optional<int64_t> as_integer(const TemplateValue& value) {
  if (const auto* integer = std::get_if<int64_t>(&value.value)) {
    return *integer;
  }
  const auto* number = std::get_if<double>(&value.value);
  if (number != nullptr && std::trunc(*number) == *number && std::abs(*number) < kExactIntegers) {
    return static_cast<int64_t>(*number);
  }
  return std::nullopt;
}

std::optional<double> as_number(const TemplateValue& value) {
  if (const auto* integer = std::get_if<int64_t>(&value.value)) {
    return static_cast<double>(*integer);
  }
  const auto* number = std::get_if<double>(&value.value);
  if (number != nullptr && std::isfinite(*number)) {
    return *number;
  }
  return std::nullopt;
}

std::string_view type_name(const TemplateValue& value) {
  constexpr std::array<std::string_view, 7> kNames = {
      "null", "a boolean", "an integer", "a number", "a string", "a list", "an object"};
  return kNames.at(value.value.index());
}

const TemplateValue* FieldReader::find(std::string_view name) const {
  for (const auto& [key, value] : *object_) {
    if (key == name) {
      return std::holds_alternative<std::monostate>(value.value) ? nullptr : &value;
    }
  }
  return nullptr;
}

void FieldReader::fail(std::string_view name, std::string message, std::string code) {
  if (!failed()) {
    *error_ = invalid_field(prefix_ + std::string(name), std::move(message), std::move(code));
  }
}

void FieldReader::fail_type(std::string_view name,
                            std::string_view expected,
                            const TemplateValue& found) {
  fail(name, "expected " + std::string(expected) + ", got " + std::string(type_name(found)));
}

std::optional<bool> FieldReader::boolean(std::string_view name) {
  const TemplateValue* value = find(name);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (const bool* boolean = std::get_if<bool>(&value->value)) {
    return *boolean;
  }
  fail_type(name, "a boolean", *value);
  return std::nullopt;
}

std::optional<int64_t> FieldReader::integer(std::string_view name, int64_t min, int64_t max) {
  const TemplateValue* value = find(name);
  if (value == nullptr) {
    return std::nullopt;
  }
  const std::optional<int64_t> integer = as_integer(*value);
  if (!integer) {
    fail_type(name, "an integer", *value);
    return std::nullopt;
  }
  if (*integer < min || *integer > max) {
    fail(name,
         "expected an integer from " + std::to_string(min) + " to " + std::to_string(max) +
             ", got " + std::to_string(*integer));
    return std::nullopt;
  }
  return integer;
}

std::optional<double> FieldReader::number(std::string_view name, const Range& range) {
  const TemplateValue* value = find(name);
  if (value == nullptr) {
    return std::nullopt;
  }
  const std::optional<double> number = as_number(*value);
  if (!number) {
    fail_type(name, "a finite number", *value);
    return std::nullopt;
  }
  const bool is_low = range.excludes_min ? *number <= range.min : *number < range.min;
  if (is_low || *number > range.max) {
    std::string expected = range.excludes_min ? "more than " : "at least ";
    expected += number_text(range.min);
    if (range.max < std::numeric_limits<double>::max()) {
      expected += " and at most " + number_text(range.max);
    }
    fail(name, "expected " + expected + ", got " + number_text(*number));
    return std::nullopt;
  }
  return number;
}

std::optional<std::string> FieldReader::string(std::string_view name, size_t bytes_max) {
  const TemplateValue* value = find(name);
  if (value == nullptr) {
    return std::nullopt;
  }
  const std::string* text = as_string(*value);
  if (text == nullptr) {
    fail_type(name, "a string", *value);
    return std::nullopt;
  }
  if (text->size() > bytes_max) {
    fail(name,
         "expected at most " + std::to_string(bytes_max) + " bytes, got " +
             std::to_string(text->size()));
    return std::nullopt;
  }
  return *text;
}

const TemplateValue::List* FieldReader::list(std::string_view name, size_t size_max) {
  const TemplateValue* value = find(name);
  if (value == nullptr) {
    return nullptr;
  }
  const TemplateValue::List* items = as_list(*value);
  if (items == nullptr) {
    fail_type(name, "a list", *value);
    return nullptr;
  }
  if (items->size() > size_max) {
    fail(name,
         "expected at most " + std::to_string(size_max) + " entries, got " +
             std::to_string(items->size()));
    return nullptr;
  }
  return items;
}

const TemplateValue::Object* FieldReader::object(std::string_view name) {
  const TemplateValue* value = find(name);
  if (value == nullptr) {
    return nullptr;
  }
  const TemplateValue::Object* members = as_object(*value);
  if (members == nullptr) {
    fail_type(name, "an object", *value);
  }
  return members;
}

}  // namespace hadal::api
