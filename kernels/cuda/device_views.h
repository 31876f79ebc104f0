// What kernels get as parameters: plain structs of pointers and strides, made on the host from the
// views of an op's arguments. Strides are in elements.
#pragma once

#include <cstdint>

#include <hadal/tensor/activation.h>
#include <hadal/tensor/tensor.h>

namespace hadal::cuda {

/// An f32 or bf16 matrix; a vector is its row 0.
struct ConstPlainMatrix {
  const std::byte* data = nullptr;
  int64_t stride = 0;
  bool is_bf16 = false;
};

struct PlainMatrix {
  std::byte* data = nullptr;
  int64_t stride = 0;
  bool is_bf16 = false;

  constexpr operator ConstPlainMatrix() const {  // NOLINT(google-explicit-constructor)
    return {data, stride, is_bf16};
  }
};

/// An activation; scale of (m, group) = scales[m * scale_row + group * scale_group].
struct ConstActMatrix {
  const std::byte* data = nullptr;
  const float* scales = nullptr;
  int64_t stride = 0;
  int64_t scale_row = 0;
  int64_t scale_group = 0;
  ActFormat format = ActFormat::f32;
};

struct ActMatrix {
  std::byte* data = nullptr;
  float* scales = nullptr;
  int64_t stride = 0;
  int64_t scale_row = 0;
  int64_t scale_group = 0;
  ActFormat format = ActFormat::f32;

  constexpr operator ConstActMatrix() const {  // NOLINT(google-explicit-constructor)
    return {data, scales, stride, scale_row, scale_group, format};
  }
};

inline ConstPlainMatrix plain_matrix(const ConstTensorView& view) {
  return {view.data, view.strides[0], view.dtype == DType::bf16};
}

inline PlainMatrix plain_matrix(const TensorView& view) {
  return {view.data, view.strides[0], view.dtype == DType::bf16};
}

inline ConstActMatrix act_matrix(const ConstActivationView& view) {
  const bool has_scales = view.format == ActFormat::e4m3;
  return {view.values.data,
          has_scales ? view.scales.as<float>() : nullptr,
          view.values.strides[0],
          has_scales ? view.scales.strides[0] : 0,
          has_scales ? view.scales.strides[1] : 0,
          view.format};
}

inline ActMatrix act_matrix(const ActivationView& view) {
  const bool has_scales = view.format == ActFormat::e4m3;
  return {view.values.data,
          has_scales ? view.scales.as<float>() : nullptr,
          view.values.strides[0],
          has_scales ? view.scales.strides[0] : 0,
          has_scales ? view.scales.strides[1] : 0,
          view.format};
}

}  // namespace hadal::cuda
