// Weights as the CUDA backend keeps them: row-major in the checkpoint's own precision.
//
// E4M3 codes and their block scales stay as they are, so nothing is rounded at load. Rows are
// padded with zeros to whole blocks of 128. Because slices may begin inside a scale block and
// stacked parts each have their own alignment, a row finds its scales through scale_rows.
#pragma once

#include <cstdint>
#include <memory>

#include <hadal/backend/backend.h>
#include <hadal/backend/weight.h>
#include <hadal/base/result.h>

namespace hadal::cuda {

/// Device form of [experts][rows, columns], for kernels. Element (e, n, k) lies at
/// data + e * expert_bytes + n * row_bytes + k * size. For f8_e4m3 it is multiplied by
///   scales[e * expert_scales + scale_rows[n] * num_groups + (k + column_offset) / 128].
struct DeviceMatrix {
  const std::byte* data = nullptr;
  const float* scales = nullptr;        ///< f8_e4m3 only
  const int32_t* scale_rows = nullptr;  ///< [rows], the same for all experts; f8_e4m3 only
  bool has_whole_blocks = false;        ///< scale_rows[n] = n / 128 for every n
  int64_t row_bytes = 0;                ///< a multiple of 128 elements
  int64_t expert_bytes = 0;
  int64_t expert_scales = 0;
  int32_t rows = 0;
  int32_t columns = 0;
  int32_t num_groups = 0;
  int32_t column_offset = 0;
  DType dtype = DType::f32;
};

class CudaWeight final : public Weight {
 public:
  CudaWeight(
      WeightRole role, DType dtype, int64_t out_features, int64_t in_features, int32_t num_experts)
      : Weight(role, dtype, out_features, in_features, num_experts) {}

  int64_t size_bytes() const override {
    return values.size_bytes() + scales.size_bytes() + scale_rows.size_bytes() +
           dense.size_bytes() + key_transposed.size_bytes();
  }

  /// kv_b of the sizes in attention_plan.h, f8_e4m3 or bf16, for the tensor cores: null otherwise.
  /// [heads][512][128] bf16: W_UK of each head, transposed.
  const uint16_t* transposed_keys() const {
    return reinterpret_cast<const uint16_t*>(key_transposed.data());
  }

  /// [heads][256][512] bf16: kv_b as it is, rounded to bf16 when it is f8_e4m3.
  const uint16_t* dense_kv_b() const {
    return reinterpret_cast<const uint16_t*>(dense.data() != nullptr ? dense.data() : matrix.data);
  }

  /// linear, router, lm_head, down, kv_b: the stacked parts. gate_up: per expert the rows of gate,
  /// then those of up. A scale row index counts the scale rows of one expert.
  DeviceMatrix matrix;
  Buffer values;
  Buffer scales;
  Buffer scale_rows;
  Buffer dense;           ///< see dense_kv_b; absent when the weight is bf16
  Buffer key_transposed;  ///< see transposed_keys

  int32_t num_heads = 0;  ///< kv_b only, as are the next two
  int32_t qk_nope_head_dim = 0;
  int32_t v_head_dim = 0;
};

inline const CudaWeight& cuda_weight(const Weight* weight) {
  return static_cast<const CudaWeight&>(*weight);
}

/// Copies the parts to the backend's device; the current device is that one.
Result<std::unique_ptr<Weight>> prepare_cuda_weight(Backend& backend, const WeightSource& source);

}  // namespace hadal::cuda
