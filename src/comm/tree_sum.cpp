// A binary counter over the ranks: bit k of the number of ranks seen says whether the sum of a
// complete subtree of 2^k ranks waits on level k. Blocks keep all levels in the first-level cache.
#include "tree_sum.h"

#include <algorithm>
#include <array>
#include <string>

namespace hadal {

namespace {

constexpr int64_t kBlock = 256;
constexpr size_t kMaxLevels = 12;

using Block = std::array<float, kBlock>;

void load(const std::byte* source, DType dtype, int64_t begin, int64_t count, float* out) {
  if (dtype == DType::f32) {
    std::copy_n(reinterpret_cast<const float*>(source) + begin, count, out);
    return;
  }
  const auto* in = reinterpret_cast<const uint16_t*>(source) + begin;
  for (int64_t i = 0; i < count; ++i) {
    out[i] = bf16_to_f32(in[i]);
  }
}

void store(const float* sum, DType dtype, int64_t begin, int64_t count, std::byte* out) {
  if (dtype == DType::f32) {
    std::copy_n(sum, count, reinterpret_cast<float*>(out) + begin);
    return;
  }
  auto* to = reinterpret_cast<uint16_t*>(out) + begin;
  for (int64_t i = 0; i < count; ++i) {
    to[i] = f32_to_bf16(sum[i]);
  }
}

/// sum = lower + sum
void add(const Block& lower, int64_t count, Block& sum) {
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    sum[i] = lower[i] + sum[i];
  }
}

void sum_block(std::span<const std::byte* const> sources,
               DType dtype,
               int64_t begin,
               int64_t count,
               std::byte* out) {
  std::array<Block, kMaxLevels> levels;
  Block current{};
  for (size_t rank = 0; rank < sources.size(); ++rank) {
    load(sources[rank], dtype, begin, count, current.data());
    size_t level = 0;
    for (; ((rank >> level) & 1U) != 0; ++level) {
      add(levels[level], count, current);
    }
    levels[level] = current;
  }
  bool is_first = true;
  for (size_t level = 0; level < kMaxLevels; ++level) {
    if (((sources.size() >> level) & 1U) == 0) {
      continue;
    }
    if (is_first) {
      current = levels[level];
      is_first = false;
    } else {
      add(levels[level], count, current);
    }
  }
  store(current.data(), dtype, begin, count, out);
}

void sum_i32(std::span<const std::byte* const> sources, int64_t count, std::byte* out) {
  auto* to = reinterpret_cast<int32_t*>(out);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t sum = 0;
    for (const std::byte* source : sources) {
      sum += static_cast<uint32_t>(reinterpret_cast<const int32_t*>(source)[i]);
    }
    to[i] = static_cast<int32_t>(sum);
  }
}

}  // namespace

bool is_summable(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::i32;
}

void tree_sum(std::span<const std::byte* const> sources,
              DType dtype,
              int64_t count,
              std::byte* out) {
  HADAL_CHECK(is_summable(dtype), "sum of " + std::string(to_string(dtype)));
  HADAL_CHECK(!sources.empty() && sources.size() < (size_t{1} << kMaxLevels), "sum of no ranks");
  if (dtype == DType::i32) {
    sum_i32(sources, count, out);
    return;
  }
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    sum_block(sources, dtype, begin, std::min(kBlock, count - begin), out);
  }
}

}  // namespace hadal
