// The ends of the absorbed form: absorb, q~ = (W_UK^T q_nope, q_pe) per head, and merge, which
// joins the parts of attention_decode.cu in a fixed order, projects with W_UV and stores in out's
// format.
//
// Products of a head with its weights read 16 bytes a lane straight from memory: the order of a
// contraction is free, so lane i of four takes features 8 i to 8 i + 7 of every 32, as two steps of
// the instruction, of both operands alike. Weights are read before the kernel waits for the one
// before it.
#include "attention.h"
#include "attention_fold.cuh"
#include "device_math.cuh"
#include "launch.cuh"
#include "mma.cuh"

namespace hadal::cuda {

namespace {

/// Sixteen rows of weights as two B tiles, over kBlocks * 32 features.
template <int32_t kBlocks>
struct WeightFragments {
  uint4 at[kBlocks][2];

  /// `weight` is the lane's row g of tile 0 at feature 8 i.
  __device__ void load(const uint16_t* weight, int64_t stride) {
#pragma unroll
    for (int32_t block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int32_t t = 0; t < 2; ++t) {
        at[block][t] = *reinterpret_cast<const uint4*>(weight + 8 * t * stride + block * 32);
      }
    }
  }

  /// c[t] += 16 rows times the tiles. `low` and `high` are the lane's rows g and g + 8 at feature
  /// 8 i (null = zeros).
  __device__ void multiply(float (&c)[2][4], const uint16_t* low, const uint16_t* high) const {
#pragma unroll
    for (int32_t block = 0; block < kBlocks; ++block) {
      const uint4 zero = make_uint4(0, 0, 0, 0);
      const uint4 x = low == nullptr ? zero : *reinterpret_cast<const uint4*>(low + block * 32);
      const uint4 y = high == nullptr ? zero : *reinterpret_cast<const uint4*>(high + block * 32);
#pragma unroll
      for (int32_t t = 0; t < 2; ++t) {
        const uint4 w = at[block][t];
        mma(c[t], x.x, y.x, x.y, y.y, w.x, w.y);
        mma(c[t], x.z, y.z, x.w, y.w, w.z, w.w);
      }
    }
  }
};

// ---- absorb -------------------------------------------------------------------------------------

constexpr int32_t kAbsorbThreads = 128;
constexpr int32_t kAbsorbLatents = kAbsorbThreads / 32 * 16;
constexpr int32_t kAbsorbTokens = 16;
static_assert(kAbsorbThreads == kAbsorbTokens * kRope / 8);

/// Grid (heads, latents / 64, tokens / 16): a warp gives 16 latents of 16 tokens. The next kernel
/// may start only when what came before this one has ended: it reads the cache before it waits.
__global__ void __launch_bounds__(kAbsorbThreads) absorb_kernel(DecodeParams p) {
  const int64_t head = blockIdx.x;
  const int32_t first = static_cast<int32_t>(blockIdx.z) * kAbsorbTokens;
  const int32_t lane = threadIdx.x % 32;
  const int32_t g = lane / 4;
  const int32_t i = lane % 4;
  const auto warp = static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t column = static_cast<int32_t>(blockIdx.y) * kAbsorbLatents + warp * 16;
  WeightFragments<kNope / 32> weights;
  weights.load(p.key_weight + (head * kLatents + column + g) * kNope + 8 * i, kNope);
  wait_for_previous();
  let_next_start();
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
  weights.multiply(c, rows[0], rows[1]);
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
  if (blockIdx.y == 0) {
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

// ---- merge --------------------------------------------------------------------------------------

constexpr int32_t kMergeThreads = 512;
constexpr int32_t kMergeLanes = kLatents / 4;                  ///< of a row, four latents each
constexpr int32_t kMergeGroups = kMergeThreads / kMergeLanes;  ///< that share its splits
constexpr int32_t kMergeStride = kLatents + 32;                ///< bf16
constexpr int32_t kColumnWarps = kValue / 16;
constexpr int32_t kDepthParts = kMergeThreads / 32 / kColumnWarps;  ///< of W_UV's contraction
constexpr int32_t kDepth = kLatents / kDepthParts;
constexpr int32_t kSplitsPerLane = kMostSplits / 32;
constexpr int32_t kManyRows = 4;
static_assert(kMergeThreads == kLatents && kDepthParts == 2 && kMostSplits % 32 == 0);

/// Of kRows tokens of one head; cut by page, of one.
template <int32_t kRows, bool kByPage>
struct MergeShared {
  float weights[kRows][kMostSplits];                      ///< of splits
  float2 folds[kByPage ? kMostSplits * kSplitPages : 1];  ///< of a split's sums and of a page's
  float totals[kRows];
  alignas(16) float4 sums[kRows][kMergeGroups][kMergeLanes];
  alignas(16) uint16_t latents[kRows][kMergeStride];
  float products[2][2][kColumnWarps * 32];  ///< of the second half of the latents
  float amax[kColumnWarps][kRows];
};

/// Weights of row r's splits, by one warp.
template <int32_t kRows, bool kByPage>
__device__ void weigh_splits(const DecodeParams& p,
                             int64_t index,
                             int64_t head,
                             int32_t length,
                             int32_t r,
                             MergeShared<kRows, kByPage>& s) {
  const int32_t lane = threadIdx.x % 32;
  const int32_t splits = splits_of(length);
  const int32_t pages = pages_of(length);
  const float2* stats = p.stats + index * p.most_parts * p.heads + head;
  float2 mine[kSplitsPerLane];
  float max = -INFINITY;
#pragma unroll
  for (int32_t k = 0; k < kSplitsPerLane; ++k) {
    const int32_t split = lane + 32 * k;
    mine[k] = make_float2(-INFINITY, 0.0F);
    if (split < splits) {
      if constexpr (kByPage) {
        float2 page[kSplitPages];
#pragma unroll
        for (int32_t j = 0; j < kSplitPages; ++j) {
          const int32_t part = split * kSplitPages + j;
          page[j] = part < pages ? stats[static_cast<int64_t>(part) * p.heads]
                                 : make_float2(-INFINITY, 0.0F);
        }
#pragma unroll
        for (int32_t j = 0; j < kSplitPages; ++j) {
          const int32_t part = split * kSplitPages + j;
          if (part < pages) {
            s.folds[part] = fold_stats(mine[k], page[j]);
          }
        }
      } else {
        mine[k] = stats[static_cast<int64_t>(split) * p.heads];
      }
    }
    max = fmaxf(max, mine[k].x);
  }
  max = warp_max(max);
  float total = 0.0F;
#pragma unroll
  for (int32_t k = 0; k < kSplitsPerLane; ++k) {
    const int32_t split = lane + 32 * k;
    if (split < splits) {
      const float weight = exp2f(mine[k].x - max);
      s.weights[r][split] = weight;
      total = __fmaf_rn(mine[k].y, weight, total);
    }
  }
  total = warp_sum(total);
  if (lane == 0) {
    s.totals[r] = splits > 0 ? total : 1.0F;
  }
}

/// sum += part * weight, each rounded once.
__device__ inline void add_scaled(float4& sum, const float4& part, float weight) {
  sum.x = __fmaf_rn(part.x, weight, sum.x);
  sum.y = __fmaf_rn(part.y, weight, sum.y);
  sum.z = __fmaf_rn(part.z, weight, sum.z);
  sum.w = __fmaf_rn(part.w, weight, sum.w);
}

/// Row r's splits group, group + 4 ... in order, four latents a thread.
template <int32_t kRows, bool kByPage>
__device__ void sum_splits(const DecodeParams& p,
                           int64_t index,
                           int64_t head,
                           int32_t length,
                           int32_t r,
                           MergeShared<kRows, kByPage>& s) {
  const int32_t splits = splits_of(length);
  const int32_t group = static_cast<int32_t>(threadIdx.x) / kMergeLanes;
  const int32_t quad = static_cast<int32_t>(threadIdx.x) % kMergeLanes;
  const int64_t slot = index * p.most_parts * p.heads + head;
  const float4* parts = reinterpret_cast<const float4*>(p.partial + slot * kLatents) + quad;
  const int64_t stride = static_cast<int64_t>(p.heads) * kMergeLanes;
  float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
  if constexpr (kByPage) {
    const int32_t pages = pages_of(length);
#pragma unroll 2
    for (int32_t split = group; split < splits; split += kMergeGroups) {
      float4 page[kSplitPages];
#pragma unroll
      for (int32_t j = 0; j < kSplitPages; ++j) {
        const int32_t part = split * kSplitPages + j;
        page[j] = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        if (part < pages) {
          page[j] = parts[part * stride];
        }
      }
      float4 whole = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll
      for (int32_t j = 0; j < kSplitPages; ++j) {
        const int32_t part = split * kSplitPages + j;
        if (part < pages) {
          const float2 factors = s.folds[part];
          whole.x = fold(whole.x, page[j].x, factors);
          whole.y = fold(whole.y, page[j].y, factors);
          whole.z = fold(whole.z, page[j].z, factors);
          whole.w = fold(whole.w, page[j].w, factors);
        }
      }
      add_scaled(sum, whole, s.weights[r][split]);
    }
  } else {
#pragma unroll 4
    for (int32_t split = group; split < splits; split += kMergeGroups) {
      add_scaled(sum, parts[split * stride], s.weights[r][split]);
    }
  }
  s.sums[r][group][quad] = sum;
}

/// The second eight warps' products are added to the first's.
template <int32_t kRows, bool kByPage>
__device__ void add_halves(float (&c)[2][4], MergeShared<kRows, kByPage>& s) {
  const int32_t at = threadIdx.x % (kColumnWarps * 32);
  const bool is_first = threadIdx.x < kColumnWarps * 32;
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    if (!is_first) {
      s.products[i / 2][i % 2][at] = c[i / 2][i % 2];
    }
  }
  __syncthreads();
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    if (is_first) {
      c[i / 2][i % 2] += s.products[i / 2][i % 2][at];
    }
  }
}

/// The product's rows g, which the first eight warps hold, to out.
template <int32_t kRows, bool kByPage>
__device__ void store_rows(const DecodeParams& p,
                           const float (&c)[2][4],
                           int64_t head,
                           int32_t first,
                           int32_t num_rows,
                           MergeShared<kRows, kByPage>& s) {
  const int32_t lane = threadIdx.x % 32;
  const int32_t warp = threadIdx.x / 32;
  const int32_t g = lane / 4;
  const int32_t i = lane % 4;
  const bool is_stored = warp < kColumnWarps && g < num_rows;
  float scale = 1.0F;
  if (p.out.format == ActFormat::e4m3) {
    float largest =
        fmaxf(fmaxf(fabsf(c[0][0]), fabsf(c[0][1])), fmaxf(fabsf(c[1][0]), fabsf(c[1][1])));
    largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, 2));
    if (is_stored && i == 0) {
      s.amax[warp][g] = largest;
    }
    __syncthreads();
    if (is_stored) {
      largest = 0.0F;
#pragma unroll
      for (int32_t w = 0; w < kColumnWarps; ++w) {
        largest = fmaxf(largest, s.amax[w][g]);
      }
      scale = scale_of_amax(largest);
    }
  }
  if (!is_stored) {
    return;
  }
  const int64_t token = token_of(p.tokens, first + g);
  if (p.out.format == ActFormat::e4m3 && warp == 0 && i == 0) {
    store_scale(p.out, token, head, scale);
  }
