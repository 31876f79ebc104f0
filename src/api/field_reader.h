// Strict typed access to the fields of one JSON object: no coercion, every range stated, absent and
// null mean "not given". The first failure is kept and names the field; later ones are ignored.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include <hadal/text/template_value.h>

#include "api_error.h"

namespace hadal::api {

const TemplateValue::Object* as_object(const TemplateValue& value);
const TemplateValue::List* as_list(const TemplateValue& value);
const std::string* as_string(const TemplateValue& value);
/// Integers, and floats that are exactly an integer below 2^53 ("5.0").
std::optional<int64_t> as_integer(const TemplateValue& value);
std::optional<double> as_number(const TemplateValue& value);
/// "a string", "a list", ...
std::string_view type_name(const TemplateValue& value);

class FieldReader {
 public:
  struct Range {
    double min = -std::numeric_limits<double>::max();
    double max = std::numeric_limits<double>::max();
    bool excludes_min = false;
  };

  /// `prefix` is put before names in messages ("stream_options."). `error` is shared by the readers
  /// of one body.
  FieldReader(const TemplateValue::Object& object,
              std::string prefix,
              std::optional<ApiError>& error)
      : object_(&object), prefix_(std::move(prefix)), error_(&error) {}

  /// nullptr when absent or null.
  const TemplateValue* find(std::string_view name) const;

  bool has(std::string_view name) const { return find(name) != nullptr; }

  std::optional<bool> boolean(std::string_view name);
  std::optional<int64_t> integer(std::string_view name, int64_t min, int64_t max);
  std::optional<double> number(std::string_view name, const Range& range);
  std::optional<std::string> string(std::string_view name, size_t bytes_max);
  const TemplateValue::List* list(std::string_view name, size_t size_max);
  const TemplateValue::Object* object(std::string_view name);

  void fail(std::string_view name, std::string message, std::string code = {});

  bool failed() const { return error_->has_value(); }

 private:
  void fail_type(std::string_view name, std::string_view expected, const TemplateValue& found);

  const TemplateValue::Object* object_;
  std::string prefix_;
  std::optional<ApiError>* error_;
};

}  // namespace hadal::api
