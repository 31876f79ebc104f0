// The router: logits by a product, then scores, groups and the best experts, one block a token.
//
// Few tokens leave a product of 256 features too few blocks to read its weights at speed, so there
// every block of 128 columns is a warp's own and the selection adds the blocks: the canonical order
// of product.h, and the same bits.
#include "cuda_check.h"
#include "cuda_ops.h"
#include "device_math.cuh"
#include "launch.cuh"
#include "product_mma.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kWarps = 4;
constexpr int32_t kMaxExperts = 1024;  ///< 32 candidates a lane
constexpr int32_t kSplitRows = 64;     ///< most tokens whose blocks are summed apart
constexpr int32_t kSplitWarps = 8;
constexpr int32_t kSplitTokens = 8;  ///< of a block of threads

/// Products of tokens and experts, a block of 128 columns at a time.
struct SplitArgs {
  const std::byte* x;  ///< BF16 [rows][columns]
  const std::byte* weight;
  float* sums;  ///< [blocks][rows][experts]
  int64_t x_row_bytes;
  int64_t weight_row_bytes;
  int32_t rows;
  int32_t experts;
  int32_t columns;
  int32_t blocks;
};

/// The block's chunks of one row; zeros beyond the row's end and for a row that is not there.
__device__ void load_chunks(const std::byte* row, int32_t begin, int32_t end, uint4 (&chunks)[4]) {
  const int32_t t = threadIdx.x % 4;
#pragma unroll
  for (int32_t c = 0; c < 4; ++c) {
    const int32_t at = begin + weight_chunk(c, t);
    chunks[c] = row != nullptr && at < end ? *reinterpret_cast<const uint4*>(row + at)
                                           : make_uint4(0, 0, 0, 0);
  }
}

/// A warp: 16 experts, 8 tokens, one block.
__global__ void __launch_bounds__(kSplitWarps * 32) split_kernel(SplitArgs args) {
  constexpr ProductMode kMode = ProductMode::bf16;
  let_next_start();
  const int32_t block =
      static_cast<int32_t>(blockIdx.y) * kSplitWarps + static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t g = threadIdx.x % 32 / 4;
  const int32_t t = threadIdx.x % 4;
  const int32_t expert = static_cast<int32_t>(blockIdx.x) * 16 + g;
  const int32_t token = static_cast<int32_t>(blockIdx.z) * kSplitTokens;
  const int32_t begin = block * kBlockK * 2;
  const int32_t end = block < args.blocks ? args.columns * 2 : 0;
  uint4 w[2][4];
#pragma unroll
  for (int32_t half = 0; half < 2; ++half) {
    const int32_t row = expert + half * 8;
    load_chunks(row < args.experts ? args.weight + row * args.weight_row_bytes : nullptr,
                begin,
                end,
                w[half]);
  }
  wait_for_previous();
  if (block >= args.blocks) {
    return;
  }
  uint4 x[4];
  load_chunks(token + g < args.rows ? args.x + (token + g) * args.x_row_bytes : nullptr,
              begin,
              end,
              x);
  float sum[4] = {};
#pragma unroll
  for (int32_t s = 0; s < kSteps; ++s) {
    uint32_t a[4];
    uint32_t b[2];
    weight_words<kMode>(w[0], s, a[0], a[2]);
    weight_words<kMode>(w[1], s, a[1], a[3]);
    x_words<kMode>(x, s, b[0], b[1]);
    mma<kMode>(sum, a, b[0], b[1]);
  }
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    const int32_t row = token + 2 * t + i % 2;
    const int32_t column = expert + i / 2 * 8;
    if (row < args.rows && column < args.experts) {
      args.sums[(static_cast<int64_t>(block) * args.rows + row) * args.experts + column] = sum[i];
    }
  }
}

struct SelectArgs {
  const float* logits;  ///< [blocks][rows][experts], to be added in this order
  int32_t blocks;
  const float* bias;
  const int32_t* positions;  ///< null = every row chooses
  int32_t* ids;
  float* weights;
  int64_t id_stride;
  int64_t weight_stride;
  int32_t rows;
  int32_t experts;
  int32_t top_k;
  int32_t groups;
  int32_t top_groups;
  float factor;
  RouterMethod method;
  bool norm;
};

/// NaN is the lowest score, below -inf; ties go to the lower id. An id < 0 is no candidate.
__device__ bool is_better(float a, int32_t a_id, float b, int32_t b_id) {
  if (a_id < 0 || b_id < 0) {
    return b_id < 0 && a_id >= 0;
  }
  if (isnan(a) || isnan(b)) {
    return isnan(a) == isnan(b) ? a_id < b_id : isnan(b);
  }
  return a > b || (a == b && a_id < b_id);
}

