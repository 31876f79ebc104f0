// Token ids to rows of the residual stream; a vocabulary-parallel table gives zero rows for tokens
// of other ranks (the caller sums over ranks with add_norm).
#pragma once

#include <cstdint>

#include <hadal/base/result.h>
#include <hadal/tensor/tensor.h>

namespace hadal {

struct EmbedArgs {
  /// [M] i32. -1 = the token sampled last for slot token_slots[m], taken from last_tokens.
  ConstTensorView tokens{};
  ConstTensorView token_slots{};  ///< [M] i32; absent when no token is -1
  ConstTensorView last_tokens{};  ///< [num_slots] i32 (SamplerState::last_tokens); absent likewise
  ConstTensorView table{};        ///< [V_local, H] bf16 or f32: rows vocab_begin...
  int64_t vocab_begin = 0;
  TensorView out{};  ///< [M, H] f32 or bf16
};

Status check(const EmbedArgs& args);

}  // namespace hadal
