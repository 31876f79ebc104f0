// Attention of generated tokens, absorbed form, on bf16 tensor cores: three kernels.
//
//   absorb   q~ = (W_UK^T q_nope, q_pe) per head
//   split    one block a (token, split of its cache, group of heads): S^T = K q~^T and
//            O^T += V^T P^T, so that cached tokens and latents lie on the 16 side of the
//            instruction and the heads on its 8 side. V is the first 512 features of the same
//            shared tile that K was. FP8 latents become bf16, exactly, on their way to the tile.
//   merge    splits are merged in order, then projected with W_UV, then stored in out's format.
//
// Products of a head with its weights read 16 bytes a lane straight from memory: the order of a
// contraction is free, so lane i of four takes features 8 i to 8 i + 7 of every 32, as two steps of
// the instruction, of both operands alike.
#include "attention.h"
#include "device_math.cuh"
#include "kv_latents.cuh"
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
constexpr int32_t kMergeRows = 16;
constexpr int32_t kMergeStride = kLatents + 32;  ///< bf16
constexpr float kLog2e = 1.4426950408889634F;

constexpr int32_t kCodesPerThread = kStageTokens / kWarps;  ///< chunks of 16, a lane each

static_assert(kStageTokens * kRowChunks % kThreads == 0);
static_assert(kLatents == 16 * 32 && kStageTokens * kRope / 8 == kThreads);
static_assert(kKvPageTokens % kStageTokens == 0);

__device__ int32_t token_of(const TokenRange& tokens, int32_t index) {
  const int32_t at = tokens.first + index;
  return tokens.generated == nullptr ? at : tokens.generated[at];
}

/// c[t] += 16 rows of a times 8 kTiles rows of b, over kBlocks * 32 features. `low` and `high` are
/// the lane's rows g and g + 8 of a (null = zeros), `b` its row g of tile 0; both at feature 8 i.
template <int32_t kBlocks, int32_t kTiles>
__device__ inline void multiply(float (&c)[kTiles][4],
                                const uint16_t* low,
                                const uint16_t* high,
                                const uint16_t* b,
                                int64_t b_stride) {
#pragma unroll 4
  for (int32_t block = 0; block < kBlocks; ++block) {
    const uint4 zero = make_uint4(0, 0, 0, 0);
    const uint4 x = low == nullptr ? zero : *reinterpret_cast<const uint4*>(low + block * 32);
    const uint4 y = high == nullptr ? zero : *reinterpret_cast<const uint4*>(high + block * 32);
#pragma unroll
    for (int32_t t = 0; t < kTiles; ++t) {
      const uint4 w = *reinterpret_cast<const uint4*>(b + 8 * t * b_stride + block * 32);
      mma(c[t], x.x, y.x, x.y, y.y, w.x, w.y);
      mma(c[t], x.z, y.z, x.w, y.w, w.z, w.w);
    }
  }
}

/// Grid (heads, latents / 128, tokens / 16): a warp gives 16 latents of 16 tokens.
__global__ void __launch_bounds__(kThreads) absorb_kernel(DecodeParams p) {
  const int64_t head = blockIdx.x;
  const int32_t first = static_cast<int32_t>(blockIdx.z) * 16;
  const int32_t lane = threadIdx.x % 32;
  const int32_t g = lane / 4;
  const int32_t i = lane % 4;
  const int32_t column = static_cast<int32_t>(blockIdx.y) * 128 + threadIdx.x / 32 * 16;
  const uint16_t* rows[2];
#pragma unroll
  for (int32_t half = 0; half < 2; ++half) {
    const int32_t index = first + g + 8 * half;
    rows[half] =
        index < p.tokens.count
            ? p.q + (token_of(p.tokens, index) * static_cast<int64_t>(p.heads) + head) * kHeadDim +
                  8 * i
            : nullptr;
  }
  float c[2][4] = {};
  const uint16_t* weight = p.key_weight + (head * kLatents + column + g) * kNope + 8 * i;
  multiply<kNope / 32, 2>(c, rows[0], rows[1], weight, kNope);
#pragma unroll
  for (int32_t half = 0; half < 2; ++half) {
    const int32_t index = first + g + 8 * half;
    if (index < p.tokens.count) {
      uint16_t* out = p.absorbed + (static_cast<int64_t>(index) * p.heads + head) * kWidth;
#pragma unroll
      for (int32_t t = 0; t < 2; ++t) {
        *reinterpret_cast<uint32_t*>(out + column + 8 * t + 2 * i) =
            f32_to_bf16x2(c[t][2 * half], c[t][2 * half + 1]);
      }
    }
  }
  // The rope part, 8 chunks a token.
  if (blockIdx.y == 0 && threadIdx.x < 128) {
    const int32_t index = first + static_cast<int32_t>(threadIdx.x) / 8;
    const int32_t chunk = static_cast<int32_t>(threadIdx.x) % 8 * 8;
    if (index < p.tokens.count) {
      const int64_t row = token_of(p.tokens, index) * static_cast<int64_t>(p.heads) + head;
      const int64_t to = static_cast<int64_t>(index) * p.heads + head;
      *reinterpret_cast<uint4*>(p.absorbed + to * kWidth + kLatents + chunk) =
          *reinterpret_cast<const uint4*>(p.q + row * kHeadDim + kNope + chunk);
    }
  }
}

