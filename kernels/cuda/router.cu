// The router: logits by a product, then scores, groups and the best experts, one warp a token.
#include "cuda_check.h"
#include "cuda_ops.h"
#include "device_math.cuh"
#include "product.h"

namespace hadal::cuda {

namespace {

constexpr int32_t kWarps = 4;
constexpr int32_t kMaxExperts = 1024;  ///< 32 candidates a lane

struct SelectArgs {
  const float* logits;  ///< [rows][experts]
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

/// scores[i] from logits; with noaux_tc choice[i] = scores[i] + bias[i], else the same.
__device__ void score(const SelectArgs& args, const float* logits, float* scores, float* choice) {
  const int32_t lane = threadIdx.x % 32;
  if (args.method == RouterMethod::noaux_tc) {
    for (int32_t i = lane; i < args.experts; i += 32) {
      scores[i] = __fdiv_rn(1.0F, 1.0F + expf(-logits[i]));
      choice[i] = scores[i] + args.bias[i];
    }
    __syncwarp();
    return;
  }
  float max = -INFINITY;
  for (int32_t i = lane; i < args.experts; i += 32) {
    max = fmaxf(max, logits[i]);
  }
  max = warp_max(max);
  float total = 0.0F;
  for (int32_t i = lane; i < args.experts; i += 32) {
    scores[i] = expf(logits[i] - max);
    total += scores[i];
  }
  total = warp_sum(total);
  for (int32_t i = lane; i < args.experts; i += 32) {
    scores[i] = __fdiv_rn(scores[i], total);
    choice[i] = scores[i];
  }
  __syncwarp();
}

/// Its best expert, or for noaux_tc the sum of its two best.
__device__ float group_score(RouterMethod method, const float* choice, int32_t size) {
  float first = -INFINITY;
  float second = -INFINITY;
  for (int32_t i = 0; i < size; ++i) {
    if (choice[i] > first) {
      second = first;
      first = choice[i];
    } else if (choice[i] > second) {
      second = choice[i];
    }
  }
  return method == RouterMethod::noaux_tc && size > 1 ? first + second : first;
}

/// Bit j of a lane's mask: expert 32 j + lane may be chosen.
__device__ uint32_t eligible(const SelectArgs& args, const float* choice, float* group_scores) {
  const int32_t lane = threadIdx.x % 32;
  uint32_t mask = args.method == RouterMethod::greedy ? ~0U : 0U;
  if (args.method == RouterMethod::greedy) {
    return mask;
  }
  const int32_t size = args.experts / args.groups;
  for (int32_t g = lane; g < args.groups; g += 32) {
    group_scores[g] = group_score(args.method, choice + g * size, size);
  }
  __syncwarp();
  uint32_t left = ~0U;
  for (int32_t k = 0; k < args.top_groups; ++k) {
    const int32_t group = take_best(group_scores, args.groups, left);
    for (int32_t i = lane; i < args.experts; i += 32) {
      mask |= i / size == group ? 1U << (i / 32) : 0U;
    }
  }
  return mask;
}

__global__ void __launch_bounds__(kWarps * 32) select_kernel(SelectArgs args) {
  extern __shared__ float memory[];
  const int32_t warp = threadIdx.x / 32;
  const int32_t lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (row >= args.rows) {
    return;
  }
  int32_t* ids = args.ids + row * args.id_stride;
  float* weights = args.weights + row * args.weight_stride;
  if (args.positions != nullptr && args.positions[row] < 0) {
    for (int32_t k = lane; k < args.top_k; k += 32) {
      ids[k] = -1;
      weights[k] = 0.0F;
    }
    return;
  }
  float* scores = memory + static_cast<int64_t>(warp) * args.experts * 3;
  float* choice = scores + args.experts;
  float* group_scores = choice + args.experts;
  score(args, args.logits + row * args.experts, scores, choice);
  uint32_t mask = eligible(args, choice, group_scores);
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
  float* logits = workspace_.take<float>(static_cast<int64_t>(rows) * experts);
  product.out.data = reinterpret_cast<std::byte*>(logits);
  product.out.stride = experts;
  run_product(product, false, handle);
  SelectArgs select{};
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
  const size_t shared_bytes = static_cast<size_t>(kWarps) * static_cast<size_t>(experts) * 3 * 4;
  if (rows > 0) {
    const auto blocks = static_cast<uint32_t>((rows + kWarps - 1) / kWarps);
    select_kernel<<<blocks, kWarps * 32, shared_bytes, handle>>>(select);
  }
  end("router", handle);
}

}  // namespace hadal::cuda
