// Weights as the CPU backend keeps them: panels of sixteen features in the checkpoint's own
// precision.
//
// E4M3 codes and their scales stay as they are (one scale vector for each panel and group of k), so
// nothing is rounded at load; 16-bit floats of the checkpoint become bf16 or f32 panels.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <hadal/backend/weight.h>
#include <hadal/base/result.h>

#include "aligned.h"
#include "kernel_table.h"

namespace hadal::cpu {

/// Owns the memory of one PanelMatrix.
class PanelStorage {
 public:
  const PanelMatrix& matrix() const { return matrix_; }

  int64_t size_bytes() const;

 private:
  friend class PanelBuilder;
  PanelMatrix matrix_;
  AlignedVector<std::byte> data_;
  AlignedVector<float> scales_;
  std::vector<int32_t> group_ends_;
};

class CpuWeight final : public Weight {
 public:
  CpuWeight(
      WeightRole role, DType dtype, int64_t out_features, int64_t in_features, int32_t num_experts)
      : Weight(role, dtype, out_features, in_features, num_experts) {}

  int64_t size_bytes() const override;

  /// linear, router, lm_head, down: one matrix an expert. gate_up: one matrix an expert whose
  /// panels alternate, gate panel p at 2 p and up panel p at 2 p + 1. kv_b: see below.
  std::vector<PanelStorage> matrices;

  /// kv_b: matrices[3 h] = W_UK of head h [nope, lora], [3 h + 1] = W_UV [v, lora], [3 h + 2] =
  /// W_UK transposed [lora, nope], for the absorbed form.
  int32_t num_heads = 0;
  int32_t qk_nope_head_dim = 0;
  int32_t v_head_dim = 0;
};

Result<std::unique_ptr<Weight>> prepare_cpu_weight(const WeightSource& source);

}  // namespace hadal::cpu
