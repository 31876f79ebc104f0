// The two products over chosen experts.
//
// moe_down of few tokens is one kernel (moe_down_fused.cu). Of more, every slot's product goes to
// the workspace, and a second kernel sums a token's slots in slot order. Columns are cut into
// stripes whose products fit the workspace, so that every weight is read once; only a step too long
// for one narrow stripe is cut into tokens too. Neither cut changes a bit.
#include <algorithm>

#include "cuda_ops.h"
#include "device_math.cuh"
#include "launch.cuh"
#include "moe_down.h"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kStripeUnit = 256;  ///< columns of a stripe come in these
constexpr int32_t kColumns = 8;       ///< that one thread sums
constexpr int32_t kSlotsAhead = 5;    ///< whose products are loaded together

struct ReduceArgs {
  SlotArgs slots;             ///< `num_tokens` of this chunk
  const std::byte* products;  ///< [num_tokens * slots][stride] of this chunk
  int32_t stride;
  int32_t token_begin;
  int32_t column_begin;  ///< of the stripe
  int32_t columns;
};

/// kColumns neighbouring products.
struct Products {
  float values[kColumns];

  template <bool kBf16>
  __device__ void load(const std::byte* products, int64_t at) {
    if constexpr (kBf16) {
      const uint4 words =
          __ldcs(reinterpret_cast<const uint4*>(reinterpret_cast<const uint16_t*>(products) + at));
      const uint32_t all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int32_t i = 0; i < kColumns; ++i) {
        values[i] = __uint_as_float(i % 2 == 0 ? all[i / 2] << 16 : all[i / 2] & 0xffff0000U);
      }
    } else {
      const auto* from =
          reinterpret_cast<const float4*>(reinterpret_cast<const float*>(products) + at);
#pragma unroll
      for (int32_t i = 0; i < kColumns / 4; ++i) {
        const float4 four = __ldcs(from + i);
        values[i * 4] = four.x;
        values[i * 4 + 1] = four.y;
        values[i * 4 + 2] = four.z;
        values[i * 4 + 3] = four.w;
      }
    }
  }
};

/// A thread: one token, kColumns columns. Rows of products are padded to whole threads.
template <bool kBf16>
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const __grid_constant__ ReduceArgs args) {
  let_next_start();
  wait_for_previous();
  const int32_t parts = (args.columns + kColumns - 1) / kColumns;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t chunk_token = i / parts;
  if (chunk_token >= args.slots.num_tokens) {
    return;
  }
  const int32_t column = static_cast<int32_t>(i % parts) * kColumns;
  const int64_t token = args.token_begin + chunk_token;
  const int32_t* ids = args.slots.expert_ids + token * args.slots.id_stride;
  const float* weights = args.slots.expert_weights + token * args.slots.weight_stride;
  const int64_t first = chunk_token * args.slots.slots * args.stride + column;
  float sums[kColumns] = {};
  for (int32_t base = 0; base < args.slots.slots; base += kSlotsAhead) {
    Products products[kSlotsAhead];
    float factors[kSlotsAhead];
    bool is_here[kSlotsAhead];
#pragma unroll
    for (int32_t j = 0; j < kSlotsAhead; ++j) {
      const int32_t slot = base + j;
      is_here[j] = slot < args.slots.slots;
      factors[j] = 1.0F;
      if (slot < args.slots.top_k) {
        const int32_t local = ids[slot] - args.slots.first_expert;
        is_here[j] = local >= 0 && local < args.slots.num_experts;
        factors[j] = weights[slot];
      }
      if (is_here[j]) {
        products[j].load<kBf16>(args.products, first + static_cast<int64_t>(slot) * args.stride);
      }
    }
#pragma unroll
    for (int32_t j = 0; j < kSlotsAhead; ++j) {
      if (is_here[j]) {
#pragma unroll
        for (int32_t c = 0; c < kColumns; ++c) {
          sums[c] = fmaf(factors[j], products[j].values[c], sums[c]);
        }
      }
    }
  }
#pragma unroll
  for (int32_t c = 0; c < kColumns; c += 4) {
    const float quad[4] = {sums[c], sums[c + 1], sums[c + 2], sums[c + 3]};
    store_quad(args.slots.out,
               token,
               args.column_begin + column + c,
               args.column_begin + args.columns,
               quad);
  }
}

int32_t round_up(int64_t value, int64_t unit) {
  return static_cast<int32_t>((value + unit - 1) / unit * unit);
}

/// How moe_down cuts its products: `tokens` and `columns` of a part.
struct DownParts {
  int32_t tokens;
  int32_t columns;
};

DownParts cut_down(int32_t num_tokens, int32_t hidden, int64_t column_bytes, int64_t free_bytes) {
  const int32_t unit = std::min(round_up(hidden, kColumns), kStripeUnit);
  DownParts parts{};
  parts.tokens = static_cast<int32_t>(
      std::clamp<int64_t>(free_bytes / (column_bytes * unit), 1, num_tokens));
  const int64_t columns = free_bytes / (column_bytes * parts.tokens) / unit * unit;
  // Stripes of one size: the last is not left nearly empty.
  const int64_t stripes = (hidden + columns - 1) / std::max<int64_t>(columns, 1);
  parts.columns = round_up((hidden + stripes - 1) / stripes, unit);
  return parts;
}

