// The device side of sampling that knows only values: reductions over a block, the cut between
// candidates and the rest, and the draw. One block of kThreads threads works on one row.
//
// Probabilities are summed as integers of 2^-44, whose sum does not depend on the order, so a
// threshold never depends on how a row was cut among threads. A first pass counts the row into
// ranges of log-probability; the head that top_k and top_p can reach is copied to shared memory
// when it is short (nearly always), and a bisection over the bits of the value, then over the ids
// of equal values, finds where the candidates end.
#pragma once

#include <cfloat>
#include <cstdint>

#include <hadal/ops/sample.h>

#include "device_math.cuh"

namespace hadal::cuda::sampling {

inline constexpr int32_t kThreads = 1024;
inline constexpr int32_t kWarps = kThreads / 32;
inline constexpr int32_t kListed = 4096;    ///< candidates that shared memory has room for
inline constexpr int32_t kRanges = 8;       ///< of log-probability, for the first narrowing
inline constexpr double kMassOne = 0x1p44;  ///< fixed point: V < 2^19 terms stay below 2^63
inline constexpr uint64_t kAllMass = ~uint64_t{0} >> 1;
inline constexpr double kMaxGain = 16.7;  ///< above -log(-log(1 - 2^-24))

__device__ inline float minus_infinity() {
  return __int_as_float(static_cast<int32_t>(0xff800000U));
}

/// Monotone map of floats to unsigned integers; -0 and +0 are one value.
__device__ inline uint32_t order_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0F);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

__device__ inline uint64_t mass_of(float x) {
  return static_cast<uint64_t>(exp(static_cast<double>(x)) * kMassOne);
}

/// The larger value first, then the lower token.
struct Best {
  float value;
  int32_t token;  ///< -1 = none
};

__device__ inline Best better(Best a, Best b) {
  if (b.token < 0) {
    return a;
  }
  const bool take = a.token < 0 || b.value > a.value || (b.value == a.value && b.token < a.token);
  return take ? b : a;
}

struct Winner {
  double key;
  int32_t token;
};

__device__ inline Winner better(Winner a, Winner b) {
  if (b.token < 0) {
    return a;
  }
  const bool take = a.token < 0 || b.key > a.key || (b.key == a.key && b.token < a.token);
  return take ? b : a;
}

__device__ inline double plus(double a, double b) {
  return a + b;
}

__device__ inline uint64_t plus(uint64_t a, uint64_t b) {
  return a + b;
}

template <class T>
__device__ T shuffle(T value, int32_t offset) {
  return __shfl_xor_sync(kFullMask, value, offset);
}

template <>
__device__ inline Best shuffle(Best value, int32_t offset) {
  return {__shfl_xor_sync(kFullMask, value.value, offset),
          __shfl_xor_sync(kFullMask, value.token, offset)};
}

template <>
__device__ inline Winner shuffle(Winner value, int32_t offset) {
  return {__shfl_xor_sync(kFullMask, value.key, offset),
          __shfl_xor_sync(kFullMask, value.token, offset)};
}

/// Fixed tree over the block; all threads get the result.
template <class T, class Join>
__device__ T block_join(T value, Join join, void* memory) {
  T* scratch = static_cast<T*>(memory);
  for (int32_t offset = 16; offset > 0; offset /= 2) {
    value = join(value, shuffle(value, offset));
  }
  if (threadIdx.x % 32 == 0) {
    scratch[threadIdx.x / 32] = value;
  }
  __syncthreads();
  T result = scratch[0];
  for (int32_t warp = 1; warp < kWarps; ++warp) {
    result = join(result, scratch[warp]);
  }
  __syncthreads();
  return result;
}

template <class T>
__device__ T block_best(T value, void* memory) {
  return block_join(
      value, [](T a, T b) { return better(a, b); }, memory);
}

template <class T>
__device__ T block_total(T value, void* memory) {
  return block_join(
      value, [](T a, T b) { return plus(a, b); }, memory);
}

/// Count in the high word is not enough for a mass: two sums, two trees.
struct Head {
  uint64_t count;
  uint64_t mass;
};

__device__ inline Head block_head(Head mine, void* memory) {
  return {block_total(mine.count, memory), block_total(mine.mass, memory)};
}

