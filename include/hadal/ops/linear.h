// Dense products with prepared weights: y = x * W^T, float32 accumulation. A row of y depends on
// its row of x alone, in a fixed order of summation whatever M is.
#pragma once

#include <cstdint>

#include <hadal/backend/weight.h>
#include <hadal/base/result.h>
#include <hadal/tensor/activation.h>
#include <hadal/tensor/tensor.h>

namespace hadal {

struct LinearArgs {
  ConstActivationView x{};         ///< [M, K], any format
  const Weight* weight = nullptr;  ///< role linear, or down of one expert: [N, K]
  TensorView out{};                ///< [M, N] f32 or bf16; rows dense
};

/// The first half of a dense or shared MLP: out = silu(x * gate^T) * (x * up^T), SwiGLU in float32.
/// The second half is a linear.
struct GateUpArgs {
  ConstActivationView x{};         ///< [M, H], any format
  const Weight* weight = nullptr;  ///< role gate_up, one expert: [I, H] twice
  ActivationView out{};            ///< [M, I], the input format of the down weight
};

/// Logits of the rows that want them.
struct LmHeadArgs {
  ConstActivationView x{};         ///< [M, H] after the final norm, any format
  ConstTensorView rows{};          ///< [L] i32: indices into M
  const Weight* weight = nullptr;  ///< role lm_head: [V_local, H]
  TensorView out{};                ///< [L, V_local] f32
};

Status check(const LinearArgs& args);
Status check(const GateUpArgs& args);
Status check(const LmHeadArgs& args);

}  // namespace hadal
