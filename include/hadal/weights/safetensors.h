// The header of a .safetensors file: 8 bytes little-endian length, then JSON from tensor name to
// dtype, shape and byte range. A header is untrusted input: nothing in it is used before it has
// been checked against the file's size, against its own dtype and against every other tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/base/result.h>

namespace hadal {

/// Element types that a checkpoint file may hold.
enum class StoredType : uint8_t {
  f64,
  f32,
  f16,
  bf16,
  f8_e4m3,
  f8_e5m2,
  i64,
  i32,
  i16,
  i8,
  u8,
  boolean
};

/// Bytes of one element.
int64_t stored_size(StoredType type);
/// The name that safetensors gives it ("BF16").
std::string_view stored_name(StoredType type);
/// nullopt for a name that hadal does not know.
std::optional<StoredType> stored_type_from_name(std::string_view name);

/// "[2, 3]".
std::string shape_text(std::span<const int64_t> shape);

/// One tensor: its bytes are [begin, end) of the file, row-major, little-endian, not aligned.
struct TensorRecord {
  std::string name;
  StoredType type = StoredType::f32;
  std::vector<int64_t> shape;
  int64_t begin = 0;
  int64_t end = 0;
};

/// Tensors in order of their place in the file; byte ranges are inside it and do not overlap.
struct SafetensorsHeader {
  std::vector<TensorRecord> tensors;
  int64_t data_begin = 0;
};

inline constexpr int64_t kSafetensorsHeaderBytesMax = 100'000'000;
inline constexpr size_t kTensorRankMax = 8;

/// `bytes` is the file or at least its first 8 bytes plus header; `file_size` the size on disk.
/// data_loss names the tensor, what was expected and what was found. Never throws.
Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> bytes,
                                                   int64_t file_size);

/// The `weight_map` of model.safetensors.index.json: tensor name to shard file name. A shard is a
/// plain file name: a path separator is data_loss.
Result<std::map<std::string, std::string>> parse_safetensors_index(std::string_view json);

}  // namespace hadal
