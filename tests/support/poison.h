// Memory that shows misuse: what must not be read holds NaN or absurd numbers, and what must not be
// written is framed by sentinels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

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

/// A dense tensor, poisoned at first, between two guards.
class GuardedTensor {
 public:
  GuardedTensor() = default;

  GuardedTensor(DType dtype, const Shape& shape)
      : memory_(static_cast<size_t>(shape.numel() * size_of(dtype)) + 2 * kGuard,
                std::byte{kSentinel}) {
    view_ = make_view(memory_.data() + kGuard, dtype, shape);
    poison(view_);
  }

  const TensorView& view() const { return view_; }

  /// No byte of the guards was written.
  bool guards_are_whole() const {
    const size_t end = memory_.size() - kGuard;
    for (size_t i = 0; i < kGuard; ++i) {
      if (memory_[i] != std::byte{kSentinel} || memory_[end + i] != std::byte{kSentinel}) {
        return false;
      }
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;
  std::vector<std::byte> memory_;
  TensorView view_;
};

}  // namespace hadal::test
