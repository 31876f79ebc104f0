// Bump allocation with 256-byte steps.
#include <hadal/base/check.h>
#include <hadal/model/step_arena.h>

namespace hadal {

std::byte* StepArena::take_bytes(int64_t size_bytes) {
  constexpr int64_t kAlign = 256;
  const int64_t begin = used_bytes_;
  used_bytes_ += (size_bytes + kAlign - 1) / kAlign * kAlign;
  high_water_bytes_ = std::max(high_water_bytes_, used_bytes_);
  if (memory_ == nullptr) {
    return nullptr;
  }
  HADAL_CHECK(used_bytes_ <= size_bytes_,
              "step needs " + std::to_string(used_bytes_) + " bytes of work space, planned " +
                  std::to_string(size_bytes_));
  return memory_ + begin;
}

TensorView StepArena::take(DType dtype, const Shape& shape) {
  return make_view(take_bytes(shape.numel() * size_of(dtype)), dtype, shape, device_);
}

ActivationView StepArena::take_activation(ActFormat format, int64_t rows, int64_t columns) {
  std::byte* memory = take_bytes(activation_bytes(format, rows, columns));
  if (memory == nullptr) {
    ActivationView measured;
    measured.format = format;
    return measured;
  }
  return place_activation(memory, format, rows, columns, device_);
}

}  // namespace hadal
