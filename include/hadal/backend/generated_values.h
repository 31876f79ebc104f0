// Elements of dummy weights as a formula (src/weights/DUMMY.md), so that a device can make them
// itself: an R1 rank is 43 GB.
#pragma once

#include <cstdint>

namespace hadal {

inline constexpr uint64_t kGeneratedStep = 0x9e3779b97f4a7c15ULL;

/// v of element `index` of a tensor, in [-1, 1), exact in float32. Usable in device code.
constexpr float generated_unit(uint64_t start, int64_t index) {
  uint64_t z = start + (static_cast<uint64_t>(index) + 1) * kGeneratedStep;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  z ^= z >> 31;
  return static_cast<float>(z >> 40) * 0x1p-23F - 1.0F;
}

/// A slice of a tensor: element (row, column) of the slice is factor * v of index
/// first_index + row * row_indices + column, rounded once to float32 and once to the stored type.
struct GeneratedValues {
  uint64_t start = 0;       ///< hash of the tensor's name xor seed * kGeneratedStep
  int64_t first_index = 0;  ///< in the unsharded tensor
  int64_t row_indices = 0;  ///< columns of the unsharded tensor
  float factor = 1.0F;
};

}  // namespace hadal