#pragma unroll
  for (int32_t t = 0; t < 2; ++t) {
    const int64_t at = head * kValue + warp * 16 + 8 * t + 2 * i;
    store_act(p.out, token, at, c[t][0], scale);
    store_act(p.out, token, at + 1, c[t][1], scale);
  }
}

/// Grid (heads, tokens / kRows): warp w gives values 16 (w % 8).. of the rows from half w / 8 of
/// the latents, and the halves are added. Where blocks are many, two share a multiprocessor rather
/// than hold their weights from the start.
template <int32_t kRows, bool kByPage>
__global__ void __launch_bounds__(kMergeThreads, kRows < kManyRows ? 1 : 2)
    merge_kernel(DecodeParams p) {
  static_assert(kRows <= 8 && (kRows == 1 || !kByPage));
  constexpr int32_t kHeld = kRows < kManyRows ? kDepth : kDepth / 4;  ///< latents of weights
  extern __shared__ __align__(16) std::byte memory[];
  auto& s = *reinterpret_cast<MergeShared<kRows, kByPage>*>(memory);
  const int64_t head = blockIdx.x;
  const int32_t first = static_cast<int32_t>(blockIdx.y) * kRows;
  const int32_t lane = threadIdx.x % 32;
  const int32_t warp = threadIdx.x / 32;
  const int32_t g = lane / 4;
  const int32_t i = lane % 4;
  const int32_t column = warp % kColumnWarps * 16;
  const int32_t depth = warp / kColumnWarps * kDepth + 8 * i;
  const uint16_t* weight = p.kv_b + (head * kSlab + kNope + column + g) * kLatents + depth;
  WeightFragments<kHeld / 32> weights;
  if constexpr (kHeld == kDepth) {
    weights.load(weight, kLatents);
  }
  wait_for_previous();
  let_next_start();
  const int32_t left = p.tokens.count - first;
  const int32_t num_rows = left < kRows ? left : kRows;
  int32_t lengths[kRows];
#pragma unroll
  for (int32_t r = 0; r < kRows; ++r) {
    lengths[r] = r < num_rows ? p.step.positions[token_of(p.tokens, first + r)] + 1 : 0;
    if (warp == r && r < num_rows) {
      weigh_splits(p, first + r, head, lengths[r], r, s);
    }
  }
  __syncthreads();
#pragma unroll
  for (int32_t r = 0; r < kRows; ++r) {
    if (r < num_rows) {
      sum_splits(p, first + r, head, lengths[r], r, s);
    }
  }
  __syncthreads();
#pragma unroll
  for (int32_t r = 0; r < kRows; ++r) {
    if (r < num_rows) {
      float sum = 0.0F;
#pragma unroll
      for (int32_t group = 0; group < kMergeGroups; ++group) {
        sum += reinterpret_cast<const float*>(s.sums[r][group])[threadIdx.x];
      }
      s.latents[r][threadIdx.x] = f32_to_bf16_bits(sum / s.totals[r]);
    }
  }
  __syncthreads();
  float c[2][4] = {};
  const uint16_t* row = &s.latents[g < num_rows ? g : 0][depth];  // others' products are not stored
#pragma unroll
  for (int32_t done = 0; done < kDepth; done += kHeld) {
    if constexpr (kHeld < kDepth) {
      weights.load(weight + done, kLatents);
    }
    weights.multiply(c, row + done, nullptr);
  }
  add_halves(c, s);
  store_rows(p, c, head, first, num_rows, s);
}

