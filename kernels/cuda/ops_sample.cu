// Sampling: see hadal/ops/sample.h for the rule. Many blocks look for an entry's largest logit, one
// block does the rest; candidates are found without sorting (sample_select.cuh).
#include <cfloat>

#include <hadal/comm/communicator.h>

#include "cuda_ops.h"
#include "launch.cuh"
#include "sample_select.cuh"

namespace hadal::cuda {

namespace {

using namespace sampling;  // NOLINT(google-build-using-namespace): this file's other half

constexpr int64_t kEntriesAtOnce = 64;  ///< bounds the adjusted logits in the workspace
constexpr int32_t kScanEach = 8;        ///< logits a thread looks at
constexpr int32_t kScanColumns = kThreads * kScanEach;

/// What a block found in its part of a row.
struct Scan {
  Best best;    ///< of the finite ones
  int32_t bad;  ///< how many are NaN or +inf
};

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
  Scan* scans;      ///< [entries of this launch][num_scans]
  int32_t num_scans;
  int32_t first_entry;
};

/// A row of logits over all slices.
struct Row {
  const float* data;
  int64_t local;
  int64_t slice_stride;

  __device__ float operator[](int32_t v) const {
    if (slice_stride == 0) {
      return data[v];
    }
    const uint32_t slice = static_cast<uint32_t>(v) / static_cast<uint32_t>(local);
    const uint32_t column = static_cast<uint32_t>(v) % static_cast<uint32_t>(local);
    return data[slice * slice_stride + column];
  }
};

/// Copies the row with penalties; then adds the biases, each token's in the order given.
__device__ void adjust(const Params& p, const SampleEntry& entry, const Row& row, float* x) {
  const bool penalised = is_penalised(entry);
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

/// `best` = the row's largest logit.
__device__ int32_t pick(const Params& p,
                        const SampleEntry& entry,
                        const Row& row,
                        const Best& best,
                        float* x,
                        Shared& s) {
  if (entry.temperature == 0.0F && !is_penalised(entry) && entry.bias_begin >= entry.bias_end) {
    return best.token;
  }
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

__device__ Row row_of(const Params& p, const SampleEntry& entry) {
  return {p.logits + entry.logits_row * p.row_stride, p.local, p.slice_stride};
}

/// Whether a part of a row is usable, and its best element.
__global__ void __launch_bounds__(kThreads) scan_kernel(Params p) {
  __shared__ Best best_scratch[kWarps];
  __shared__ uint64_t bad_scratch[kWarps];
  let_next_start();
  wait_for_previous();
  const SampleEntry entry = p.entries[p.first_entry + static_cast<int32_t>(blockIdx.y)];
  if (entry.logits_row < 0 || entry.logits_row >= p.num_rows) {
    return;  // sample_kernel refuses it
  }
  const Row row = row_of(p, entry);
  const int32_t begin =
      static_cast<int32_t>(blockIdx.x) * kScanColumns + static_cast<int32_t>(threadIdx.x);
  float values[kScanEach];
#pragma unroll
  for (int32_t i = 0; i < kScanEach; ++i) {
    const int32_t v = begin + i * kThreads;
    values[i] = v < p.vocab ? row[v] : minus_infinity();
  }
  Best mine{0.0F, -1};
  uint64_t bad = 0;
#pragma unroll
  for (int32_t i = 0; i < kScanEach; ++i) {
    const int32_t v = begin + i * kThreads;
    if (values[i] <= FLT_MAX) {
      mine = v < p.vocab ? better(mine, Best{values[i], v}) : mine;
    } else {
      ++bad;
    }
  }
  bad = block_total(bad, bad_scratch);
  mine = block_best(mine, best_scratch);
  if (threadIdx.x == 0) {
    p.scans[blockIdx.y * p.num_scans + blockIdx.x] = {mine, static_cast<int32_t>(bad)};
  }
}

__global__ void __launch_bounds__(kThreads) sample_kernel(Params p) {
  __shared__ Shared s;
  let_next_start();
  wait_for_previous();
  const int64_t index = p.first_entry + static_cast<int64_t>(blockIdx.x);
  const SampleEntry entry = p.entries[index];
  if (entry.logits_row < 0 || entry.logits_row >= p.num_rows || entry.given_token >= p.vocab) {
    refuse(p, index, entry);
    return;
  }
  const Row row = row_of(p, entry);
  float* x = p.adjusted + static_cast<int64_t>(blockIdx.x) * p.vocab;
  Best mine{0.0F, -1};
  uint64_t bad = 0;
  for (int32_t i = threadIdx.x; i < p.num_scans; i += kThreads) {
    const Scan scan = p.scans[blockIdx.x * p.num_scans + i];
    mine = better(mine, scan.best);
    bad += static_cast<uint64_t>(scan.bad);
  }
  bad = block_total(bad, s.scratch);
  const Best best = block_best(mine, s.scratch);
  if (bad != 0 || best.token < 0 || best.value == minus_infinity()) {
    refuse(p, index, entry);
    return;
  }
  const bool draws = entry.given_token < 0;
  const int32_t token = draws ? pick(p, entry, row, best, x, s) : entry.given_token;
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
  p.num_scans = (p.vocab + kScanColumns - 1) / kScanColumns;
  p.scans = workspace_.take<Scan>(at_once * p.num_scans);
  for (int64_t first = 0; first < entries; first += at_once) {
    const int64_t count = entries - first < at_once ? entries - first : at_once;
    p.first_entry = static_cast<int32_t>(first);
    const auto blocks = static_cast<uint32_t>(count);
    launch_early(scan_kernel,
                 dim3(static_cast<uint32_t>(p.num_scans), blocks),
                 dim3(kThreads),
                 0,
                 handle,
                 p);
    launch_early(sample_kernel, dim3(blocks), dim3(kThreads), 0, handle, p);
  }
  end("sample", handle);
}

}  // namespace hadal::cuda
