// JsonField, and the bounded parse. Depth and size are counted before nlohmann builds anything.
#include <fstream>

#include "tokenizer_json.h"
#include "tokenizer_parts.h"

namespace hadal {
namespace {

constexpr int kDepthMax = 32;
constexpr int64_t kValuesMax = 8'000'000;
constexpr size_t kShownBytesMax = 48;

/// Field names come from the file: keep messages short and printable.
std::string shown(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, kShownBytesMax))
    out += static_cast<uint8_t>(c) < 0x20 || c == 0x7F ? '?' : c;
  if (text.size() > kShownBytesMax)
    out += "...";
  return out;
}

/// Structure only: strings are skipped, everything else is left to the parser.
Status check_bounds(std::string_view text, std::string_view file) {
  int depth = 0;
  int64_t values = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\')
        ++i;
      else if (c == '"')
        in_string = false;
      continue;
    }
    if (c == '"')
      in_string = true;
    else if (c == '[' || c == '{')
      ++depth;
    else if (c == ']' || c == '}')
      --depth;
    values += c == ',' || c == '[' || c == '{' ? 1 : 0;
    if (depth > kDepthMax || values > kValuesMax) {
      return Error{ErrorCode::data_loss,
                   std::string(file) + ": expected at most " + std::to_string(kDepthMax) +
                       " levels and " + std::to_string(kValuesMax) +
                       " values, found more at byte " + std::to_string(i)};
    }
  }
  return ok_status();
}

}  // namespace

JsonField JsonField::member(std::string_view name) const {
  JsonField field{nullptr, path + (path.ends_with(": ") ? "" : ".") + shown(name)};
  if (value != nullptr && value->is_object()) {
    if (const auto found = value->find(std::string(name)); found != value->end())
      field.value = &*found;
  }
  return field;
}

JsonField JsonField::element(size_t index) const {
  return {&(*value)[index], path + "[" + std::to_string(index) + "]"};
}

Error JsonField::expected(std::string_view what) const {
  const std::string found = value == nullptr ? "nothing" : value->type_name();
  return {ErrorCode::data_loss, path + ": expected " + std::string(what) + ", found " + found};
}

Error JsonField::refused(std::string_view why) const {
  return {ErrorCode::unsupported, path + ": " + std::string(why)};
}

Result<std::string> JsonField::string() const {
  if (value == nullptr || !value->is_string())
    return expected("a string");
  return value->get_ref<const std::string&>();
}

Result<bool> JsonField::boolean_or(bool fallback) const {
  if (is_absent())
    return fallback;
  if (!value->is_boolean())
    return expected("true or false");
  return value->get<bool>();
}

Result<int64_t> JsonField::integer(int64_t min, int64_t max) const {
  const std::string range = "an integer from " + std::to_string(min) + " to " + std::to_string(max);
  if (value == nullptr || !value->is_number_integer())
    return expected(range);
  const bool is_huge = value->is_number_unsigned() && value->get<uint64_t>() > uint64_t{1} << 62;
  const auto number = is_huge ? INT64_MAX : value->get<int64_t>();
  if (number < min || number > max)
    return Error{ErrorCode::data_loss,
                 path + ": expected " + range + ", found " + value->dump().substr(0, 24)};
  return number;
}

Status JsonField::require_object() const {
  if (value == nullptr || !value->is_object())
    return expected("an object");
  return ok_status();
}

Status JsonField::require_array() const {
  if (value == nullptr || !value->is_array())
    return expected("an array");
  return ok_status();
}

Result<nlohmann::json> parse_bounded_json(std::string_view text, std::string_view file) {
  HADAL_RETURN_IF_ERROR(check_bounds(text, file));
  try {
    return nlohmann::json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& e) {
    return Error{ErrorCode::data_loss, std::string(file) + ": " + shown(e.what())};
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::resource_exhausted, std::string(file) + ": out of memory"};
  }
}

Result<std::string> read_file_bounded(const std::filesystem::path& path, int64_t bytes_max) {
  std::error_code code;
  const uintmax_t size = std::filesystem::file_size(path, code);
  if (code)
    return Error{ErrorCode::not_found, path.string() + ": " + code.message()};
  if (size > static_cast<uintmax_t>(bytes_max)) {
    return Error{ErrorCode::data_loss,
                 path.string() + ": expected at most " + std::to_string(bytes_max) +
                     " bytes, found " + std::to_string(size)};
  }
  std::string text(static_cast<size_t>(size), '\0');
  std::ifstream in(path, std::ios::binary);
  if (!in.read(text.data(), static_cast<std::streamsize>(size)))
    return Error{ErrorCode::data_loss, path.string() + ": cannot be read"};
  return text;
}

}  // namespace hadal
