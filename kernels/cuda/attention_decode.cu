// Attention of generated tokens, absorbed form, on bf16 tensor cores: three kernels, of which the
// first and the last are in attention_absorb.cu.
//
//   absorb   q~ = (W_UK^T q_nope, q_pe) per head
//   split    one block a (token, part of its cache, group of heads): S^T = K q~^T and
//            O^T += V^T P^T, so that cached tokens and latents lie on the 16 side of the
//            instruction and the heads on its 8 side. V is the first 512 features of the same
//            shared tile that K was. FP8 latents become bf16, exactly, on their way to the tile.
//            Each page is summed from zero and folded into the split (attention_plan.h).
//   merge    splits are merged in order, then projected with W_UV, then stored in out's format.
#include "attention.h"
#include "attention_fold.cuh"
#include "device_math.cuh"
#include "kv_latents.cuh"
#include "launch.cuh"
#include "mma.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kWarps = kThreads / 32;
constexpr int32_t kStageTokens = 32;
constexpr int32_t kRowBytes = kWidth * 2;       // 1152: nine 128-byte lines
constexpr int32_t kRowChunks = kRowBytes / 16;  // 72
constexpr int32_t kStageBytes = kStageTokens * kRowBytes;
constexpr int32_t kChunksPerThread = kStageTokens * kRowChunks / kThreads;
constexpr int32_t kParts = 4;  ///< of the contraction of S, over warps
constexpr int32_t kStepsPerPart = kWidth / 16 / kParts;
constexpr int32_t kScoreStride = kStageTokens + 4;   ///< floats: eight columns in distinct banks
constexpr int32_t kWeightStride = kStageTokens + 8;  ///< bf16
constexpr int32_t kQueryStride = kWidth + 8;  ///< bf16: eight rows' same chunk lies in eight banks
constexpr int32_t kPageStages = kKvPageTokens / kStageTokens;
constexpr float kLog2e = 1.4426950408889634F;

constexpr int32_t kCodesPerThread = kStageTokens / kWarps;  ///< chunks of 16, a lane each

static_assert(kStageTokens * kRowChunks % kThreads == 0);
static_assert(kLatents == 16 * 32 && kStageTokens * kRope / 8 == kThreads);
static_assert(kKvPageTokens % kStageTokens == 0);

/// Shared memory of the split kernel for kTiles * 8 heads.
template <int32_t kTiles>
struct SplitShared {
  alignas(128) std::byte stages[2][kStageBytes];
  float scores[kParts][kTiles * 8][kScoreStride];
  uint16_t weights[kTiles * 8][kWeightStride];
  float keep[kTiles * 8];   ///< factor of the page's sums so far
  alignas(16) float2 fold[kTiles * 8];  ///< factors of the split's sums and of the page's
  alignas(16) uint16_t queries[kTiles > 1 ? kTiles * 8 : 1][kQueryStride];
};

/// Records of the 32 tokens from `first` on (a multiple of 32).
__device__ inline const std::byte* stage_records(const StepView& step, int64_t row, int32_t first) {
  const int64_t page = step.page_table[row * step.table_stride + first / kKvPageTokens];
  return step.pages + page * step.page_bytes + first % kKvPageTokens * step.record_bytes;
}

/// Copies the 32 tokens from `first` on; tokens at or past `end` become zeros.
__device__ inline void load_stage(
    const StepView& step, int64_t row, int32_t first, int32_t end, uint32_t stage) {
  const std::byte* base = stage_records(step, row, first);
#pragma unroll
  for (int32_t j = 0; j < kChunksPerThread; ++j) {
    const int32_t index = static_cast<int32_t>(threadIdx.x) + j * kThreads;
    const int32_t token = index / kRowChunks;
    const int32_t chunk = index % kRowChunks;
    copy_async(stage + swizzled(token, chunk, kRowBytes),
               base + token * kRowBytes + chunk * 16,
               first + token < end);
  }
}

/// FP8 latents of a stage on their way: warp w has tokens w + 8 j, lane l codes 16 l to 16 l + 15.
struct StageCodes {
  CodeChunk chunks[kCodesPerThread];
};

