// What every store shares: slices and reading as float32.
#include <cstring>

#include <hadal/tensor/dtype.h>
#include <hadal/weights/weight_store.h>

namespace hadal {
namespace {

float widen(const std::byte* at, StoredType type) {
  if (type == StoredType::f32) {
    float value = 0.0F;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, at, sizeof bits);
  return type == StoredType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

}  // namespace

WeightSlice whole(std::span<const int64_t> shape) {
  WeightSlice slice{0, 1, 0, 1};
  for (size_t i = 0; i + 1 < shape.size(); ++i) {
    slice.num_rows *= shape[i];
  }
  if (!shape.empty()) {
    slice.num_cols = shape.back();
  }
  return slice;
}

Status read_f32(const WeightStore& store,
                const WeightSpec& spec,
                const WeightSlice& slice,
                std::span<float> out) {
  const auto type = store.find(spec);
  if (!type) {
    return type.error();
  }
  const StoredType found = type.value();
  HADAL_CHECK(found == StoredType::f32 || found == StoredType::f16 || found == StoredType::bf16,
              "read_f32 of a tensor that is not a plain float: " + spec.name);
  const auto size = static_cast<size_t>(stored_size(found));
  std::vector<std::byte> bytes(out.size() * size);
  HADAL_RETURN_IF_ERROR(store.read(spec, slice, bytes));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = widen(bytes.data() + i * size, found);
  }
  return ok_status();
}

}  // namespace hadal
