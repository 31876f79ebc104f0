// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) over a paged latent
// cache.
//
// A layer's cache holds, for each token, kv_lora_rank normalised latents c and then
// qk_rope_head_dim roped key features k_pe, shared by all heads, in one of the formats of
// ops/kv_record.h. Prompt rows use the non-absorbed
// form (keys and values up-projected from the cached latents, also the prefix's and the chunk's
// own, so a chunk boundary changes nothing), generated rows the absorbed form, which a plan may
// also choose for prompt tokens (cheaper_form()). In both, one token's result depends on the tokens
// before it alone: never on the batch, the chunk or the page ids.
//
// RoPE rotates the interleaved pairs (x[2i], x[2i + 1]) in place: q and k agree, which is all that
// the dot product needs.
#pragma once

#include <cstdint>

#include <hadal/backend/weight.h>
#include <hadal/base/result.h>
#include <hadal/ops/geometry.h>
#include <hadal/tensor/activation.h>
#include <hadal/tensor/tensor.h>

namespace hadal {

/// q_latent and c are normalised, k_pe is roped, and c and k_pe are written to the cache.
struct LatentWriteArgs {
  const BatchGeometry* geometry = nullptr;
  ConstTensorView q_latent{};        ///< [M, q_lora_rank] f32 or bf16; absent without q_lora
  ConstTensorView q_norm_weight{};   ///< [q_lora_rank] f32 or bf16; absent likewise
  ConstTensorView kv_latent{};       ///< [M, kv_lora_rank + rope] f32 or bf16 (c, then k_pe)
  ConstTensorView kv_norm_weight{};  ///< [kv_lora_rank] f32 or bf16
  float eps = 1e-6F;
  ConstTensorView rope_table{};  ///< [max_positions, rope] f32: rope / 2 cosines, then sines
  ActivationView out_q{};        ///< [M, q_lora_rank], the input format of q_b; absent likewise
  TensorView kv_pages{};         ///< [num_pages, 64, record] (ops/kv_record.h); dimension 0 strided
};

/// Ropes the last qk_rope_head_dim features of every head of q, in place.
struct RopeQueryArgs {
  const BatchGeometry* geometry = nullptr;
  TensorView q{};                ///< [M, heads, qk_nope_head_dim + rope] f32 or bf16; dense
  ConstTensorView rope_table{};  ///< [max_positions, rope] f32, as in LatentWriteArgs
};

/// Attention for the rows of one form; rows of the other form are left as they are. Call
/// attention_prompt when geometry->num_prompt_rows > 0, attention_generated when some row is not.
struct AttentionArgs {
  const BatchGeometry* geometry = nullptr;
  ConstTensorView q{};  ///< [M, heads, qk_nope_head_dim + rope] f32 or bf16, roped; dense
  /// [num_pages, 64, record] (ops/kv_record.h); dimension 0 strided. Slots that no row of the step
  /// reaches may hold anything.
  ConstTensorView kv_pages{};
  const Weight* kv_b = nullptr;  ///< role kv_b: per head W_UK, then W_UV
  float softmax_scale = 0.0F;
  ActivationView out{};  ///< [M, heads * v_head_dim], the input format of o_proj
};

/// Copies the first tokens of a page, all layers, before a step runs.
struct PageCopyArgs {
  TensorView kv_pool{};      ///< [num_pages, num_layers, 64, record] (ops/kv_record.h); dense
  ConstTensorView copies{};  ///< [N, 3] i32: source page, destination page, tokens (0..64)
};

Status check(const LatentWriteArgs& args);
Status check(const RopeQueryArgs& args);
Status check(const AttentionArgs& args);
Status check(const PageCopyArgs& args);

}  // namespace hadal