/// Asks for the codes of a stage, and copies its rope part to the tile.
__device__ inline void fetch_stage(const StepView& step,
                                   int64_t row,
                                   int32_t first,
                                   int32_t end,
                                   uint32_t stage,
                                   StageCodes& codes) {
  const std::byte* base = stage_records(step, row, first);
  const int32_t thread = threadIdx.x;
#pragma unroll
  for (int32_t j = 0; j < kCodesPerThread; ++j) {
    const int32_t token = thread / 32 + j * kWarps;
    codes.chunks[j] = load_codes(base + token * kFp8RecordBytes, thread % 32, first + token < end);
  }
  const int32_t token = thread / 8;
  const int32_t chunk = thread % 8;
  copy_async(stage + swizzled(token, kLatents / 8 + chunk, kRowBytes),
             base + token * kFp8RecordBytes + kFp8Record.rope_at() + chunk * 16,
             first + token < end);
}

__device__ inline void store_stage(const StageCodes& codes, std::byte* stage) {
  const int32_t lane = threadIdx.x % 32;
#pragma unroll
  for (int32_t j = 0; j < kCodesPerThread; ++j) {
    const int32_t token = static_cast<int32_t>(threadIdx.x) / 32 + j * kWarps;
    store_codes(codes.chunks[j], stage, token, 2 * lane, kRowBytes, lane / 4 % 2 == 1);
  }
}

/// A warp's part of the queries as B fragments; heads past the last are zeros. Those of 8 heads
/// stay in registers, for which 16 heads' sums leave no room: they lie in shared memory.
template <int32_t kTiles>
struct Queries {
  static constexpr bool kInRegisters = kTiles == 1;
  uint32_t held[kInRegisters ? kStepsPerPart : 1][2];

  __device__ void load(const DecodeParams& p,
                       int32_t first_head,
                       int32_t part,
                       SplitShared<kTiles>& s) {
    const uint16_t* rows =
        p.absorbed + (static_cast<int64_t>(blockIdx.y) * p.heads + first_head) * kWidth;
    if constexpr (kInRegisters) {
      const int32_t head = threadIdx.x % 32 / 4;
      const uint16_t* source =
          rows + head * kWidth + part * kStepsPerPart * 16 + threadIdx.x % 4 * 2;
      const bool valid = first_head + head < p.heads;
#pragma unroll
      for (int32_t step = 0; step < kStepsPerPart; ++step) {
        held[step][0] = valid ? *reinterpret_cast<const uint32_t*>(source + step * 16) : 0;
        held[step][1] = valid ? *reinterpret_cast<const uint32_t*>(source + step * 16 + 8) : 0;
      }
    } else {
      for (int32_t index = threadIdx.x; index < kTiles * 8 * kRowChunks; index += kThreads) {
        const int32_t head = index / kRowChunks;
        const int32_t at = index % kRowChunks * 8;
        uint4 chunk = make_uint4(0, 0, 0, 0);
        if (first_head + head < p.heads) {
          chunk = *reinterpret_cast<const uint4*>(rows + head * kWidth + at);
        }
        *reinterpret_cast<uint4*>(&s.queries[head][at]) = chunk;
      }
    }
  }

  __device__ void at(int32_t part,
                     int32_t step,
                     const SplitShared<kTiles>& s,
                     uint32_t (&b)[kTiles][2]) const {
    if constexpr (kInRegisters) {
      b[0][0] = held[step][0];
      b[0][1] = held[step][1];
    } else {
      static_assert(kTiles == 2);
      const int32_t lane = threadIdx.x % 32;
      const int32_t chunk = (part * kStepsPerPart + step) * 2 + lane / 8 % 2;
      uint32_t r[4];
      load_matrices(r, shared_address(&s.queries[lane % 8 + lane / 16 * 8][chunk * 8]));
      b[0][0] = r[0];
      b[0][1] = r[1];
      b[1][0] = r[2];
      b[1][1] = r[3];
    }
  }
};

