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

constexpr int32_t kWarps = 8;
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

/// Larger for better scores: NaN comes below -inf, and 0 is no candidate.
__device__ uint32_t rank_of(float score) {
  if (isnan(score)) {
    return 1;
  }
  const uint32_t bits = __float_as_uint(score + 0.0F);  // one zero
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
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

/// Whether group g is among the best: ties go to the lower one.
__device__ bool is_chosen_group(const SelectArgs& args, const float* group_scores, int32_t g) {
  const uint32_t mine = rank_of(group_scores[g]);
  int32_t better = 0;
  for (int32_t other = 0; other < args.groups; ++other) {
    const uint32_t rank = rank_of(group_scores[other]);
    better += rank > mine || (rank == mine && other < g) ? 1 : 0;
  }
  return better < args.top_groups;
}

/// A row's shared memory.
struct SelectMemory {
  float* scores;       ///< [experts]
  float* choice;       ///< [experts]
  float* groups;       ///< [groups]
  uint32_t* ranks;     ///< [experts]
  int32_t* best_ids;   ///< [top_k]
  float* best_scores;  ///< [top_k]

  __device__ SelectMemory(float* memory, const SelectArgs& args) {
    scores = memory;
    choice = scores + args.experts;
    groups = choice + args.experts;
    ranks = reinterpret_cast<uint32_t*>(groups + args.groups);
    best_ids = reinterpret_cast<int32_t*>(ranks + args.experts);
    best_scores = reinterpret_cast<float*>(best_ids + args.top_k);
  }

  static size_t bytes(const SelectArgs& args) {
    return sizeof(float) * static_cast<size_t>(3 * args.experts + args.groups + 2 * args.top_k);
  }
};

/// The best experts of a row, one warp; expert 32 j + lane is a lane's j-th. Ties go to the lower.
template <int32_t kPerLane>
__device__ void choose(const SelectArgs& args, int64_t row, const SelectMemory& memory) {
  const int32_t lane = threadIdx.x;
  uint32_t ranks[kPerLane];
#pragma unroll
  for (int32_t j = 0; j < kPerLane; ++j) {
    const int32_t id = 32 * j + lane;
    ranks[j] = id < args.experts ? memory.ranks[id] : 0;
  }
  float total = 0.0F;
  for (int32_t k = 0; k < args.top_k; ++k) {
    uint32_t best = 0;
    int32_t at = 0;
#pragma unroll
    for (int32_t j = 0; j < kPerLane; ++j) {
      if (ranks[j] > best) {
        best = ranks[j];
        at = j;
      }
    }
    const uint32_t rank = __reduce_max_sync(kFullMask, best);
    const uint32_t mine = best == rank ? static_cast<uint32_t>(32 * at + lane) : ~0U;
    const auto id = static_cast<int32_t>(__reduce_min_sync(kFullMask, mine));
#pragma unroll
    for (int32_t j = 0; j < kPerLane; ++j) {
      ranks[j] = 32 * j + lane == id ? 0 : ranks[j];
    }
    const float score = memory.scores[id];
    total += score;
    if (lane == 0) {
      memory.best_ids[k] = id;
      memory.best_scores[k] = score;
    }
  }
  __syncwarp();
  for (int32_t k = lane; k < args.top_k; k += 32) {
    const float score = memory.best_scores[k];
    const float weight = args.norm ? __fdiv_rn(score, total + 1e-20F) : score;
    args.ids[row * args.id_stride + k] = memory.best_ids[k];
    args.weights[row * args.weight_stride + k] = weight * args.factor;
  }
}

template <int32_t kPerLane>
__global__ void __launch_bounds__(kWarps * 32) select_kernel(SelectArgs args) {
  extern __shared__ float shared[];
  const SelectMemory memory(shared, args);
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
  const int64_t block_stride = static_cast<int64_t>(args.rows) * args.experts;
  for (int32_t i = threadIdx.x; i < args.experts; i += kWarps * 32) {
    const float* from = args.logits + row * args.experts + i;
    float logit = 0.0F;
#pragma unroll 16
    for (int32_t block = 0; block < args.blocks; ++block) {
      logit = __fadd_rn(logit, from[block * block_stride]);
    }
    memory.scores[i] = logit;
  }
  __syncthreads();
  score(args, memory.scores, memory.choice);
  __syncthreads();
  const bool is_grouped = args.method != RouterMethod::greedy;
  const int32_t size = args.experts / args.groups;
  if (is_grouped) {
    for (int32_t g = threadIdx.x / 32; g < args.groups; g += kWarps) {
      const float value = group_score(args.method, memory.choice + g * size, size);
      if (threadIdx.x % 32 == 0) {
        memory.groups[g] = value;
      }
    }
    __syncthreads();
  }
  for (int32_t i = threadIdx.x; i < args.experts; i += kWarps * 32) {
    const bool may = !is_grouped || is_chosen_group(args, memory.groups, i / size);
    memory.ranks[i] = may ? rank_of(memory.choice[i]) : 0;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    choose<kPerLane>(args, row, memory);
  }
}

void launch_select(const SelectArgs& args, cudaStream_t stream) {
  const int32_t per_lane = (args.experts + 31) / 32;
  const auto kernel = per_lane <= 2   ? select_kernel<2>
                      : per_lane <= 8 ? select_kernel<8>
                                      : select_kernel<kMaxExperts / 32>;
  launch_early(kernel,
               dim3(static_cast<uint32_t>(args.rows)),
               dim3(kWarps * 32),
               SelectMemory::bytes(args),
               stream,
               args);
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
  if (rows > 0) {
    launch_select(select, handle);
  }
  end("router", handle);
}

}  // namespace hadal::cuda
