// Passes over the layers, and where a step's tensors lie. One layer is in layer.cpp, loading in
// load.cpp.
#include <hadal/model/model.h>

#include "model_state.h"

namespace hadal {

LocalSizes::LocalSizes(const DeepseekConfig& config, const ParallelLayout& layout) {
  num_heads = config.num_attention_heads / layout.attn_tp;
  dense_intermediate = config.intermediate_size / layout.tp;
  if (config.n_routed_experts == 0) {
    return;
  }
  expert_intermediate = config.moe_intermediate_size / layout.moe_tp;
  shared_intermediate = config.n_shared_experts * config.moe_intermediate_size / layout.tp;
  num_experts = config.n_routed_experts / layout.moe_ep;
  first_expert = num_experts * layout.moe_ep_rank();
  shared_is_folded = shared_intermediate > 0 && shared_intermediate == expert_intermediate;
  num_slots = config.num_experts_per_tok + (shared_is_folded ? 1 : 0);
}

StepTensors place_step(const StepSizes& sizes, StepArena& arena, int64_t num_tokens) {
  const DeepseekConfig& config = sizes.config;
  const LocalSizes& local = sizes.local;
  const DType plain = sizes.numerics.plain;
  const ActFormat format = sizes.numerics.input_of(config.is_fp8 ? DType::f8_e4m3 : DType::bf16);
  const Shape hidden{num_tokens, config.hidden_size};
  const bool has_experts = config.n_routed_experts > 0;
  const bool has_dense = !has_experts || config.first_k_dense_replace > 0;
  StepTensors t;
  t.residual = arena.take(plain, hidden);
  t.partial = arena.take(plain, hidden);
  t.x = arena.take_activation(format, num_tokens, config.hidden_size);
  t.x_plain = t.x.values;
  t.latents = arena.take(plain, {num_tokens, config.q_lora_rank + config.kv_width()});
  if (config.q_lora_rank > 0) {
    t.q_latent = arena.take_activation(format, num_tokens, config.q_lora_rank);
  }
  t.q = arena.take(plain, {num_tokens, local.num_heads * config.qk_head_dim()});
  t.heads = arena.take_activation(format, num_tokens, local.num_heads * config.v_head_dim);
  if (has_dense) {
    t.dense_inner = arena.take_activation(format, num_tokens, local.dense_intermediate);
  }
  if (has_experts) {
    if (format == ActFormat::e4m3) {
      t.x_plain = arena.take(plain, hidden);
    }
    if (local.shared_intermediate > 0 && !local.shared_is_folded) {
      t.shared_inner = arena.take_activation(format, num_tokens, local.shared_intermediate);
      t.more_partial = arena.take(plain, hidden);
    }
    t.expert_ids = arena.take(DType::i32, {num_tokens, config.num_experts_per_tok});
    t.expert_weights = arena.take(DType::f32, {num_tokens, config.num_experts_per_tok});
    t.expert_inner =
        arena.take_activation(format, num_tokens * local.num_slots, local.expert_intermediate);
  }
  t.normed = arena.take_activation(sizes.numerics.plain_input, num_tokens, config.hidden_size);
  if (sizes.with_mtp) {
    t.hidden = arena.take(plain, hidden);
  }
  return t;
}

Model::Model(std::unique_ptr<State> state) : state_(std::move(state)) {}

Model::~Model() = default;

const ModelShape& Model::shape() const {
  return state_->shape;
}

const DeepseekConfig& Model::config() const {
  return state_->config;
}

const ParallelLayout& Model::layout() const {
  return state_->layout;
}

int64_t Model::weight_bytes() const {
  return state_->weight_bytes;
}

namespace {

StepSizes step_sizes(const Model::State& model) {
  return {model.config, model.sizes, model.numerics, model.shape.num_mtp_layers > 0};
}

void embed(const Model::State& model,
           const StepInputs& inputs,
           const ForwardContext& context,
           const DeviceTensor& table,
           TensorView out) {
  context.ops.embed(
      {.tokens = inputs.tokens,
       .token_slots = inputs.token_slots,
       .last_tokens = inputs.token_slots.empty() ? ConstTensorView{} : inputs.last_tokens,
       .table = table.view,
       .vocab_begin = model.map.vocab_begin(),
       .out = out},
      context.stream);
}

/// The norm after the last layer of a pass.
ForwardResult finish(const Model::State& model,
                     const DeviceTensor& norm,
                     const Weight& head,
                     const ForwardContext& context,
                     StepTensors& tensors) {
  context.ops.add_norm({.addend = tensors.partial,
                        .comm = context.comm,
                        .residual = tensors.residual,
                        .weight = norm.view,
                        .eps = static_cast<float>(model.config.rms_norm_eps),
                        .out = tensors.normed,
                        .out_plain = tensors.hidden},
                       context.stream);
  return {tensors.normed, tensors.hidden, &head};
}

}  // namespace

ForwardResult Model::forward(const StepInputs& inputs, const ForwardContext& context) const {
  const State& model = *state_;
  StepTensors tensors = place_step(step_sizes(model), context.arena, inputs.geometry->num_tokens);
  embed(model, inputs, context, model.embedding, tensors.partial);
  for (int64_t i = 0; i < model.config.num_hidden_layers; ++i) {
    run_layer({.model = model,
               .weights = model.layers[static_cast<size_t>(i)],
               .geometry = *inputs.geometry,
               .context = context,
               .tensors = tensors,
               .kv_layer = i,
               .is_first = i == 0});
  }
  return finish(model, model.final_norm, *model.head, context, tensors);
}

ForwardResult Model::forward_mtp(int64_t mtp_layer,
                                 const StepInputs& inputs,
                                 TensorView hidden,
                                 const ForwardContext& context) const {
  const State& model = *state_;
  HADAL_CHECK(mtp_layer >= 0 && mtp_layer < model.shape.num_mtp_layers, "MTP layer not loaded");
  const MtpWeights& mtp = model.mtp[static_cast<size_t>(mtp_layer)];
  const int64_t tokens = inputs.geometry->num_tokens;
  const int64_t size = model.config.hidden_size;
  const auto eps = static_cast<float>(model.config.rms_norm_eps);
  const ActFormat format = model.numerics.plain_input;
  StepTensors tensors = place_step(step_sizes(model), context.arena, tokens);
  const ActivationView both = context.arena.take_activation(format, tokens, 2 * size);
  embed(model,
        inputs,
        context,
        mtp.embedding.view.empty() ? model.embedding : mtp.embedding,
        tensors.partial);
  context.ops.add_norm({.addend = tensors.partial,
                        .comm = context.comm,
                        .residual = tensors.residual,
                        .overwrite_residual = true,
                        .weight = mtp.embed_norm.view,
                        .eps = eps,
                        .out = {format, both.values.columns(0, size), {}},
                        .out_plain = {}},
                       context.stream);
  context.ops.add_norm({.addend = {},
                        .residual = hidden,
                        .weight = mtp.hidden_norm.view,
                        .eps = eps,
                        .out = {format, both.values.columns(size, size), {}},
                        .out_plain = {}},
                       context.stream);
  const int64_t part = 2 * size / model.layout.tp;
  const ActivationView mine{format, both.values.columns(part * model.layout.rank, part), {}};
  context.ops.linear({.x = mine, .weight = mtp.eh_proj.get(), .out = tensors.partial},
                     context.stream);
  const int64_t layer = model.config.num_hidden_layers + mtp_layer;
  run_layer({.model = model,
             .weights = model.layers[static_cast<size_t>(layer)],
             .geometry = *inputs.geometry,
             .context = context,
             .tensors = tensors,
             .kv_layer = layer,
             .is_first = true});
  const Weight& head = mtp.head != nullptr ? *mtp.head : *model.head;
  return finish(model, mtp.head_norm, head, context, tensors);
}

void Model::logits(const ForwardResult& result,
                   ConstTensorView rows,
                   TensorView out,
                   const ForwardContext& context) const {
  context.ops.lm_head({.x = result.normed, .rows = rows, .weight = result.head, .out = out},
                      context.stream);
}

int64_t Model::arena_bytes(int64_t num_tokens) const {
  return count_arena_bytes(state_->config,
                           state_->layout,
                           state_->numerics,
                           num_tokens,
                           state_->shape.num_mtp_layers > 0);
}

int64_t count_arena_bytes(const DeepseekConfig& config,
                          const ParallelLayout& layout,
                          const Numerics& numerics,
                          int64_t num_tokens,
                          bool with_mtp) {
  StepArena arena;
  const LocalSizes local(config, layout);
  const StepSizes sizes{config, local, numerics, with_mtp};
  place_step(sizes, arena, num_tokens);
  const int64_t num_mtp = with_mtp ? config.num_nextn_predict_layers : 0;
  for (int64_t i = 0; i < num_mtp; ++i) {
    place_step(sizes, arena, num_tokens);
    arena.take_activation(numerics.plain_input, num_tokens, 2 * config.hidden_size);
  }
  return arena.high_water_bytes();
}

}  // namespace hadal
