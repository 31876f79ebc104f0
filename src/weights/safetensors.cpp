// Headers are read by a SAX handler with a fixed grammar (two levels and one array), so neither
// depth nor an unexpected value can grow anything; sizes are multiplied with overflow checks.
#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include <hadal/weights/safetensors.h>

namespace hadal {
namespace {

struct TypeRow {
  StoredType type;
  std::string_view name;
  int64_t size;
};

constexpr std::array<TypeRow, 12> kTypes{{
    {StoredType::f64, "F64", 8},
    {StoredType::f32, "F32", 4},
    {StoredType::f16, "F16", 2},
    {StoredType::bf16, "BF16", 2},
    {StoredType::f8_e4m3, "F8_E4M3", 1},
    {StoredType::f8_e5m2, "F8_E5M2", 1},
    {StoredType::i64, "I64", 8},
    {StoredType::i32, "I32", 4},
    {StoredType::i16, "I16", 2},
    {StoredType::i8, "I8", 1},
    {StoredType::u8, "U8", 1},
    {StoredType::boolean, "BOOL", 1},
}};

Error damaged(std::string message) {
  return {ErrorCode::data_loss, std::move(message)};
}

/// A name as it may stand in a message: cut, so that a hostile header cannot flood the log.
std::string quote_name(std::string_view name) {
  constexpr size_t kShown = 160;
  return "'" + std::string(name.substr(0, kShown)) + (name.size() > kShown ? "...'" : "'");
}

using Json = nlohmann::json;

/// Handler for {"name": {"dtype": s, "shape": [n...], "data_offsets": [b, e]}, "__metadata__": {s:
/// s}}.
class HeaderHandler : public nlohmann::json_sax<Json> {
 public:
  std::vector<TensorRecord> tensors;
  std::string failure;

  bool null() override { return unexpected("null"); }

  bool boolean(bool /*value*/) override { return unexpected("a boolean"); }

  bool number_float(double /*value*/, const std::string& text) override {
    return unexpected("number " + text.substr(0, 40));
  }

  bool binary(binary_t& /*value*/) override { return unexpected("binary data"); }

  bool number_integer(int64_t value) override {
    return unexpected("negative number " + std::to_string(value));
  }

  bool number_unsigned(uint64_t value) override {
    if (place_ != Place::shape && place_ != Place::offsets) {
      return unexpected("a number");
    }
    if (value > static_cast<uint64_t>(INT64_MAX)) {
      return unexpected("number " + std::to_string(value));
    }
    auto& list = place_ == Place::shape ? current_.shape : offsets_;
    const size_t longest = place_ == Place::shape ? kTensorRankMax : 2;
    if (list.size() == longest) {
      return fail(key_ + " has more than " + std::to_string(longest) + " numbers");
    }
    list.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::metadata) {
      return true;
    }
    if (place_ != Place::tensor || key_ != "dtype") {
      return unexpected("a string");
    }
    const auto type = stored_type_from_name(value);
    if (!type) {
      return fail(
          "unknown dtype " + quote_name(value) +
          ", expected F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, I16, I8, U8 or BOOL");
    }
    current_.type = *type;
    seen_ |= kSeenType;
    return true;
  }

  bool start_object(size_t /*count*/) override {
    if (place_ == Place::start) {
      place_ = Place::top;
      return true;
    }
    if (place_ != Place::top) {
      return unexpected("an object");
    }
    place_ = current_.name == "__metadata__" ? Place::metadata : Place::tensor;
    return true;
  }

  bool key(std::string& value) override {
    if (place_ == Place::top) {
      current_ = TensorRecord{};
      current_.name = value;
      offsets_.clear();
      seen_ = 0;
      return names_.insert(value).second ? true : fail("duplicate tensor");
    }
    key_ = value;
    if (place_ == Place::tensor && value != "dtype" && value != "shape" &&
        value != "data_offsets") {
      return fail("unknown field " + quote_name(value));
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::metadata) {
      place_ = Place::top;
      return true;
    }
    if (place_ != Place::tensor) {
      return true;
    }
    place_ = Place::top;
    if (seen_ != kSeenAll || offsets_.size() != 2) {
      return fail("expected dtype, shape and two data_offsets");
    }
    current_.begin = offsets_[0];
    current_.end = offsets_[1];
    tensors.push_back(current_);
    return true;
  }

