// Sampling: see hadal/ops/sample.h for the rule. One block an entry.
//
// Candidates are found without sorting. Probabilities are summed as integers of 2^-44, whose sum
// does not depend on the order, so a threshold never depends on how a row was cut among threads.
// A first pass counts the row into ranges of log-probability; the head that top_k and top_p can
// reach is copied to shared memory when it is short (nearly always), and a bisection over the bits
// of the value, then over the ids of equal values, finds where the candidates end.
#include <cfloat>

#include <hadal/comm/communicator.h>

#include "cuda_ops.h"
#include "device_math.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 1024;
constexpr int32_t kWarps = kThreads / 32;
constexpr int32_t kListed = 4096;    ///< candidates that shared memory has room for
constexpr int32_t kRanges = 8;       ///< of log-probability, for the first narrowing
constexpr double kMassOne = 0x1p44;  ///< fixed point: V < 2^19 terms stay below 2^63
constexpr uint64_t kAllMass = ~uint64_t{0} >> 1;
constexpr double kMaxGain = 16.7;       ///< above -log(-log(1 - 2^-24))
constexpr int64_t kEntriesAtOnce = 64;  ///< bounds the adjusted logits in the workspace

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
__device__ inline T shuffle(T value, int32_t offset) {
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

__device__ Head block_head(Head mine, void* memory) {
  return {block_total(mine.count, memory), block_total(mine.mass, memory)};
}

struct Params {
  const float* logits;
  int64_t row_stride;  ///< one rank's slice: of a row; gathered: likewise
  int64_t local;       ///< columns of a slice
  int64_t slice_stride;
  int64_t num_rows;
  int32_t vocab;
  const SampleEntry* entries;
  const int32_t* bias_tokens;
  const float* bias_values;
  int32_t* counts;
  int64_t counts_stride;
  uint8_t* prompt_seen;
  int64_t prompt_stride;
  int32_t* last_tokens;
  int32_t* out_tokens;
  float* out_logprobs;
  uint8_t* out_has_nan;
  int32_t* out_top_tokens;
  int64_t top_tokens_stride;
  float* out_top_logprobs;
  int64_t top_logprobs_stride;
  int32_t top_width;
  float* adjusted;  ///< [entries of this launch][vocab]
  int32_t first_entry;
};

/// A row of logits over all slices.
struct Row {
  const float* data;
  int64_t local;
  int64_t slice_stride;

  __device__ float operator[](int32_t v) const {
    return slice_stride == 0 ? data[v] : data[v / local * slice_stride + v % local];
  }
};

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

__device__ Reach find_reach(const float* x, int32_t vocab, uint64_t top_k, float top_p, Shared& s) {
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
__device__ int32_t select_and_draw(const SampleEntry& entry,
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

/// Copies the row with penalties; then adds the biases, each token's in the order given.
__device__ void adjust(const Params& p, const SampleEntry& entry, const Row& row, float* x) {
  const bool penalised = entry.repetition_penalty != 1.0F || entry.frequency_penalty != 0.0F ||
                         entry.presence_penalty != 0.0F;
  const int32_t* counts = p.counts + entry.slot * p.counts_stride;
  const uint8_t* prompt = p.prompt_seen + entry.slot * p.prompt_stride;
  for (int32_t v = threadIdx.x; v < p.vocab; v += kThreads) {
    float value = row[v];
    if (penalised) {
      const int32_t count = counts[v];
      if (count != 0 || prompt[v] != 0) {
        value = value > 0.0F ? __fdiv_rn(value, entry.repetition_penalty)
                             : __fmul_rn(value, entry.repetition_penalty);
        value = __fsub_rn(value, __fmul_rn(entry.frequency_penalty, static_cast<float>(count)));
        value = __fsub_rn(value, count > 0 ? entry.presence_penalty : 0.0F);
      }
    }
    x[v] = value;
  }
  __syncthreads();
  for (int32_t i = entry.bias_begin + static_cast<int32_t>(threadIdx.x); i < entry.bias_end;
       i += kThreads) {
    const int32_t token = p.bias_tokens[i];
    bool is_first = token >= 0 && token < p.vocab;
    for (int32_t j = entry.bias_begin; j < i && is_first; ++j) {
      is_first = p.bias_tokens[j] != token;
    }
    for (int32_t j = i; j < entry.bias_end && is_first; ++j) {
      if (p.bias_tokens[j] == token) {
        x[token] = __fadd_rn(x[token], p.bias_values[j]);
      }
    }
  }
  __syncthreads();
}

__device__ int32_t
pick(const Params& p, const SampleEntry& entry, const Row& row, float* x, Shared& s) {
  adjust(p, entry, row, x);
  Best mine{0.0F, -1};
  for (int32_t v = threadIdx.x; v < p.vocab; v += kThreads) {
    mine = better(mine, Best{x[v], v});
  }
  const Best largest = block_best(mine, s.scratch);
  if (entry.temperature == 0.0F || largest.value == minus_infinity()) {
    return largest.token;
  }
  for (int32_t v = threadIdx.x; v < p.vocab; v += kThreads) {
    x[v] = __fdiv_rn(__fsub_rn(x[v], largest.value), entry.temperature);
  }
  __syncthreads();
  const int32_t winner = select_and_draw(entry, x, p.vocab, s);
  return winner >= 0 ? winner : largest.token;
}

/// The best num_top of the raw logits, one a pass.
__device__ void report_top(const Params& p,
                           int64_t index,
                           const SampleEntry& entry,
                           const Row& row,
                           double max,
                           double log_total,
                           Shared& s) {
  int32_t count = entry.num_top < p.top_width ? entry.num_top : p.top_width;
  count = count < p.vocab ? count : p.vocab;
  Best last{0.0F, -1};
  for (int32_t i = 0; i < count; ++i) {
    Best mine{0.0F, -1};
    for (int32_t v = threadIdx.x; v < p.vocab; v += kThreads) {
      const float value = row[v];
      const bool is_after =
          last.token < 0 || value < last.value || (value == last.value && v > last.token);
      if (is_after) {
        mine = better(mine, Best{value, v});
      }
    }
    last = block_best(mine, s.scratch);
    if (threadIdx.x == 0) {
      p.out_top_tokens[index * p.top_tokens_stride + i] = last.token;
      p.out_top_logprobs[index * p.top_logprobs_stride + i] =
          static_cast<float>(static_cast<double>(last.value) - max - log_total);
    }
  }
}

__device__ void refuse(const Params& p, int64_t index, const SampleEntry& entry) {
  for (int32_t i = threadIdx.x; i < p.top_width; i += kThreads) {
    p.out_top_tokens[index * p.top_tokens_stride + i] = 0;
    p.out_top_logprobs[index * p.top_logprobs_stride + i] = 0.0F;
  }
  if (threadIdx.x == 0) {
    p.out_tokens[index] = entry.given_token >= 0 ? entry.given_token : 0;
    p.out_logprobs[index] = 0.0F;
    p.out_has_nan[index] = 1;
  }
}

__global__ void __launch_bounds__(kThreads) sample_kernel(Params p) {
  __shared__ Shared s;
  const int64_t index = p.first_entry + static_cast<int64_t>(blockIdx.x);
  const SampleEntry entry = p.entries[index];
  if (entry.logits_row < 0 || entry.logits_row >= p.num_rows || entry.given_token >= p.vocab) {
    refuse(p, index, entry);
    return;
  }
  const Row row{p.logits + entry.logits_row * p.row_stride, p.local, p.slice_stride};
  float* x = p.adjusted + static_cast<int64_t>(blockIdx.x) * p.vocab;

  // One pass: whether the row is usable, and its best element.
  Best mine{0.0F, -1};
  uint64_t bad = 0;
  for (int32_t v = threadIdx.x; v < p.vocab; v += kThreads) {
    const float value = row[v];
    bad += value <= FLT_MAX ? 0 : 1;  // NaN and +inf
    if (value <= FLT_MAX) {
      mine = better(mine, Best{value, v});
    }
  }
  bad = block_total(bad, s.scratch);
  const Best best = block_best(mine, s.scratch);
  if (bad != 0 || best.token < 0 || best.value == minus_infinity()) {
    refuse(p, index, entry);
    return;
  }
  const bool draws = entry.given_token < 0;
  const int32_t token = draws ? pick(p, entry, row, x, s) : entry.given_token;
  const bool reports_top = entry.num_top > 0 && p.top_width > 0;
  float logprob = 0.0F;
  if (entry.wants_logprob != 0 || reports_top) {
    const auto max = static_cast<double>(best.value);
    double sum = 0.0;
    for (int32_t v = threadIdx.x; v < p.vocab; v += kThreads) {
      sum += exp(static_cast<double>(row[v]) - max);
    }
    const double log_total = log(block_total(sum, s.scratch));
    logprob = static_cast<float>(static_cast<double>(row[token]) - max - log_total);
    if (reports_top) {
      report_top(p, index, entry, row, max, log_total, s);
    }
  }
  if (threadIdx.x == 0) {
    if (draws && entry.updates_history != 0) {
      ++p.counts[entry.slot * p.counts_stride + token];
      p.last_tokens[entry.slot] = token;
    }
    p.out_tokens[index] = token;
    p.out_logprobs[index] = entry.wants_logprob != 0 ? logprob : 0.0F;
    p.out_has_nan[index] = 0;
  }
}

struct ResetParams {
  const int32_t* slots;
  const int32_t* offsets;
  const int32_t* history;
  const int32_t* num_prompt;
  int32_t* counts;
  int64_t counts_stride;
  uint8_t* prompt_seen;
  int64_t prompt_stride;
  int32_t* last_tokens;
  int64_t vocab;
};

/// One block a slot.
__global__ void __launch_bounds__(kThreads) reset_kernel(ResetParams p) {
  const int64_t i = blockIdx.x;
  const int64_t slot = p.slots[i];
  int32_t* counts = p.counts + slot * p.counts_stride;
  uint8_t* prompt = p.prompt_seen + slot * p.prompt_stride;
  for (int64_t v = threadIdx.x; v < p.vocab; v += kThreads) {
    counts[v] = 0;
    prompt[v] = 0;
  }
  __syncthreads();
  const int32_t begin = p.offsets[i];
  const int32_t end = p.offsets[i + 1];
  const int32_t num_prompt = p.num_prompt[i];
  for (int32_t j = begin + static_cast<int32_t>(threadIdx.x); j < end; j += kThreads) {
    const int32_t token = p.history[j];
    if (token < 0 || token >= p.vocab) {
      continue;
    }
    if (j - begin < num_prompt) {
      prompt[token] = 1;
    } else {
      atomicAdd(&counts[token], 1);
    }
  }
  if (threadIdx.x == 0) {
    p.last_tokens[slot] = end > begin ? p.history[end - 1] : 0;
  }
}

}  // namespace

void CudaOps::reset_slots(const ResetSlotsArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("reset_slots", check(args), stream);
  if (args.slots.shape[0] > 0) {
    const SamplerState& state = args.state;
    const ResetParams p{args.slots.as<int32_t>(),
                        args.history_offsets.as<int32_t>(),
                        args.history.as<int32_t>(),
                        args.num_prompt_tokens.as<int32_t>(),
                        state.generated_counts.as<int32_t>(),
                        state.generated_counts.strides[0],
                        state.prompt_seen.as<uint8_t>(),
                        state.prompt_seen.strides[0],
                        state.last_tokens.as<int32_t>(),
                        state.generated_counts.shape[1]};
    reset_kernel<<<static_cast<uint32_t>(args.slots.shape[0]), kThreads, 0, handle>>>(p);
  }
  end("reset_slots", handle);
}

void CudaOps::sample(const SampleArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("sample", check(args), stream);
  const int64_t rows = args.logits.shape[0];
  const int64_t local = args.logits.shape[1];
  const int32_t world = args.comm == nullptr ? 1 : args.comm->world_size();
  Params p{};
  p.logits = args.logits.as<float>();
  p.row_stride = args.logits.strides[0];
  p.local = local;
  p.num_rows = rows;
  if (world > 1) {
    HADAL_CHECK(local * world >= args.vocab_size,
                "sample: the ranks' logits are fewer than vocab_size");
    auto* gathered = workspace_.take<float>(world * rows * local);
    args.comm->all_gather(args.logits,
                          make_view(reinterpret_cast<std::byte*>(gathered),
                                    DType::f32,
                                    Shape{world, rows, local},
                                    args.logits.device),
                          stream);
    p.logits = gathered;
    p.row_stride = local;
    p.slice_stride = rows * local;
  }
  p.vocab = args.vocab_size;
  p.entries = args.entries;
  p.bias_tokens = args.bias_tokens.as<int32_t>();
  p.bias_values = args.bias_values.as<float>();
  p.counts = args.state.generated_counts.as<int32_t>();
  p.counts_stride = args.state.generated_counts.strides[0];
  p.prompt_seen = args.state.prompt_seen.as<uint8_t>();
  p.prompt_stride = args.state.prompt_seen.strides[0];
  p.last_tokens = args.state.last_tokens.as<int32_t>();
  p.out_tokens = args.out_tokens.as<int32_t>();
  p.out_logprobs = args.out_logprobs.as<float>();
  p.out_has_nan = args.out_has_nan.as<uint8_t>();
  if (!args.out_top_tokens.empty()) {
    p.out_top_tokens = args.out_top_tokens.as<int32_t>();
    p.top_tokens_stride = args.out_top_tokens.strides[0];
    p.out_top_logprobs = args.out_top_logprobs.as<float>();
    p.top_logprobs_stride = args.out_top_logprobs.strides[0];
    p.top_width = static_cast<int32_t>(args.out_top_tokens.shape[1]);
  }
  const int64_t entries = args.num_entries;
  const int64_t at_once = entries < kEntriesAtOnce ? entries : kEntriesAtOnce;
  p.adjusted = workspace_.take<float>(at_once * p.vocab);
  for (int64_t first = 0; first < entries; first += at_once) {
    const int64_t count = entries - first < at_once ? entries - first : at_once;
    p.first_entry = static_cast<int32_t>(first);
    sample_kernel<<<static_cast<uint32_t>(count), kThreads, 0, handle>>>(p);
  }
  end("sample", handle);
}

}  // namespace hadal::cuda
