// The two products over chosen experts.
//
// moe_down writes every slot's product to the workspace in float32 and then sums a token's slots in
// slot order, tokens in chunks that the workspace holds; a chunk's size changes no bit.
#include <algorithm>

#include "cuda_ops.h"
#include "device_math.cuh"
#include "product.h"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kMaxChunkTokens = 512;

struct ReduceArgs {
  const float* products;  ///< [tokens * slots][hidden] of this chunk
  const int32_t* expert_ids;
  const float* expert_weights;
  int64_t id_stride;
  int64_t weight_stride;
  int32_t top_k;
  int32_t slots;
  int32_t first_expert;
  int32_t num_experts;
  int32_t token_begin;
  int32_t hidden;
  PlainMatrix out;
};

__global__ void __launch_bounds__(kThreads) reduce_kernel(ReduceArgs args) {
  const int32_t column = static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x);
  if (column >= args.hidden) {
    return;
  }
  const int64_t token = args.token_begin + static_cast<int64_t>(blockIdx.y);
  const int32_t* ids = args.expert_ids + token * args.id_stride;
  const float* weights = args.expert_weights + token * args.weight_stride;
  const float* products =
      args.products + static_cast<int64_t>(blockIdx.y) * args.slots * args.hidden + column;
  float sum = 0.0F;
  for (int32_t slot = 0; slot < args.slots; ++slot) {
    const bool is_shared = slot == args.top_k;
    const int32_t local = is_shared ? 0 : ids[slot] - args.first_expert;
    if (local >= 0 && local < args.num_experts) {
      const float factor = is_shared ? 1.0F : weights[slot];
      sum = fmaf(factor, products[static_cast<int64_t>(slot) * args.hidden], sum);
    }
  }
  store_plain(args.out, token, column, sum);
}

}  // namespace

void CudaOps::moe_gate_up(const MoeGateUpArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("moe_gate_up", check(args), stream);
  const auto num_tokens = static_cast<int32_t>(args.expert_ids.shape[0]);
  const bool has_shared = args.shared != nullptr;
  ProductArgs product;
  product.x = act_matrix(args.x);
  product.weight = cuda_weight(args.experts).matrix;
  product.num_experts = args.experts->num_experts();
  if (has_shared) {
    product.shared = cuda_weight(args.shared).matrix;
  }
  product.x_divisor = static_cast<int32_t>(args.expert_ids.shape[1]) + (has_shared ? 1 : 0);
  product.out = act_matrix(args.inner);
  product.out_columns = static_cast<int32_t>(args.experts->out_features());
  if (num_tokens > 0) {
    run_expert_product(
        product, true, {args.expert_ids, args.first_expert, has_shared, 0, num_tokens}, handle);
  }
  end("moe_gate_up", handle);
}

void CudaOps::moe_down(const MoeDownArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("moe_down", check(args), stream);
  const auto num_tokens = static_cast<int32_t>(args.expert_ids.shape[0]);
  const bool has_shared = args.shared != nullptr;
  const auto top_k = static_cast<int32_t>(args.expert_ids.shape[1]);
  const int32_t slots = top_k + (has_shared ? 1 : 0);
  const auto hidden = static_cast<int32_t>(args.experts->out_features());
  // The lists of a chunk take far less than an eighth.
  const int64_t token_bytes = static_cast<int64_t>(slots) * hidden * int64_t{sizeof(float)};
  const int64_t fitting = workspace_.free_bytes() / 8 * 7 / token_bytes;
  const auto chunk = static_cast<int32_t>(
      std::clamp<int64_t>(fitting, 1, std::min(kMaxChunkTokens, std::max(num_tokens, 1))));
  ProductArgs product;
  product.x = act_matrix(args.inner);
  product.weight = cuda_weight(args.experts).matrix;
  product.num_experts = args.experts->num_experts();
  if (has_shared) {
    product.shared = cuda_weight(args.shared).matrix;
  }
  product.out_columns = hidden;
  for (int32_t token = 0; token < num_tokens; token += chunk) {
    const int32_t count = std::min(chunk, num_tokens - token);
    workspace_.reset();
    float* products = workspace_.take<float>(static_cast<int64_t>(count) * slots * hidden);
    product.out.data = reinterpret_cast<std::byte*>(products);
    product.out.stride = hidden;
    product.out.format = ActFormat::f32;
    product.out_row_begin = token * slots;
    run_expert_product(
        product, false, {args.expert_ids, args.first_expert, has_shared, token, count}, handle);
    const ReduceArgs reduce{products,
                            args.expert_ids.as<int32_t>(),
                            args.expert_weights.as<float>(),
                            args.expert_ids.strides[0],
                            args.expert_weights.strides[0],
                            top_k,
                            slots,
                            args.first_expert,
                            product.num_experts,
                            token,
                            hidden,
                            plain_matrix(args.out)};
    const dim3 blocks(static_cast<uint32_t>((hidden + kThreads - 1) / kThreads),
                      static_cast<uint32_t>(count));
    reduce_kernel<<<blocks, kThreads, 0, handle>>>(reduce);
  }
  end("moe_down", handle);
}

}  // namespace hadal::cuda
