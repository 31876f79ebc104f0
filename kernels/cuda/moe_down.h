// moe_down on the device: which kernels it has besides the general products.
//
// A token's result is the sum of its slots' products with their weights, in slot order, in float32.
// Where the result is BF16, tensor-core products are BF16 too, as any linear's are between ops:
// half the bytes of what is written and read back. Whichever kernel runs, the bits are the same.
#pragma once

#include "product.h"

namespace hadal::cuda {

/// What adding up slots needs, beside the products.
struct SlotArgs {
  const int32_t* expert_ids = nullptr;
  const float* expert_weights = nullptr;
  int64_t id_stride = 0;
  int64_t weight_stride = 0;
  int32_t top_k = 0;
  int32_t slots = 0;  ///< top_k, and one for the shared expert
  int32_t first_expert = 0;
  int32_t num_experts = 0;
  int32_t num_tokens = 0;
  PlainMatrix out;  ///< [num_tokens, product.out_columns]
};

/// Products and their sum in one kernel, for few tokens; modes but plain. `product` has x, weights
/// and out_columns alone. One launch, no workspace.
bool fits_fused_down(const ProductArgs& product, const SlotArgs& slots, int32_t max_shared_bytes);
void launch_fused_down(const ProductArgs& product,
                       ProductMode mode,
                       const SlotArgs& slots,
                       int32_t num_multiprocessors,
                       cudaStream_t stream);

/// Products of at most 256 columns by many rows, BF16 out, modes but plain; tiles of 64 rows.
inline constexpr int32_t kShortTileRows = 64;
bool fits_short(const ProductArgs& product, ProductMode mode, int32_t max_shared_bytes);
void launch_short_product(const ProductArgs& args,
                          ProductMode mode,
                          const ProductGrid& grid,
                          cudaStream_t stream);

}  // namespace hadal::cuda
