// Inputs whose sums depend on their order, and the sums in the order of communicator.h written down
// a second time.
#pragma once

#include <vector>

#include <hadal/backend/backend.h>
#include <hadal/tensor/tensor.h>

namespace hadal::testing {

struct NullStream final : Stream {
  void synchronize() override {}
};

template <class T>
TensorView view_of(std::vector<T>& data, DType dtype) {
  return make_view(
      reinterpret_cast<std::byte*>(data.data()), dtype, Shape{static_cast<int64_t>(data.size())});
}

/// A value whose float sum depends on the order.
inline float value_of(int32_t rank, size_t i) {
  uint64_t x = static_cast<uint64_t>(rank) * 1'000'003 + i + 1;
  x = (x ^ (x >> 30U)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27U)) * 0x94d049bb133111ebULL;
  const float unit = static_cast<float>(x >> 40U) / 8388608.0F - 1.0F;
  return unit * (rank % 2 == 0 ? 1e6F : 1.0F);
}

inline std::vector<float> values_of(int32_t rank, size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    values[i] = value_of(rank, i);
  }
  return values;
}

inline std::vector<uint16_t> to_bf16(const std::vector<float>& values) {
  std::vector<uint16_t> bits;
  for (const float value : values) {
    bits.push_back(f32_to_bf16(value));
  }
  return bits;
}

/// Level by level: neighbours are added, an odd one out moves up.
inline float sum_of_tree(std::vector<float> level) {
  while (level.size() > 1) {
    std::vector<float> next;
    for (size_t i = 0; i + 1 < level.size(); i += 2) {
      next.push_back(level[i] + level[i + 1]);
    }
    if (level.size() % 2 == 1) {
      next.push_back(level.back());
    }
    level = std::move(next);
  }
  return level.front();
}

inline std::vector<float> sums_of(int32_t world, size_t count) {
  std::vector<float> sums(count);
  for (size_t i = 0; i < count; ++i) {
    std::vector<float> addends;
    for (int32_t rank = 0; rank < world; ++rank) {
      addends.push_back(value_of(rank, i));
    }
    sums[i] = sum_of_tree(std::move(addends));
  }
  return sums;
}

inline std::vector<uint16_t> bf16_sums_of(int32_t world, size_t count) {
  std::vector<uint16_t> sums(count);
  for (size_t i = 0; i < count; ++i) {
    std::vector<float> addends;
    for (int32_t rank = 0; rank < world; ++rank) {
      addends.push_back(bf16_to_f32(f32_to_bf16(value_of(rank, i))));
    }
    sums[i] = f32_to_bf16(sum_of_tree(std::move(addends)));
  }
  return sums;
}

}  // namespace hadal::testing