/// The best of scores[i] whose bit i / 32 is set in the mask of lane i % 32; all lanes get its id,
/// or -1. Its bit is cleared.
__device__ int32_t take_best(const float* scores, int32_t size, uint32_t& mask) {
  const int32_t lane = threadIdx.x % 32;
  float best = 0.0F;
  int32_t id = -1;
  for (int32_t i = lane; i < size; i += 32) {
    if ((mask >> (i / 32) & 1U) != 0 && is_better(scores[i], i, best, id)) {
      best = scores[i];
      id = i;
    }
  }
#pragma unroll
  for (int32_t offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kFullMask, best, offset);
    const int32_t other_id = __shfl_xor_sync(kFullMask, id, offset);
    if (is_better(other, other_id, best, id)) {
      best = other;
      id = other_id;
    }
  }
  if (id >= 0 && id % 32 == lane) {
    mask &= ~(1U << (id / 32));
  }
  return id;
}

/// scores[i] from their logits in place; with noaux_tc choice[i] = scores[i] + bias[i], else the
/// same. All threads of the block.
__device__ void score(const SelectArgs& args, float* scores, float* choice) {
  if (args.method == RouterMethod::noaux_tc) {
    for (int32_t i = threadIdx.x; i < args.experts; i += kWarps * 32) {
      scores[i] = __fdiv_rn(1.0F, 1.0F + expf(-scores[i]));
      choice[i] = scores[i] + args.bias[i];
    }
    return;
  }
  if (threadIdx.x >= 32) {
    return;
  }
  const int32_t lane = threadIdx.x;
  float max = -INFINITY;
  for (int32_t i = lane; i < args.experts; i += 32) {
    max = fmaxf(max, scores[i]);
  }
  max = warp_max(max);
  float total = 0.0F;
  for (int32_t i = lane; i < args.experts; i += 32) {
    scores[i] = expf(scores[i] - max);
    total += scores[i];
  }
  total = warp_sum(total);
  for (int32_t i = lane; i < args.experts; i += 32) {
    scores[i] = __fdiv_rn(scores[i], total);
    choice[i] = scores[i];
  }
}

/// Its best expert, or for noaux_tc the sum of its two best; one warp.
__device__ float group_score(RouterMethod method, const float* choice, int32_t size) {
  float first = -INFINITY;
  float second = -INFINITY;
  for (int32_t i = threadIdx.x % 32; i < size; i += 32) {
    if (choice[i] > first) {
      second = first;
      first = choice[i];
    } else if (choice[i] > second) {
      second = choice[i];
    }
  }
#pragma unroll
  for (int32_t offset = 16; offset > 0; offset /= 2) {
    const float other_first = __shfl_xor_sync(kFullMask, first, offset);
    const float other_second = __shfl_xor_sync(kFullMask, second, offset);
    second = fmaxf(fminf(first, other_first), fmaxf(second, other_second));
    first = fmaxf(first, other_first);
  }
  return method == RouterMethod::noaux_tc && size > 1 ? first + second : first;
}

/// Bit j of a lane's mask: expert 32 j + lane may be chosen.
__device__ uint32_t eligible(const SelectArgs& args, const float* group_scores) {
  const int32_t lane = threadIdx.x % 32;
  if (args.method == RouterMethod::greedy) {
    return ~0U;
  }
  const int32_t size = args.experts / args.groups;
  uint32_t mask = 0;
  uint32_t left = ~0U;
  for (int32_t k = 0; k < args.top_groups; ++k) {
    const int32_t group = take_best(group_scores, args.groups, left);
    for (int32_t i = lane; i < args.experts; i += 32) {
      mask |= i / size == group ? 1U << (i / 32) : 0U;
    }
  }
  return mask;
}

/// The best experts of a row, one warp.
__device__ void choose(const SelectArgs& args,
                       int64_t row,
                       const float* scores,
                       const float* choice,
                       const float* group_scores) {
  const int32_t lane = threadIdx.x;
  int32_t* ids = args.ids + row * args.id_stride;
  float* weights = args.weights + row * args.weight_stride;
  uint32_t mask = eligible(args, group_scores);
  float total = 0.0F;
  for (int32_t k = 0; k < args.top_k; ++k) {
    const int32_t id = take_best(choice, args.experts, mask);
    total += scores[id];
    if (lane == 0) {
      ids[k] = id;
      weights[k] = scores[id];
    }
  }
  __syncwarp();
  for (int32_t k = lane; k < args.top_k; k += 32) {
    const float weight = args.norm ? __fdiv_rn(weights[k], total + 1e-20F) : weights[k];
    weights[k] = weight * args.factor;
  }
}