/// The rows [begin, ...) of every expert's matrix.
void skip_rows(DeviceMatrix& matrix, int32_t begin) {
  if (matrix.data != nullptr && begin > 0) {
    matrix.data += begin * matrix.row_bytes;
    matrix.scale_rows = matrix.scale_rows != nullptr ? matrix.scale_rows + begin : nullptr;
    matrix.has_whole_blocks = false;
  }
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

void CudaOps::run_down_stripes(ProductArgs product,
                               ProductMode mode,
                               const SlotArgs& all,
                               const ChosenExperts& chosen,
                               int32_t stripe,
                               cudaStream_t stream) {
  const int32_t hidden = product.out_columns;
  const bool is_bf16 = all.out.is_bf16 && mode != ProductMode::plain;
  const bool is_short = is_bf16 && fits_short(product, mode, device_.max_shared_bytes);
  workspace_.reset();
  ExpertTiles tiles;
  if (is_short) {
    tiles = list_experts(chosen.expert_ids,
                         chosen.first_expert,
                         all.num_experts,
                         chosen.has_shared,
                         chosen.token_begin,
                         chosen.num_tokens,
                         kShortTileRows,
                         workspace_,
                         stream);
    product.tiles = tiles.tiles;
    product.entries = tiles.entries;
  }
  ReduceArgs reduce{};
  reduce.slots = all;
  reduce.slots.num_tokens = chosen.num_tokens;
  reduce.stride = round_up(stripe, kColumns);
  reduce.token_begin = chosen.token_begin;
  product.out = {};
  product.out.data = workspace_.take<std::byte>(int64_t{chosen.num_tokens} * all.slots *
                                                reduce.stride * (is_bf16 ? 2 : 4));
  product.out.stride = reduce.stride;
  product.out.format = is_bf16 ? ActFormat::bf16 : ActFormat::f32;
  product.out_row_begin = chosen.token_begin * all.slots;
  reduce.products = product.out.data;
  const int64_t mark = workspace_.mark();
  for (int32_t column = 0; column < hidden; column += stripe) {
    ProductArgs part = product;
    part.out_columns = std::min(stripe, hidden - column);
    skip_rows(part.weight, column);
    skip_rows(part.shared, column);
    workspace_.reset_to(mark);
    if (is_short) {
      launch_short_product(part, mode, tiles.grid, stream);
    } else {
      run_expert_product(part, false, chosen, stream);
    }
    reduce.column_begin = column;
    reduce.columns = part.out_columns;
    const int64_t threads =
        int64_t{chosen.num_tokens} * ((part.out_columns + kColumns - 1) / kColumns);
    launch_early(is_bf16 ? reduce_kernel<true> : reduce_kernel<false>,
                 dim3(static_cast<uint32_t>((threads + kThreads - 1) / kThreads)),
                 dim3(kThreads),
                 0,
                 stream,
                 reduce);
  }
}

void CudaOps::moe_down(const MoeDownArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("moe_down", check(args), stream);
  const auto num_tokens = static_cast<int32_t>(args.expert_ids.shape[0]);
  const bool has_shared = args.shared != nullptr;
  ProductArgs product;
  product.x = act_matrix(args.inner);
  product.weight = cuda_weight(args.experts).matrix;
  product.num_experts = args.experts->num_experts();
  if (has_shared) {
    product.shared = cuda_weight(args.shared).matrix;
  }
  product.out_columns = static_cast<int32_t>(args.experts->out_features());
  SlotArgs slots;
  slots.expert_ids = args.expert_ids.as<int32_t>();
  slots.expert_weights = args.expert_weights.as<float>();
  slots.id_stride = args.expert_ids.strides[0];
  slots.weight_stride = args.expert_weights.strides[0];
  slots.top_k = static_cast<int32_t>(args.expert_ids.shape[1]);
  slots.slots = slots.top_k + (has_shared ? 1 : 0);
  slots.first_expert = args.first_expert;
  slots.num_experts = product.num_experts;
  slots.num_tokens = num_tokens;
  slots.out = plain_matrix(args.out);
  const ProductMode mode = mode_of(product);
  if (num_tokens == 0) {
    end("moe_down", handle);
    return;
  }
  if (mode != ProductMode::plain && fits_fused_down(product, slots, device_.max_shared_bytes)) {
    launch_fused_down(product, mode, slots, device_.num_multiprocessors, handle);
    end("moe_down", handle);
    return;
  }
  const int64_t column_bytes =
      int64_t{slots.slots} * (slots.out.is_bf16 && mode != ProductMode::plain ? 2 : 4);
  // The lists take far less than an eighth.
  const DownParts parts =
      cut_down(num_tokens, product.out_columns, column_bytes, workspace_.free_bytes() / 8 * 7);
  for (int32_t token = 0; token < num_tokens; token += parts.tokens) {
    const int32_t count = std::min(parts.tokens, num_tokens - token);
    run_down_stripes(product,
                     mode,
                     slots,
                     {args.expert_ids, args.first_expert, has_shared, token, count},
                     parts.columns,
                     handle);
  }
  end("moe_down", handle);
}

}  // namespace hadal::cuda