  bool start_array(size_t /*count*/) override {
    if (place_ != Place::tensor || key_ == "dtype") {
      return unexpected("an array");
    }
    const unsigned bit = key_ == "shape" ? kSeenShape : kSeenOffsets;
    if ((seen_ & bit) != 0) {
      return fail(key_ + " is given twice");
    }
    seen_ |= bit;
    place_ = key_ == "shape" ? Place::shape : Place::offsets;
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor;
    return true;
  }

  bool parse_error(size_t position,
                   const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    failure = "header is not valid JSON at byte " + std::to_string(position);
    return false;
  }

 private:
  enum class Place : uint8_t { start, top, metadata, tensor, shape, offsets };
  static constexpr unsigned kSeenType = 1;
  static constexpr unsigned kSeenShape = 2;
  static constexpr unsigned kSeenOffsets = 4;
  static constexpr unsigned kSeenAll = 7;

  bool fail(const std::string& what) {
    failure = "tensor " + quote_name(current_.name) + ": " + what;
    return false;
  }

  bool unexpected(const std::string& what) {
    if (place_ == Place::start) {
      failure = "header is not a JSON object: found " + what;
      return false;
    }
    return fail("unexpected " + what + (key_.empty() ? "" : " in " + quote_name(key_)));
  }

  Place place_ = Place::start;
  TensorRecord current_;
  std::vector<int64_t> offsets_;
  std::string key_;
  unsigned seen_ = 0;
  std::set<std::string> names_;
};

/// Bytes of a tensor of this shape, nullopt when that does not fit 63 bits.
std::optional<int64_t> shape_bytes(std::span<const int64_t> shape, int64_t element_size) {
  int64_t bytes = element_size;
  for (const int64_t extent : shape) {
    if (extent == 0) {
      return 0;
    }
    if (bytes > INT64_MAX / extent) {
      return std::nullopt;
    }
    bytes *= extent;
  }
  return bytes;
}

Status check_record(const TensorRecord& tensor, int64_t data_size) {
  const std::string who = "tensor " + quote_name(tensor.name);
  if (tensor.begin > tensor.end || tensor.end > data_size) {
    return damaged(who + ": byte range [" + std::to_string(tensor.begin) + ", " +
                   std::to_string(tensor.end) + ") is not inside the file's " +
                   std::to_string(data_size) + " bytes of data (truncated file?)");
  }
  const auto expected = shape_bytes(tensor.shape, stored_size(tensor.type));
  if (!expected || *expected != tensor.end - tensor.begin) {
    return damaged(who + ": shape " + shape_text(tensor.shape) + " of " +
                   std::string(stored_name(tensor.type)) + " takes " +
                   (expected ? std::to_string(*expected) : std::string("over 2^63")) +
                   " bytes, found a range of " + std::to_string(tensor.end - tensor.begin));
  }
  return ok_status();
}

/// Sorts by place and refuses shared bytes.
Status check_overlaps(std::vector<TensorRecord>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i].begin < tensors[i - 1].end) {
      return damaged("tensor " + quote_name(tensors[i].name) + ": bytes from " +
                     std::to_string(tensors[i].begin) + " overlap tensor " +
                     quote_name(tensors[i - 1].name) + ", which ends at " +
                     std::to_string(tensors[i - 1].end));
    }
  }
  return ok_status();
}

/// Handler for {"metadata": anything flat, "weight_map": {"tensor": "file"}}.
class IndexHandler : public nlohmann::json_sax<Json> {
 public:
  std::map<std::string, std::string> files;
  std::string failure;
  bool has_map = false;

  bool null() override { return scalar(); }

  bool boolean(bool /*value*/) override { return scalar(); }

  bool number_integer(int64_t /*value*/) override { return scalar(); }

  bool number_unsigned(uint64_t /*value*/) override { return scalar(); }

  bool number_float(double /*value*/, const std::string& /*text*/) override { return scalar(); }

  bool binary(binary_t& /*value*/) override { return scalar(); }

  bool string(std::string& value) override {
    if (!in_map()) {
      return scalar();
    }
    if (value.empty() || value.size() > 255 || value.front() == '.' ||
        value.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      return fail("tensor " + quote_name(key_) + ": shard " + quote_name(value) +
                  " is not a plain file name");
    }
    return files.emplace(key_, value).second ||
           fail("tensor " + quote_name(key_) + " is listed twice");
  }