/// A part of S^T = K q~^T for 16 tokens.
template <int32_t kTiles>
__device__ inline void scores_of(uint32_t stage,
                                 const Queries<kTiles>& queries,
                                 int32_t token,
                                 int32_t part,
                                 SplitShared<kTiles>& s) {
  const int32_t lane = threadIdx.x % 32;
  float c[kTiles][4] = {};
#pragma unroll
  for (int32_t step = 0; step < kStepsPerPart; ++step) {
    uint32_t a[4];
    uint32_t b[kTiles][2];
    const int32_t chunk = (part * kStepsPerPart + step) * 2 + lane / 16;
    load_matrices(a, stage + swizzled(token + lane % 16, chunk, kRowBytes));
    queries.at(part, step, s, b);
#pragma unroll
    for (int32_t t = 0; t < kTiles; ++t) {
      mma(c[t], a[0], a[1], a[2], a[3], b[t][0], b[t][1]);
    }
  }
  const int32_t g = lane / 4;
  const int32_t i = lane % 4;
#pragma unroll
  for (int32_t t = 0; t < kTiles; ++t) {
    s.scores[part][8 * t + 2 * i][token + g] = c[t][0];
    s.scores[part][8 * t + 2 * i + 1][token + g] = c[t][1];
    s.scores[part][8 * t + 2 * i][token + g + 8] = c[t][2];
    s.scores[part][8 * t + 2 * i + 1][token + g + 8] = c[t][3];
  }
}

/// A thread's part of O^T, and the softmax of its warp's heads.
template <int32_t kTiles>
struct Running {
  float out[4][kTiles][4] = {};
  float max[kTiles];
  float total[kTiles] = {};

  __device__ Running() {
#pragma unroll
    for (int32_t t = 0; t < kTiles; ++t) {
      max[t] = -INFINITY;
    }
  }
};

/// Scores become weights: warp w has heads w + 8 t, lane l token l of the stage. The last stage of
/// a page folds the page's maximum and total into the split's.
template <int32_t kTiles>
__device__ inline void weigh_stage(int32_t num_valid,
                                   bool ends_page,
                                   float scale,
                                   Running<kTiles>& page,
                                   Running<kTiles>& split,
                                   SplitShared<kTiles>& s) {
  const int32_t lane = threadIdx.x % 32;
#pragma unroll
  for (int32_t t = 0; t < kTiles; ++t) {
    const int32_t column = 8 * t + static_cast<int32_t>(threadIdx.x) / 32;
    float score = s.scores[0][column][lane] + s.scores[1][column][lane];
    score += s.scores[2][column][lane] + s.scores[3][column][lane];
    score = lane < num_valid ? score * scale : -INFINITY;
    const float new_max = fmaxf(page.max[t], warp_max(score));
    const float weight = exp2f(score - new_max);
    const float keep = exp2f(page.max[t] - new_max);
    page.total[t] = page.total[t] * keep + warp_sum(weight);
    page.max[t] = new_max;
    s.weights[column][lane] = f32_to_bf16_bits(weight);
    if (lane == 0) {
      s.keep[column] = keep;
    }
    if (ends_page) {
      float2 stats = make_float2(split.max[t], split.total[t]);
      const float2 factors = fold_stats(stats, make_float2(page.max[t], page.total[t]));
      split.max[t] = stats.x;
      split.total[t] = stats.y;
      page.max[t] = -INFINITY;
      page.total[t] = 0.0F;
      if (lane == 0) {
        s.fold[column] = factors;
      }
    }
  }
}

/// The page's sums go into the split's, and begin again.
template <int32_t kTiles>
__device__ inline void fold_page(Running<kTiles>& page,
                                 Running<kTiles>& split,
                                 const SplitShared<kTiles>& s) {
  const int32_t i = threadIdx.x % 4;
#pragma unroll
  for (int32_t t = 0; t < kTiles; ++t) {
    const float4 factors = *reinterpret_cast<const float4*>(&s.fold[8 * t + 2 * i]);
#pragma unroll
    for (int32_t m = 0; m < 4; ++m) {
#pragma unroll
      for (int32_t e = 0; e < 4; ++e) {
        const float2 f = e % 2 == 0 ? make_float2(factors.x, factors.y)
                                    : make_float2(factors.z, factors.w);
        split.out[m][t][e] = fold(split.out[m][t][e], page.out[m][t][e], f);
        page.out[m][t][e] = 0.0F;
      }
    }
  }
}

