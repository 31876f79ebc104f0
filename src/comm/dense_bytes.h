// Size of a dense tensor: collectives move whole blocks of bytes.
#pragma once

#include <cstdint>

#include <hadal/base/check.h>
#include <hadal/tensor/tensor.h>

namespace hadal {

/// Bytes of `view`, which must be dense in all dimensions.
inline int64_t dense_bytes(const ConstTensorView& view) {
  HADAL_CHECK(view.strides == dense_strides(view.shape), "a collective needs a dense tensor");
  return view.shape.numel() * size_of(view.dtype);
}

}  // namespace hadal