  bool start_object(size_t /*count*/) override { return open(); }

  bool start_array(size_t /*count*/) override {
    const bool is_map = depth_ == 1 && section_ == "weight_map";
    return depth_ == 0 || is_map || in_map() ? fail("expected an object, found an array") : open();
  }

  bool end_object() override { return close(); }

  bool end_array() override { return close(); }

  bool key(std::string& value) override {
    key_ = value;
    if (depth_ == 1) {
      section_ = value;
      if (value == "weight_map") {
        if (has_map) {
          return fail("weight_map is given twice");
        }
        has_map = true;
      }
    }
    return true;
  }

  bool parse_error(size_t position,
                   const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    return fail("not valid JSON at byte " + std::to_string(position));
  }

 private:
  static constexpr int kDepthMax = 32;

  bool in_map() const { return depth_ == 2 && section_ == "weight_map"; }

  bool scalar() {
    return depth_ == 0 || in_map() || (depth_ == 1 && section_ == "weight_map")
               ? fail("expected weight_map to give a file name for " + quote_name(key_))
               : true;
  }

  bool open() {
    if (in_map()) {
      return fail("expected a file name for " + quote_name(key_));
    }
    return ++depth_ <= kDepthMax || fail("nested deeper than 32");
  }

  bool close() {
    --depth_;
    return true;
  }

  bool fail(std::string what) {
    failure = std::move(what);
    return false;
  }

  int depth_ = 0;
  std::string section_;
  std::string key_;
};

/// Runs a SAX parse; third-party exceptions become a failed parse.
template <class Handler, class Bytes>
bool sax_parse(const Bytes& text, Handler& handler) {
  try {
    return Json::sax_parse(text.begin(), text.end(), &handler);
  } catch (const std::exception& error) {
    handler.failure = std::string("cannot be read: ") + error.what();
    return false;
  }
}

}  // namespace

int64_t stored_size(StoredType type) {
  return kTypes[static_cast<size_t>(type)].size;
}

std::string_view stored_name(StoredType type) {
  return kTypes[static_cast<size_t>(type)].name;
}

std::optional<StoredType> stored_type_from_name(std::string_view name) {
  for (const TypeRow& row : kTypes) {
    if (row.name == name) {
      return row.type;
    }
  }
  return std::nullopt;
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> bytes,
                                                   int64_t file_size) {
  if (bytes.size() < 8 || file_size < 8) {
    return damaged("file of " + std::to_string(file_size) +
                   " bytes is too short, expected 8 bytes of header length");
  }
  uint64_t header_size = 0;
  for (size_t i = 0; i < 8; ++i) {
    header_size |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  }
  if (header_size > static_cast<uint64_t>(kSafetensorsHeaderBytesMax)) {
    return damaged("header length " + std::to_string(header_size) + " exceeds the limit of " +
                   std::to_string(kSafetensorsHeaderBytesMax) + " bytes");
  }
  const auto size = static_cast<int64_t>(header_size);
  if (size > file_size - 8 || header_size > bytes.size() - 8) {
    return damaged("header length " + std::to_string(size) + " exceeds the file's " +
                   std::to_string(file_size) + " bytes");
  }
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + 8;
  HeaderHandler handler;
  if (!sax_parse(std::string_view(text, header_size), handler)) {
    return damaged(handler.failure.empty() ? "header is not valid JSON" : handler.failure);
  }
  SafetensorsHeader header;
  header.data_begin = 8 + size;
  for (const TensorRecord& tensor : handler.tensors) {
    HADAL_RETURN_IF_ERROR(check_record(tensor, file_size - header.data_begin));
  }
  HADAL_RETURN_IF_ERROR(check_overlaps(handler.tensors));
  header.tensors = std::move(handler.tensors);
  for (TensorRecord& tensor : header.tensors) {
    tensor.begin += header.data_begin;
    tensor.end += header.data_begin;
  }
  return header;
}

Result<std::map<std::string, std::string>> parse_safetensors_index(std::string_view json) {
  IndexHandler handler;
  if (!sax_parse(json, handler)) {
    return damaged(handler.failure.empty() ? "not valid JSON" : handler.failure);
  }
  if (!handler.has_map || handler.files.empty()) {
    return damaged("expected a weight_map with at least one tensor");
  }
  return std::move(handler.files);
}

}  // namespace hadal
