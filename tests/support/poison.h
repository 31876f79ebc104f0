// Memory that shows misuse: what must not be read holds NaN or absurd numbers, and what must not be
// written is framed by sentinels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include <hadal/tensor/tensor.h>

namespace hadal::test {

inline constexpr int32_t kAbsurdIndex = 0x5bad5bad;  ///< a page, row or token id that cannot exist
inline constexpr uint8_t kSentinel = 0xa5;

/// Fills dense memory with the dtype's NaN, or with absurd indices.
inline void poison(const TensorView& view) {
  const int64_t count = view.shape.numel();
  for (int64_t i = 0; i < count; ++i) {
    switch (view.dtype) {
      case DType::f32:
        view.as<uint32_t>()[i] = 0x7fc0deadU;
        break;
      case DType::bf16:
      case DType::f16:
        view.as<uint16_t>()[i] = 0x7fdeU;
        break;
      case DType::i32:
        view.as<int32_t>()[i] = kAbsurdIndex;
        break;
      case DType::i64:
        view.as<int64_t>()[i] = kAbsurdIndex;
        break;
      case DType::f8_e4m3:
      case DType::u8:
        view.as<uint8_t>()[i] = 0x7fU;
        break;
    }
  }
}

/// Memory that tests fill and kernels use; freed with the last copy.
using TestMemory = std::shared_ptr<std::byte>;

/// Where GuardedTensor takes its memory from. Tests of a GPU put memory here that it reaches.
inline TestMemory (*allocate_test_memory)(size_t size_bytes) = [](size_t size_bytes) {
  return TestMemory(new std::byte[size_bytes], [](std::byte* data) { delete[] data; });
};

/// A dense tensor, poisoned at first, between two guards.
class GuardedTensor {
 public:
  GuardedTensor() = default;

  GuardedTensor(DType dtype, const Shape& shape)
      : size_(static_cast<size_t>(shape.numel() * size_of(dtype)) + 2 * kGuard),
        memory_(allocate_test_memory(size_)) {
    std::memset(memory_.get(), kSentinel, size_);
    view_ = make_view(memory_.get() + kGuard, dtype, shape);
    poison(view_);
  }

  const TensorView& view() const { return view_; }

  /// No byte of the guards was written.
  bool guards_are_whole() const {
    if (memory_ == nullptr) {
      return true;
    }
    const std::byte* bytes = memory_.get();
    const size_t end = size_ - kGuard;
    for (size_t i = 0; i < kGuard; ++i) {
      if (bytes[i] != std::byte{kSentinel} || bytes[end + i] != std::byte{kSentinel}) {
        return false;
      }
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;
  size_t size_ = 0;
  TestMemory memory_;
  TensorView view_;
};

}  // namespace hadal::test