struct Shared {
  uint64_t scratch[2 * kWarps];
  float values[kListed];
  int32_t tokens[kListed];
  int32_t num_listed;
};

/// The whole row.
struct RowSource {
  const float* x;
  int32_t count;

  __device__ float value(int32_t i) const { return x[i]; }

  __device__ int32_t token(int32_t i) const { return i; }
};

/// What was copied to shared memory, in any order.
struct ListSource {
  const float* values;
  const int32_t* tokens;
  int32_t count;

  __device__ float value(int32_t i) const { return values[i]; }

  __device__ int32_t token(int32_t i) const { return tokens[i]; }
};

/// Candidates are the items above `order`, and those at it whose token is at most `last_token`.
struct Cut {
  uint32_t order;
  int32_t last_token;

  __device__ bool keeps(float value, int32_t token) const {
    const uint32_t mine = order_of(value);
    return mine > order || (mine == order && token <= last_token);
  }
};

/// Count and mass of what is strictly above `order`.
template <class Source>
__device__ Head above(const Source& source, uint32_t order, void* memory) {
  Head mine{0, 0};
  for (int32_t i = threadIdx.x; i < source.count; i += kThreads) {
    const float x = source.value(i);
    if (order_of(x) > order) {
      ++mine.count;
      mine.mass += mass_of(x);
    }
  }
  return block_head(mine, memory);
}

template <class Source>
__device__ int32_t count_ties(const Source& source, uint32_t order, int32_t last, void* memory) {
  uint64_t mine = 0;
  for (int32_t i = threadIdx.x; i < source.count; i += kThreads) {
    mine += order_of(source.value(i)) == order && source.token(i) <= last ? 1 : 0;
  }
  return static_cast<int32_t>(block_total(mine, memory));
}

