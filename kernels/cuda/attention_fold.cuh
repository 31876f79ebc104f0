// What the kernels of generated tokens share: the tokens of a range, and how a page is folded into
// its split. Each operation is rounded on its own, so that a fold has the same bits in any kernel.
#pragma once

#include "attention.h"
#include "device_math.cuh"

namespace hadal::cuda {

__device__ inline int32_t token_of(const TokenRange& tokens, int32_t index) {
  const int32_t at = tokens.first + index;
  return tokens.generated == nullptr ? at : tokens.generated[at];
}

/// Folds a page's maximum (log2) and total into a split's, from (-inf, 0) on; gives the factors of
/// the split's sums and of the page's.
__device__ inline float2 fold_stats(float2& split, float2 page) {
  const float max = fmaxf(split.x, page.x);
  const float2 factors = make_float2(exp2f(split.x - max), exp2f(page.x - max));
  split.x = max;
  split.y = __fmaf_rn(split.y, factors.x, __fmul_rn(page.y, factors.y));
  return factors;
}

__device__ inline float fold(float split, float page, float2 factors) {
  return __fmaf_rn(split, factors.x, __fmul_rn(page, factors.y));
}

}  // namespace hadal::cuda