/// Shared memory of the split kernel for kTiles * 8 heads.
template <int32_t kTiles>
struct SplitShared {
  alignas(128) std::byte stages[2][kStageBytes];
  float scores[kParts][kTiles * 8][kScoreStride];
  uint16_t weights[kTiles * 8][kWeightStride];
  float keep[kTiles * 8];
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

/// A part of S^T = K q~^T for 16 tokens; the warp's queries are in registers.
template <int32_t kTiles>
__device__ inline void scores_of(uint32_t stage,
                                 const uint32_t (&q)[kStepsPerPart][kTiles][2],
                                 int32_t token,
                                 int32_t part,
                                 SplitShared<kTiles>& s) {
  const int32_t lane = threadIdx.x % 32;
  float c[kTiles][4] = {};
#pragma unroll
  for (int32_t step = 0; step < kStepsPerPart; ++step) {
    uint32_t a[4];
    const int32_t chunk = (part * kStepsPerPart + step) * 2 + lane / 16;
    load_matrices(a, stage + swizzled(token + lane % 16, chunk, kRowBytes));
#pragma unroll
    for (int32_t t = 0; t < kTiles; ++t) {
      mma(c[t], a[0], a[1], a[2], a[3], q[step][t][0], q[step][t][1]);
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

/// The warp's part of the queries, as B fragments; heads past the last are zeros.
template <int32_t kTiles>
__device__ inline void load_queries(const DecodeParams& p,
                                    int32_t first_head,
                                    int32_t part,
                                    uint32_t (&q)[kStepsPerPart][kTiles][2]) {
  const int32_t g = threadIdx.x % 32 / 4;
  const int32_t i = threadIdx.x % 4;
#pragma unroll
  for (int32_t t = 0; t < kTiles; ++t) {
    const int32_t head = first_head + 8 * t + g;
    const uint16_t* source = p.absorbed +
                             (static_cast<int64_t>(blockIdx.y) * p.heads + head) * kWidth +
                             part * kStepsPerPart * 16 + 2 * i;
#pragma unroll
    for (int32_t step = 0; step < kStepsPerPart; ++step) {
      const bool valid = head < p.heads;
      q[step][t][0] = valid ? *reinterpret_cast<const uint32_t*>(source + step * 16) : 0;
      q[step][t][1] = valid ? *reinterpret_cast<const uint32_t*>(source + step * 16 + 8) : 0;
    }
  }
}

/// What a thread carries from stage to stage: its part of O^T, and the softmax of its warp's heads.
template <int32_t kTiles>
struct Running {
  float out[4][kTiles][4];
  float max[kTiles];
  float total[kTiles];
};

/// Scores become weights: warp w has heads w + 8 t, lane l token l of the stage.
template <int32_t kTiles>
__device__ inline void weigh_stage(int32_t num_valid,
                                   float scale,
                                   Running<kTiles>& running,
                                   SplitShared<kTiles>& s) {
  const int32_t lane = threadIdx.x % 32;
#pragma unroll
  for (int32_t t = 0; t < kTiles; ++t) {
    const int32_t column = 8 * t + static_cast<int32_t>(threadIdx.x) / 32;
    float score = s.scores[0][column][lane] + s.scores[1][column][lane];
    score += s.scores[2][column][lane] + s.scores[3][column][lane];
    score = lane < num_valid ? score * scale : -INFINITY;
    const float new_max = fmaxf(running.max[t], warp_max(score));
    const float weight = exp2f(score - new_max);
    const float keep = exp2f(running.max[t] - new_max);
    running.total[t] = running.total[t] * keep + warp_sum(weight);
    running.max[t] = new_max;
    s.weights[column][lane] = f32_to_bf16_bits(weight);
    if (lane == 0) {
      s.keep[column] = keep;
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
  const int64_t slot = static_cast<int64_t>(blockIdx.y) * p.most_splits + blockIdx.x;
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

/// Grid (splits, tokens, groups of heads). BF16 pages are two stages ahead in shared memory. FP8
/// codes are one stage ahead in registers, and leave them when the stage before has been used.
template <int32_t kTiles, bool kFp8>
__global__ void __launch_bounds__(kThreads, 2) split_kernel(DecodeParams p) {
  extern __shared__ __align__(128) std::byte memory[];
  auto& s = *reinterpret_cast<SplitShared<kTiles>*>(memory);
  const int32_t token = token_of(p.tokens, blockIdx.y);
  const int32_t length = p.step.positions[token] + 1;
  const int32_t begin = split_begin(length, blockIdx.x);
  const int32_t end = split_begin(length, blockIdx.x + 1);
  if (begin >= end) {
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
  uint32_t q[kStepsPerPart][kTiles][2];
  load_queries<kTiles>(p, first_head, warp / 2, q);
  Running<kTiles> running = {};
#pragma unroll
  for (int32_t t = 0; t < kTiles; ++t) {
    running.max[t] = -INFINITY;
  }
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
    scores_of<kTiles>(stage, q, warp % 2 * 16, warp / 2, s);
    __syncthreads();
    weigh_stage<kTiles>(end - first, p.scale * kLog2e, running, s);
    __syncthreads();
    accumulate_stage<kTiles>(stage, running, s);
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
  store_split<kTiles>(p, first_head, running);
}

/// Latents of one (token, head) from its splits, two a thread; zeros without any.
__device__ float2 merge_splits(const DecodeParams& p, int64_t index, int64_t head, int32_t splits) {
  if (splits == 0) {
    return make_float2(0.0F, 0.0F);
  }
  const int64_t slot = index * p.most_splits;
  float max = -INFINITY;
  for (int32_t i = 0; i < splits; ++i) {
    max = fmaxf(max, p.stats[(slot + i) * p.heads + head].x);
  }
  float total = 0.0F;
  float2 sum = make_float2(0.0F, 0.0F);
#pragma unroll 4
  for (int32_t i = 0; i < splits; ++i) {
    const int64_t at = (slot + i) * p.heads + head;
    const float2 stats = p.stats[at];
    const float weight = exp2f(stats.x - max);
    const float2 part =
        *reinterpret_cast<const float2*>(p.partial + at * kLatents + 2 * threadIdx.x);
    total += stats.y * weight;
    sum.x += part.x * weight;
    sum.y += part.y * weight;
  }
  return make_float2(sum.x / total, sum.y / total);
}

/// Grid (heads, tokens / 16): a warp gives 16 values of 16 tokens.
__global__ void __launch_bounds__(kThreads) merge_kernel(DecodeParams p) {
  __shared__ alignas(16) uint16_t latents[kMergeRows][kMergeStride];
  __shared__ float amax[kWarps][kMergeRows];
  const int64_t head = blockIdx.x;
  const int32_t first = static_cast<int32_t>(blockIdx.y) * kMergeRows;
  for (int32_t r = 0; r < kMergeRows; ++r) {
    float2 pair = make_float2(0.0F, 0.0F);
    if (first + r < p.tokens.count) {
      const int32_t token = token_of(p.tokens, first + r);
      pair = merge_splits(p, first + r, head, splits_of(p.step.positions[token] + 1));
    }
    *reinterpret_cast<uint32_t*>(&latents[r][2 * threadIdx.x]) = f32_to_bf16x2(pair.x, pair.y);
  }
  __syncthreads();
  const int32_t lane = threadIdx.x % 32;
  const int32_t warp = threadIdx.x / 32;
  const int32_t g = lane / 4;
  const int32_t i = lane % 4;
  const int32_t column = warp * 16;
  float c[2][4] = {};
  const uint16_t* weight = p.kv_b + (head * kSlab + kNope + column + g) * kLatents + 8 * i;
  multiply<kLatents / 32, 2>(c, &latents[g][8 * i], &latents[g + 8][8 * i], weight, kLatents);
  float scale[2] = {1.0F, 1.0F};
  if (p.out.format == ActFormat::e4m3) {
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      float largest = fmaxf(fmaxf(fabsf(c[0][2 * half]), fabsf(c[0][2 * half + 1])),
                            fmaxf(fabsf(c[1][2 * half]), fabsf(c[1][2 * half + 1])));
      largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, 2));
      if (i == 0) {
        amax[warp][g + 8 * half] = largest;
      }
    }
    __syncthreads();
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      float largest = 0.0F;
#pragma unroll
      for (int32_t w = 0; w < kWarps; ++w) {
        largest = fmaxf(largest, amax[w][g + 8 * half]);
      }
      scale[half] = scale_of_amax(largest);
    }
  }
#pragma unroll
  for (int32_t half = 0; half < 2; ++half) {
    const int32_t index = first + g + 8 * half;
    if (index >= p.tokens.count) {
      continue;
    }
    const int64_t token = token_of(p.tokens, index);
    if (p.out.format == ActFormat::e4m3 && warp == 0 && i == 0) {
      store_scale(p.out, token, head, scale[half]);
    }
#pragma unroll
    for (int32_t t = 0; t < 2; ++t) {
      const int64_t at = head * kValue + column + 8 * t + 2 * i;
      store_act(p.out, token, at, c[t][2 * half], scale[half]);
      store_act(p.out, token, at + 1, c[t][2 * half + 1], scale[half]);
    }
  }
}

template <int32_t kTiles, bool kFp8>
void launch_split(const DecodeParams& p, cudaStream_t stream) {
  constexpr int32_t kHeads = kTiles * 8;
  const auto bytes = static_cast<int32_t>(sizeof(SplitShared<kTiles>));
  // Idempotent, and no work of the stream: legal while a graph is captured.
  (void)cudaFuncSetAttribute(
      split_kernel<kTiles, kFp8>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  const dim3 grid(static_cast<uint32_t>(p.most_splits),
                  static_cast<uint32_t>(p.tokens.count),
                  static_cast<uint32_t>((p.heads + kHeads - 1) / kHeads));
  split_kernel<kTiles, kFp8><<<grid, kThreads, static_cast<size_t>(bytes), stream>>>(p);
}

}  // namespace

int64_t decode_bytes_per_token(int32_t heads, int32_t most_splits) {
  const int64_t absorbed = static_cast<int64_t>(heads) * kWidth * 2;
  const int64_t partial = static_cast<int64_t>(most_splits) * heads * (kLatents * 4 + 8);
  return absorbed + partial;
}

void launch_decode(const DecodeParams& p, cudaStream_t stream) {
  const auto heads = static_cast<uint32_t>(p.heads);
  const auto tiles = static_cast<uint32_t>((p.tokens.count + 15) / 16);
  absorb_kernel<<<dim3(heads, kLatents / 128, tiles), kThreads, 0, stream>>>(p);
  const bool is_fp8 = p.step.kv_type == DType::f8_e4m3;
  if (p.heads <= 8) {
    is_fp8 ? launch_split<1, true>(p, stream) : launch_split<1, false>(p, stream);
  } else {
    is_fp8 ? launch_split<2, true>(p, stream) : launch_split<2, false>(p, stream);
  }
  merge_kernel<<<dim3(heads, tiles), kThreads, 0, stream>>>(p);
}

}  // namespace hadal::cuda