template <int32_t kRows, bool kByPage>
void launch_merge_of(const DecodeParams& p, cudaStream_t stream) {
  constexpr auto kBytes = static_cast<int32_t>(sizeof(MergeShared<kRows, kByPage>));
  // Idempotent, and no work of the stream: legal while a graph is captured.
  (void)cudaFuncSetAttribute(
      merge_kernel<kRows, kByPage>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  launch_early(merge_kernel<kRows, kByPage>,
               dim3(static_cast<uint32_t>(p.heads),
                    static_cast<uint32_t>((p.tokens.count + kRows - 1) / kRows)),
               dim3(kMergeThreads),
               static_cast<size_t>(kBytes),
               stream,
               p);
}

}  // namespace

void launch_absorb(const DecodeParams& p, cudaStream_t stream) {
  launch_early(absorb_kernel,
               dim3(static_cast<uint32_t>(p.heads),
                    kLatents / kAbsorbLatents,
                    static_cast<uint32_t>((p.tokens.count + kAbsorbTokens - 1) / kAbsorbTokens)),
               dim3(kAbsorbThreads),
               0,
               stream,
               p);
}

void launch_merge(const DecodeParams& p, cudaStream_t stream) {
  // More tokens of a block read W_UV less often; a block of one is the quickest.
  const int64_t rows = int64_t{p.tokens.count} * p.heads;
  if (p.by_page) {
    launch_merge_of<1, true>(p, stream);
  } else if (rows <= p.num_multiprocessors) {
    launch_merge_of<1, false>(p, stream);
  } else if (rows <= 2 * int64_t{p.num_multiprocessors}) {
    launch_merge_of<2, false>(p, stream);
  } else {
    launch_merge_of<kManyRows, false>(p, stream);
  }
}

}  // namespace hadal::cuda