/// O^T += V^T P^T of a stage: warp w has latents 64 w to 64 w + 63.
template <int32_t kTiles>
__device__ inline void accumulate_stage(uint32_t stage,
                                        Running<kTiles>& running,
                                        const SplitShared<kTiles>& s) {
  const int32_t lane = threadIdx.x % 32;
  const int32_t warp = threadIdx.x / 32;
  const int32_t g = lane / 4;
  const int32_t i = lane % 4;
#pragma unroll
  for (int32_t t = 0; t < kTiles; ++t) {
    const float2 keep = *reinterpret_cast<const float2*>(&s.keep[8 * t + 2 * i]);
#pragma unroll
    for (int32_t m = 0; m < 4; ++m) {
      running.out[m][t][0] *= keep.x;
      running.out[m][t][1] *= keep.y;
      running.out[m][t][2] *= keep.x;
      running.out[m][t][3] *= keep.y;
    }
  }
#pragma unroll
  for (int32_t step = 0; step < kStageTokens / 16; ++step) {
    uint32_t b[kTiles][2];
#pragma unroll
    for (int32_t t = 0; t < kTiles; ++t) {
      const uint16_t* weights = &s.weights[8 * t + g][step * 16 + 2 * i];
      b[t][0] = *reinterpret_cast<const uint32_t*>(weights);
      b[t][1] = *reinterpret_cast<const uint32_t*>(weights + 8);
    }
    // Matrices in the order of A's registers: latents 0-7 and 8-15, then tokens 8-15.
    const int32_t key = step * 16 + lane % 8 + lane / 16 * 8;
#pragma unroll
    for (int32_t m = 0; m < 4; ++m) {
      uint32_t a[4];
      const int32_t chunk = warp * 8 + m * 2 + lane / 8 % 2;
      load_matrices_transposed(a, stage + swizzled(key, chunk, kRowBytes));
#pragma unroll
      for (int32_t t = 0; t < kTiles; ++t) {
        mma(running.out[m][t], a[0], a[1], a[2], a[3], b[t][0], b[t][1]);
      }
    }
  }
}

template <int32_t kTiles>
__device__ inline void store_split(const DecodeParams& p,
                                   int32_t first_head,
                                   const Running<kTiles>& running) {
  const int32_t lane = threadIdx.x % 32;
  const int32_t warp = threadIdx.x / 32;
  const int64_t slot = static_cast<int64_t>(blockIdx.y) * p.most_parts + blockIdx.x;
#pragma unroll
  for (int32_t t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int32_t column = 0; column < 2; ++column) {
      const int32_t head = first_head + 8 * t + lane % 4 * 2 + column;
      if (head < p.heads) {
        float* to = p.partial + (slot * p.heads + head) * kLatents + warp * 64 + lane / 4;
#pragma unroll
        for (int32_t m = 0; m < 4; ++m) {
          to[m * 16] = running.out[m][t][column];
          to[m * 16 + 8] = running.out[m][t][2 + column];
        }
      }
    }
    const int32_t head = first_head + 8 * t + warp;
    if (lane == 0 && head < p.heads) {
      p.stats[slot * p.heads + head] = make_float2(running.max[t], running.total[t]);
    }
  }
}

/// Tokens [begin, end) of the block's part; none past the last one.
__device__ inline int2 part_of(const DecodeParams& p, int32_t length) {
  const int32_t part = blockIdx.x;
  if (p.by_page) {
    const int32_t begin = part * kKvPageTokens;
    return make_int2(begin, min(begin + kKvPageTokens, length));
  }
  return make_int2(split_begin(length, part), split_begin(length, part + 1));
}

