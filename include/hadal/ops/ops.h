// The wall between the model and the kernels: what a backend must be able to do.
//
// Ops are cut where a GPU fuses, so an implementation may fold everything inside one of them. All
// take one plain struct of views (shapes on every field) and a stream; results are complete when
// the stream has passed. Every implementation begins with check(args), which is pure: a breach is
// the caller's mistake and aborts. Data (token ids, page ids, expert ids) is the caller's promise.
//
// A decoder layer over them, one line an op:
//   add_norm        (all-reduce of the layer before) + residual, norm, quantise      -> x
//   linear          fused q_a + kv_a                                                 -> latents
//   latent_write    q and kv norm, RoPE(k), write the cache                          -> q latent
//   linear          q_b                                                              -> q
//   rope_query      RoPE(q)
//   attention_*     prompt rows, generated rows                                      -> heads
//   linear          o_proj                                                           -> partial sum
//   add_norm        all-reduce, residual, norm, quantise, plain copy                 -> x, plain
//   dense:  gate_up, linear           MoE:  router, moe_gate_up, moe_down            -> partial sum
#pragma once

#include <hadal/backend/backend.h>
#include <hadal/ops/attention.h>
#include <hadal/ops/embed.h>
#include <hadal/ops/geometry.h>
#include <hadal/ops/linear.h>
#include <hadal/ops/moe.h>
#include <hadal/ops/norm.h>
#include <hadal/ops/sample.h>

namespace hadal {

/// Engine thread only, one step at a time.
class Ops {
 public:
  virtual ~Ops() = default;
  /// Before the ops of a step: the backend may derive schedules that all layers share.
  virtual void begin_step(const BatchGeometry& geometry, Stream& stream) = 0;
  virtual void copy_pages(const PageCopyArgs& args, Stream& stream) = 0;
  virtual void embed(const EmbedArgs& args, Stream& stream) = 0;
  virtual void add_norm(const AddNormArgs& args, Stream& stream) = 0;
  virtual void linear(const LinearArgs& args, Stream& stream) = 0;
  virtual void latent_write(const LatentWriteArgs& args, Stream& stream) = 0;
  virtual void rope_query(const RopeQueryArgs& args, Stream& stream) = 0;
  virtual void attention_prompt(const AttentionArgs& args, Stream& stream) = 0;
  virtual void attention_generated(const AttentionArgs& args, Stream& stream) = 0;
  virtual void gate_up(const GateUpArgs& args, Stream& stream) = 0;
  virtual void router(const RouterArgs& args, Stream& stream) = 0;
  virtual void moe_gate_up(const MoeGateUpArgs& args, Stream& stream) = 0;
  virtual void moe_down(const MoeDownArgs& args, Stream& stream) = 0;
  virtual void lm_head(const LmHeadArgs& args, Stream& stream) = 0;
  virtual void reset_slots(const ResetSlotsArgs& args, Stream& stream) = 0;
  virtual void sample(const SampleArgs& args, Stream& stream) = 0;
};

}  // namespace hadal
