// The one order in which host ranks are summed: see communicator.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <hadal/tensor/tensor.h>

namespace hadal {

/// f32, bf16 and i32: what sums are defined for.
bool is_summable(DType dtype);

/// out[i] = sum of sources[r][i] over the ranks r, for `count` elements of `dtype`. bf16 is summed
/// in float32 and rounded once; i32 wraps. out may be one of the sources.
void tree_sum(std::span<const std::byte* const> sources,
              DType dtype,
              int64_t count,
              std::byte* out);

}  // namespace hadal
