// Activations between ops: a matrix in the format that the backend declares.
//
// Model code asks the backend for the format, makes room for it, and passes the view on; it never
// converts. E4M3 activations carry one float32 scale for each row and 128 columns:
//   value[m, k] = float(values[m, k]) * scales[m, k / 128]
#pragma once

#include <hadal/tensor/tensor.h>

namespace hadal {

inline constexpr int64_t kQuantGroup = 128;  ///< columns that share one activation scale

enum class ActFormat : uint8_t { f32, bf16, e4m3 };

struct ConstActivationView {
  ActFormat format = ActFormat::f32;
  ConstTensorView values{};  ///< [M, K] f32, bf16 or f8_e4m3; rows dense
  ConstTensorView scales{};  ///< e4m3 only: [M, ceil(K / 128)] f32, any strides
  ConstActivationView rows(int64_t begin, int64_t count) const;
};

struct ActivationView {
  ActFormat format = ActFormat::f32;
  TensorView values{};  ///< [M, K] f32, bf16 or f8_e4m3; rows dense
  TensorView scales{};  ///< e4m3 only: [M, ceil(K / 128)] f32, any strides

  bool empty() const { return values.empty(); }

  ActivationView rows(int64_t begin, int64_t count) const;

  operator ConstActivationView() const {  // NOLINT(google-explicit-constructor)
    return ConstActivationView{format, values, scales};
  }
};

DType value_dtype(ActFormat format);
/// Bytes that place_activation needs; a multiple of 256.
int64_t activation_bytes(ActFormat format, int64_t rows, int64_t columns);
/// Lays a [rows, columns] activation out in `memory` (256-byte aligned): values row-major, then the
/// scales, contiguous over rows.
ActivationView place_activation(
    std::byte* memory, ActFormat format, int64_t rows, int64_t columns, Device device);

}  // namespace hadal
