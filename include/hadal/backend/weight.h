// Weights as a backend keeps them: made once at load, opaque afterwards.
//
// The model hands over this rank's slices as the checkpoint stores them; the backend may repack
// them (interleave gate and up, pack panels, transpose kv_b for the absorbed form), so a fast
// layout never shows in model code.
#pragma once

#include <cstdint>
#include <span>

#include <hadal/tensor/tensor.h>

namespace hadal {

inline constexpr int64_t kScaleBlock = 128;  ///< rows and columns that share one weight scale

struct GeneratedValues;

/// One matrix slice in host memory. Valid only during prepare_weight.
struct RawMatrix {
  /// [out, in] f32, bf16, f16 or f8_e4m3; rows dense (a column slice of a larger matrix is fine).
  ConstTensorView values{};
  /// f8_e4m3 only: f32 scales of the 128 x 128 blocks that the slice touches,
  /// [ceil((row_offset + out) / 128), ceil((column_offset + in) / 128)]; weight = value * scale.
  ConstTensorView scale_inv{};
  /// Where in its first scale block the slice begins, 0..127: global row (column) modulo 128.
  int64_t row_offset = 0;
  int64_t column_offset = 0;
  /// Set = values.data is null and a backend with generates_weights() makes the elements.
  const GeneratedValues* generated = nullptr;
};

enum class WeightRole : uint8_t {
  linear,   ///< parts are stacked over rows: one [sum of out, in] matrix (q_a + kv_a; o_proj; down)
  gate_up,  ///< parts are gate_0, up_0, gate_1, up_1, ...: one pair an expert (a dense MLP has one)
  down,     ///< parts are down_0, down_1, ...: one an expert, [hidden, intermediate]
  kv_b,     ///< one part, [heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank]
  router,   ///< one part, [num_experts, hidden] f32 or bf16
  lm_head,  ///< one part, [vocab slice, hidden]
};

struct WeightSource {
  WeightRole role = WeightRole::linear;
  std::span<const RawMatrix> parts;  ///< all of one dtype and, for experts, of one shape
  int32_t num_heads = 0;             ///< kv_b only: heads of this rank
  int32_t qk_nope_head_dim = 0;      ///< kv_b only
  int32_t v_head_dim = 0;            ///< kv_b only
};

/// A prepared weight, owned by the model, made for one backend. Immutable; usable from any thread.
class Weight {
 public:
  virtual ~Weight() = default;
  Weight(const Weight&) = delete;
  Weight& operator=(const Weight&) = delete;

  WeightRole role() const { return role_; }

  /// As in the checkpoint: which activation format feeds it.
  DType dtype() const { return dtype_; }

  /// Output features of one expert: for gate_up the intermediate size (of the pair, not twice).
  int64_t out_features() const { return out_features_; }

  int64_t in_features() const { return in_features_; }

  /// Experts for gate_up and down; 1 otherwise.
  int32_t num_experts() const { return num_experts_; }

  /// Memory that the prepared form takes on the device.
  virtual int64_t size_bytes() const = 0;

 protected:
  Weight(
      WeightRole role, DType dtype, int64_t out_features, int64_t in_features, int32_t num_experts)
      : role_(role),
        dtype_(dtype),
        num_experts_(num_experts),
        out_features_(out_features),
        in_features_(in_features) {}

 private:
  WeightRole role_;
  DType dtype_;
  int32_t num_experts_;
  int64_t out_features_;
  int64_t in_features_;
};

}  // namespace hadal