/// Grid (parts, tokens, groups of heads). BF16 pages are two stages ahead in shared memory. FP8
/// codes are one stage ahead in registers, and leave them when the stage before has been used. The
/// cache is read before absorb has ended: see there.
template <int32_t kTiles, bool kFp8>
__global__ void __launch_bounds__(kThreads, 2) split_kernel(DecodeParams p) {
  extern __shared__ __align__(128) std::byte memory[];
  auto& s = *reinterpret_cast<SplitShared<kTiles>*>(memory);
  const int32_t token = token_of(p.tokens, blockIdx.y);
  const auto [begin, end] = part_of(p, p.step.positions[token] + 1);
  if (begin >= end) {
    wait_for_previous();
    return;
  }
  const int64_t row = p.step.token_rows[token];
  const int32_t first_head = static_cast<int32_t>(blockIdx.z) * kTiles * 8;
  const int32_t num_stages = (end - begin + kStageTokens - 1) / kStageTokens;
  [[maybe_unused]] StageCodes codes;
  if constexpr (kFp8) {
    fetch_stage(p.step, row, begin, end, shared_address(s.stages[0]), codes);
    store_stage(codes, s.stages[0]);
    commit_copies();
  } else {
    load_stage(p.step, row, begin, end, shared_address(s.stages[0]));
    commit_copies();
    if (num_stages > 1) {
      load_stage(p.step, row, begin + kStageTokens, end, shared_address(s.stages[1]));
    }
    commit_copies();
  }

  // Warp w: tokens 16 (w % 2).. of a stage, part w / 2 of the contraction.
  const int32_t warp = threadIdx.x / 32;
  Queries<kTiles> queries;
  wait_for_previous();
  let_next_start();
  queries.load(p, first_head, warp / 2, s);
  Running<kTiles> page;
  Running<kTiles> split;
  for (int32_t index = 0; index < num_stages; ++index) {
    const uint32_t stage = shared_address(s.stages[index % 2]);
    const int32_t first = begin + index * kStageTokens;
    wait_copies<kFp8 ? 0 : 1>();
    __syncthreads();
    std::byte* next = s.stages[(index + 1) % 2];
    if constexpr (kFp8) {
      if (index + 1 < num_stages) {
        fetch_stage(p.step, row, first + kStageTokens, end, shared_address(next), codes);
      }
      commit_copies();
    }
    scores_of<kTiles>(stage, queries, warp % 2 * 16, warp / 2, s);
    __syncthreads();
    const bool ends_page = index % kPageStages == kPageStages - 1 || index + 1 == num_stages;
    weigh_stage<kTiles>(end - first, ends_page, p.scale * kLog2e, page, split, s);
    __syncthreads();
    accumulate_stage<kTiles>(stage, page, s);
    if (ends_page) {
      fold_page(page, split, s);
    }
    if constexpr (kFp8) {
      if (index + 1 < num_stages) {
        store_stage(codes, next);
      }
    } else {
      __syncthreads();
      if (index + 2 < num_stages) {
        load_stage(p.step, row, first + 2 * kStageTokens, end, stage);
      }
      commit_copies();
    }
  }
  store_split<kTiles>(p, first_head, split);
}

template <int32_t kTiles, bool kFp8>
void launch_split(const DecodeParams& p, cudaStream_t stream) {
  constexpr int32_t kHeads = kTiles * 8;
  const auto bytes = static_cast<int32_t>(sizeof(SplitShared<kTiles>));
  // Idempotent, and no work of the stream: legal while a graph is captured.
  (void)cudaFuncSetAttribute(
      split_kernel<kTiles, kFp8>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  const dim3 grid(static_cast<uint32_t>(p.most_parts),
                  static_cast<uint32_t>(p.tokens.count),
                  static_cast<uint32_t>((p.heads + kHeads - 1) / kHeads));
  launch_early(
      split_kernel<kTiles, kFp8>, grid, dim3(kThreads), static_cast<size_t>(bytes), stream, p);
}

}  // namespace

int32_t decode_head_tile(int32_t heads) {
  return heads <= 8 ? 8 : 16;
}

int64_t decode_bytes_per_token(int32_t heads, int32_t most_parts) {
  const int64_t absorbed = static_cast<int64_t>(heads) * kWidth * 2;
  const int64_t partial = static_cast<int64_t>(most_parts) * heads * (kLatents * 4 + 8);
  return absorbed + partial;
}

void launch_decode(const DecodeParams& p, cudaStream_t stream) {
  launch_absorb(p, stream);
  const bool is_fp8 = p.step.kv_type == DType::f8_e4m3;
  if (decode_head_tile(p.heads) == 8) {
    is_fp8 ? launch_split<1, true>(p, stream) : launch_split<1, false>(p, stream);
  } else {
    is_fp8 ? launch_split<2, true>(p, stream) : launch_split<2, false>(p, stream);
  }
  launch_merge(p, stream);
}

}  // namespace hadal::cuda