/// Items in order of better-first: one is kept while fewer than top_k come before it and their mass
/// is below `mass`; the first always is. `source` holds at least all that are kept.
template <class Source>
__device__ Cut find_cut(const Source& source, uint64_t top_k, uint64_t mass, void* memory) {
  // The lowest order whose first item is kept. The condition is monotone: more lies above a lower
  // order.
  uint64_t low = 0;
  uint64_t high = 0xffffffffU;  // above any finite value: nothing lies above it, so it is kept
  while (low < high) {
    const uint64_t middle = (low + high) / 2;
    const Head head = above(source, static_cast<uint32_t>(middle), memory);
    if (head.count == 0 || (head.count < top_k && head.mass < mass)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  // `high` may lie below a value of the source: the best value at or above it is the boundary, and
  // everything at it has the same head.
  const auto order = static_cast<uint32_t>(high);
  const Head head = above(source, order, memory);
  const int32_t ties = count_ties(source, order, 0x7fffffff, memory);
  if (ties == 0) {
    return {order, 0x7fffffff};
  }
  const uint32_t bits = (order & 0x80000000U) != 0 ? order & 0x7fffffffU : ~order;
  const uint64_t each = mass_of(__uint_as_float(bits));
  uint64_t kept = head.count < top_k ? top_k - head.count : 0;
  if (head.mass >= mass) {
    kept = 0;
  } else if (each > 0) {
    const uint64_t by_mass = (mass - head.mass + each - 1) / each;
    kept = by_mass < kept ? by_mass : kept;
  }
  kept = kept == 0 ? 1 : kept;  // only when it is the first of all
  if (kept >= static_cast<uint64_t>(ties)) {
    return {order, 0x7fffffff};
  }
  int32_t least = 0;
  int32_t most = 0x7ffffffe;
  while (least < most) {
    const int32_t middle = least + (most - least) / 2;
    if (static_cast<uint64_t>(count_ties(source, order, middle, memory)) >= kept) {
      most = middle;
    } else {
      least = middle + 1;
    }
  }
  return {order, most};
}

template <class Source>
__device__ int32_t
draw(const Source& source, const Cut& cut, const SampleEntry& entry, double floor, void* memory) {
  Winner best{0.0, -1};
  for (int32_t i = threadIdx.x; i < source.count; i += kThreads) {
    const float x = source.value(i);
    const int32_t token = source.token(i);
    const auto value = static_cast<double>(x);
    if (x == minus_infinity() || value < floor || !cut.keeps(x, token) ||
        (best.token >= 0 && value + kMaxGain < best.key)) {
      continue;
    }
    const float u = uniform_from_bits(uniform_bits(entry.seed, entry.position, token));
    best = better(best, Winner{value - log(-log(static_cast<double>(u))), token});
  }
  return block_best(best, memory).token;
}

/// How far below the best value range `i` reaches.
__device__ inline float range_floor(int32_t i) {
  return i == kRanges - 1 ? -FLT_MAX : -0.5F * static_cast<float>(1 << i);
}

/// The lowest value that top_k and top_p can reach, and how many items are at or above it.
struct Reach {
  float floor;
  uint64_t count;
  uint64_t total;  ///< mass of the row
};

__device__ inline Reach find_reach(
    const float* x, int32_t vocab, uint64_t top_k, float top_p, Shared& s) {
  uint64_t counts[kRanges] = {};
  uint64_t masses[kRanges] = {};
  uint64_t rest = 0;
  for (int32_t v = threadIdx.x; v < vocab; v += kThreads) {
    const float value = x[v];
    const uint64_t mass = mass_of(value);
    bool placed = false;
#pragma unroll
    for (int32_t i = 0; i < kRanges; ++i) {
      const bool here = !placed && value >= range_floor(i);
      counts[i] += here ? 1 : 0;
      masses[i] += here ? mass : 0;
      placed = placed || here;
    }
    rest += placed ? 0 : 1;
  }
  Head heads[kRanges];
  uint64_t total = 0;
#pragma unroll
  for (int32_t i = 0; i < kRanges; ++i) {
    heads[i] = block_head({counts[i], masses[i]}, s.scratch);
    total += heads[i].mass;
  }
  const uint64_t below = block_total(rest, s.scratch);
  const uint64_t target =
      top_p < 1.0F ? static_cast<uint64_t>(static_cast<double>(top_p) * static_cast<double>(total))
                   : kAllMass;
  Head sum{0, 0};
  for (int32_t i = 0; i < kRanges; ++i) {
    sum.count += heads[i].count;
    sum.mass += heads[i].mass;
    if (sum.count >= top_k || sum.mass >= target) {
      return {range_floor(i), sum.count, total};
    }
  }
  return {minus_infinity(), sum.count + below, total};
}

/// Draws among the candidates of `x` (scaled; the best is zero). -1 when none may be drawn.
__device__ inline int32_t select_and_draw(const SampleEntry& entry,
                                          const float* x,
                                          int32_t vocab,
                                          Shared& s) {
  const double floor = entry.min_p > 0.0F ? log(static_cast<double>(entry.min_p)) : -DBL_MAX;
  const RowSource row{x, vocab};
  const auto top_k =
      static_cast<uint64_t>(entry.top_k > 0 && entry.top_k < vocab ? entry.top_k : vocab);
  if (top_k == static_cast<uint64_t>(vocab) && entry.top_p >= 1.0F) {
    return draw(row, Cut{0, 0x7fffffff}, entry, floor, s.scratch);
  }
  const Reach reach = find_reach(x, vocab, top_k, entry.top_p, s);
  const uint64_t mass = entry.top_p < 1.0F
                            ? static_cast<uint64_t>(static_cast<double>(entry.top_p) *
                                                    static_cast<double>(reach.total))
                            : kAllMass;
  if (reach.count > kListed) {
    return draw(row, find_cut(row, top_k, mass, s.scratch), entry, floor, s.scratch);
  }
  if (threadIdx.x == 0) {
    s.num_listed = 0;
  }
  __syncthreads();
  for (int32_t v = threadIdx.x; v < vocab; v += kThreads) {
    const float value = x[v];
    if (value >= reach.floor) {
      const int32_t at = atomicAdd(&s.num_listed, 1);
      s.values[at] = value;
      s.tokens[at] = v;
    }
  }
  __syncthreads();
  const ListSource list{s.values, s.tokens, s.num_listed};
  return draw(list, find_cut(list, top_k, mass, s.scratch), entry, floor, s.scratch);
}

__device__ inline bool is_penalised(const SampleEntry& entry) {
  return entry.repetition_penalty != 1.0F || entry.frequency_penalty != 0.0F ||
         entry.presence_penalty != 0.0F;
}

}  // namespace hadal::cuda::sampling
