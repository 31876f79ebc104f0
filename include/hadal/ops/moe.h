// Mixture of experts: the router's choice, then two products over the chosen experts that live
// here.
//
// A rank holds num_experts() experts from first_expert on (expert parallel), each possibly a slice
// of the intermediate size (tensor parallel); choices of other ranks' experts are skipped and
// arrive by the all-reduce after it. A row has top_k slots, plus one when shared experts are folded
// in.
#pragma once

#include <cstdint>

#include <hadal/backend/weight.h>
#include <hadal/base/result.h>
#include <hadal/tensor/activation.h>
#include <hadal/tensor/tensor.h>

namespace hadal {

enum class RouterMethod : uint8_t {
  greedy,                ///< softmax; the top_k best (V2-Lite)
  group_limited_greedy,  ///< softmax; groups by their best expert, then the top_k best in them (V2)
  /// sigmoid; selection by score + bias, groups by the sum of their two best; the weights are the
  /// scores without bias (V3, arXiv 2412.19437, section 2.1.2)
  noaux_tc,
};

/// Scores in float32 from x as given. Ties go to the lowest id; experts outside the chosen groups
/// cannot be chosen. NaN scores count as the lowest.
struct RouterArgs {
  ConstTensorView x{};  ///< [M, H] f32 or bf16 (never E4M3: selections would change)
  /// [M] i32, as in BatchGeometry: rows at position -1 choose no expert (ids -1, weights 0).
  /// Absent = every row chooses.
  ConstTensorView positions{};
  const Weight* weight = nullptr;  ///< role router: [E, H]
  ConstTensorView bias{};          ///< [E] f32, noaux_tc only
  RouterMethod method = RouterMethod::greedy;
  int32_t top_k = 0;
  int32_t num_groups = 1;       ///< n_group; divides E
  int32_t top_groups = 1;       ///< topk_group
  bool norm_top_k = false;      ///< weights are divided by their sum + 1e-20, before the factor
  float scaling_factor = 1.0F;  ///< routed_scaling_factor
  TensorView out_ids{};         ///< [M, top_k] i32: global expert ids, best first; -1 = none
  TensorView out_weights{};     ///< [M, top_k] f32
};

/// inner[m * slots + s] = silu(x[m] * gate^T) * (x[m] * up^T) of the expert of slot s.
struct MoeGateUpArgs {
  ConstActivationView x{};          ///< [M, H], any format
  ConstTensorView expert_ids{};     ///< [M, top_k] i32, global; -1 = none
  const Weight* experts = nullptr;  ///< role gate_up: the local experts, [I, H] twice each
  int32_t first_expert = 0;         ///< global id of local expert 0
  const Weight* shared = nullptr;  ///< role gate_up, one expert of the same I: slot top_k; optional
  ActivationView inner{};          ///< [M * slots, I], the input format of the down weights; slots
                                   ///< of experts elsewhere are left as they are
};

/// out[m] = sum over local slots of weight[m, s] * (inner[m * slots + s] * down^T), in slot order,
/// then the shared expert with weight 1. A row without local slots is zero.
struct MoeDownArgs {
  ConstActivationView inner{};       ///< [M * slots, I]
  ConstTensorView expert_ids{};      ///< [M, top_k] i32
  ConstTensorView expert_weights{};  ///< [M, top_k] f32
  const Weight* experts = nullptr;   ///< role down: the local experts, [H, I] each
  int32_t first_expert = 0;
  const Weight* shared = nullptr;  ///< role down, one expert; set exactly when the gate_up had it
  TensorView out{};                ///< [M, H] f32 or bf16
};

Status check(const RouterArgs& args);
Status check(const MoeGateUpArgs& args);
Status check(const MoeDownArgs& args);

}  // namespace hadal