__global__ void __launch_bounds__(kWarps * 32) select_kernel(SelectArgs args) {
  extern __shared__ float memory[];
  const int64_t row = blockIdx.x;
  let_next_start();
  wait_for_previous();
  if (args.positions != nullptr && args.positions[row] < 0) {
    for (int32_t k = threadIdx.x; k < args.top_k; k += kWarps * 32) {
      args.ids[row * args.id_stride + k] = -1;
      args.weights[row * args.weight_stride + k] = 0.0F;
    }
    return;
  }
  float* scores = memory;
  float* choice = scores + args.experts;
  float* group_scores = choice + args.experts;
  for (int32_t i = threadIdx.x; i < args.experts; i += kWarps * 32) {
    const float* from = args.logits + row * args.experts + i;
    float logit = 0.0F;
#pragma unroll 8
    for (int32_t block = 0; block < args.blocks; ++block) {
      logit = __fadd_rn(logit, from[static_cast<int64_t>(block) * args.rows * args.experts]);
    }
    scores[i] = logit;
  }
  __syncthreads();
  score(args, scores, choice);
  __syncthreads();
  if (args.method != RouterMethod::greedy) {
    const int32_t size = args.experts / args.groups;
    for (int32_t g = threadIdx.x / 32; g < args.groups; g += kWarps) {
      const float value = group_score(args.method, choice + g * size, size);
      if (threadIdx.x % 32 == 0) {
        group_scores[g] = value;
      }
    }
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    choose(args, row, scores, choice, group_scores);
  }
}

void launch_split(const ProductArgs& product, float* sums, cudaStream_t stream) {
  if (product.num_rows == 0) {
    return;
  }
  const SplitArgs args{product.x.data,
                       product.weight.data,
                       sums,
                       product.x.stride * 2,
                       product.weight.row_bytes,
                       product.num_rows,
                       product.out_columns,
                       product.weight.columns,
                       (product.weight.columns + kBlockK - 1) / kBlockK};
  const dim3 grid(static_cast<uint32_t>((args.experts + 15) / 16),
                  static_cast<uint32_t>((args.blocks + kSplitWarps - 1) / kSplitWarps),
                  static_cast<uint32_t>((args.rows + kSplitTokens - 1) / kSplitTokens));
  launch_early(split_kernel, grid, dim3(kSplitWarps * 32), 0, stream, args);
}

}  // namespace

void CudaOps::router(const RouterArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("router", check(args), stream);
  const auto rows = static_cast<int32_t>(args.x.shape[0]);
  const auto experts = static_cast<int32_t>(args.weight->out_features());
  HADAL_CHECK(experts <= kMaxExperts, "router: more than 1024 experts");
  ProductArgs product;
  product.x = {args.x.data,
               nullptr,
               args.x.strides[0],
               0,
               0,
               args.x.dtype == DType::bf16 ? ActFormat::bf16 : ActFormat::f32};
  product.weight = cuda_weight(args.weight).matrix;
  product.num_rows = rows;
  product.out_columns = experts;
  SelectArgs select{};
  const bool is_split = rows <= kSplitRows && mode_of(product) == ProductMode::bf16;
  select.blocks = is_split ? (product.weight.columns + kBlockK - 1) / kBlockK : 1;
  float* logits = workspace_.take<float>(static_cast<int64_t>(select.blocks) * rows * experts);
  if (is_split) {
    launch_split(product, logits, handle);
  } else {
    product.out.data = reinterpret_cast<std::byte*>(logits);
    product.out.stride = experts;
    run_product(product, false, handle);
  }
  select.logits = logits;
  select.bias = args.bias.as<float>();
  select.positions = args.positions.as<int32_t>();
  select.ids = args.out_ids.as<int32_t>();
  select.weights = args.out_weights.as<float>();
  select.id_stride = args.out_ids.strides[0];
  select.weight_stride = args.out_weights.strides[0];
  select.rows = rows;
  select.experts = experts;
  select.top_k = args.top_k;
  select.groups = args.num_groups;
  select.top_groups = args.top_groups;
  select.factor = args.scaling_factor;
  select.method = args.method;
  select.norm = args.norm_top_k;
  const size_t shared_bytes = static_cast<size_t>(experts) * 3 * sizeof(float);
  if (rows > 0) {
    launch_early(select_kernel,
                 dim3(static_cast<uint32_t>(rows)),
                 dim3(kWarps * 32),
                 shared_bytes,
                 handle,
                 select);
  }
  end("router", handle);
}

}  // namespace hadal::cuda
