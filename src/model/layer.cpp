// One decoder layer over Ops: attention, then a dense or a mixture-of-experts MLP. Every sublayer
// leaves a partial sum; the add_norm that follows reduces it over the ranks and adds it to the
// residual.
#include "model_state.h"

namespace hadal {
namespace {

RouterMethod router_method(TopkMethod method) {
  switch (method) {
    case TopkMethod::greedy:
      return RouterMethod::greedy;
    case TopkMethod::group_limited_greedy:
      return RouterMethod::group_limited_greedy;
    case TopkMethod::noaux_tc:
      return RouterMethod::noaux_tc;
  }
  return RouterMethod::greedy;
}

/// Layer `index` of the pool: [num_pages, 64, width], pages far apart.
TensorView layer_pages(const TensorView& pool, int64_t index) {
  TensorView pages = pool;
  pages.data += index * pool.strides[1] * size_of(pool.dtype);
  pages.shape = Shape{pool.shape[0], pool.shape[2], pool.shape[3]};
  pages.strides = Shape{pool.strides[0], pool.strides[2], pool.strides[3]};
  return pages;
}

/// The same dense memory in another shape.
TensorView reshaped(const TensorView& view, const Shape& shape) {
  return make_view(view.data, view.dtype, shape, view.device);
}

/// Dense layers and shared experts that are not folded into the MoE ops.
void run_plain_mlp(const LayerRun& run, const ActivationView& inner, TensorView out) {
  const ForwardContext& c = run.context;
  c.ops.gate_up({.x = run.tensors.x, .weight = run.weights.gate_up.get(), .out = inner}, c.stream);
  c.ops.linear({.x = inner, .weight = run.weights.down.get(), .out = out}, c.stream);
}

void run_experts(const LayerRun& run) {
  const DeepseekConfig& config = run.model.config;
  const LocalSizes& sizes = run.model.sizes;
  StepTensors& t = run.tensors;
  const ForwardContext& c = run.context;
  const bool fold = sizes.shared_is_folded;
  const auto first_expert = static_cast<int32_t>(sizes.first_expert);
  c.ops.router({.x = t.x_plain,
                .positions = run.geometry.positions,
                .weight = run.weights.router.get(),
                .bias = run.weights.correction_bias.view,
                .method = router_method(config.topk_method),
                .top_k = static_cast<int32_t>(config.num_experts_per_tok),
                .num_groups = static_cast<int32_t>(config.n_group),
                .top_groups = static_cast<int32_t>(config.topk_group),
                .norm_top_k = config.norm_topk_prob,
                .scaling_factor = static_cast<float>(config.routed_scaling_factor),
                .out_ids = t.expert_ids,
                .out_weights = t.expert_weights},
               c.stream);
  c.ops.moe_gate_up({.x = t.x,
                     .expert_ids = t.expert_ids,
                     .experts = run.weights.experts_gate_up.get(),
                     .first_expert = first_expert,
                     .shared = fold ? run.weights.gate_up.get() : nullptr,
                     .inner = t.expert_inner},
                    c.stream);
  c.ops.moe_down({.inner = t.expert_inner,
                  .expert_ids = t.expert_ids,
                  .expert_weights = t.expert_weights,
                  .experts = run.weights.experts_down.get(),
                  .first_expert = first_expert,
                  .shared = fold ? run.weights.down.get() : nullptr,
                  .out = t.partial},
                 c.stream);
}

}  // namespace

void run_attention(const LayerRun& run) {
  const Model::State& model = run.model;
  const DeepseekConfig& config = model.config;
  const AttentionWeights& w = run.weights.attention;
  StepTensors& t = run.tensors;
  const ForwardContext& c = run.context;
  const TensorView pages = layer_pages(c.kv_pool, run.kv_layer);
  const int64_t tokens = run.geometry.num_tokens;
  c.ops.linear({.x = t.x, .weight = w.a.get(), .out = t.latents}, c.stream);
  LatentWriteArgs write;
  write.geometry = &run.geometry;
  write.kv_latent = t.latents.columns(config.q_lora_rank, config.kv_width());
  write.kv_norm_weight = w.kv_a_norm.view;
  write.eps = kLatentNormEps;
  write.rope_table = model.rope_table.view;
  write.kv_pages = pages;
  if (config.q_lora_rank > 0) {
    write.q_latent = t.latents.columns(0, config.q_lora_rank);
    write.q_norm_weight = w.q_a_norm.view;
    write.out_q = t.q_latent;
  }
  c.ops.latent_write(write, c.stream);
  c.ops.linear({.x = config.q_lora_rank > 0 ? t.q_latent : t.x, .weight = w.q.get(), .out = t.q},
               c.stream);
  const TensorView q = reshaped(t.q, Shape{tokens, model.sizes.num_heads, config.qk_head_dim()});
  c.ops.rope_query({.geometry = &run.geometry, .q = q, .rope_table = model.rope_table.view},
                   c.stream);
  const AttentionArgs attention{.geometry = &run.geometry,
                                .q = q,
                                .kv_pages = pages,
                                .kv_b = w.kv_b.get(),
                                .softmax_scale = model.scale,
                                .out = t.heads};
  if (run.geometry.num_prompt_rows > 0) {
    c.ops.attention_prompt(attention, c.stream);
  }
  if (run.geometry.num_prompt_rows < run.geometry.num_rows) {
    c.ops.attention_generated(attention, c.stream);
  }
  c.ops.linear({.x = t.heads, .weight = w.o.get(), .out = t.partial}, c.stream);
}

void run_mlp(const LayerRun& run) {
  StepTensors& t = run.tensors;
  const ForwardContext& c = run.context;
  if (run.weights.router == nullptr) {
    run_plain_mlp(run, t.dense_inner, t.partial);
    return;
  }
  const bool has_separate_shared =
      run.weights.gate_up != nullptr && !run.model.sizes.shared_is_folded;
  if (has_separate_shared) {
    run_plain_mlp(run, t.shared_inner, t.more_partial);
  }
  run_experts(run);
  if (has_separate_shared) {
    // The two partial sums reach the residual one after the other; x is free to take the norm
    // between.
    c.ops.add_norm({.addend = t.more_partial,
                    .comm = c.comm,
                    .residual = t.residual,
                    .weight = run.weights.post_attention_norm.view,
                    .eps = static_cast<float>(run.model.config.rms_norm_eps),
                    .out = t.x,
                    .out_plain = {}},
                   c.stream);
  }
}

void run_layer(const LayerRun& run) {
  StepTensors& t = run.tensors;
  const ForwardContext& c = run.context;
  const auto eps = static_cast<float>(run.model.config.rms_norm_eps);
  c.ops.add_norm({.addend = t.partial,
                  .comm = c.comm,
                  .residual = t.residual,
                  .overwrite_residual = run.is_first,
                  .weight = run.weights.input_norm.view,
                  .eps = eps,
                  .out = t.x,
                  .out_plain = {}},
                 c.stream);
  run_attention(run);
  const bool router_needs_copy = run.weights.router != nullptr && t.x.format == ActFormat::e4m3;
  c.ops.add_norm({.addend = t.partial,
                  .comm = c.comm,
                  .residual = t.residual,
                  .weight = run.weights.post_attention_norm.view,
                  .eps = eps,
                  .out = t.x,
                  .out_plain = router_needs_copy ? t.x_plain : TensorView{}},
                 c.stream);
  run_mlp(run);
}

}  // namespace hadal
