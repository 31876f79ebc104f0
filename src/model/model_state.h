// A loaded shard, the sizes that follow from cutting it, and the tensors of a step.
#pragma once

#include <memory>
#include <vector>

#include <hadal/model/model.h>

#include "weight_loader.h"
#include "weight_map.h"

namespace hadal {

/// The latents' norms keep the reference's default, whatever rms_norm_eps says (Moonlight's
/// differs).
inline constexpr float kLatentNormEps = 1e-6F;

/// This rank's sizes.
struct LocalSizes {
  LocalSizes(const DeepseekConfig& config, const ParallelLayout& layout);

  int64_t num_heads = 0;
  int64_t dense_intermediate = 0;
  int64_t expert_intermediate = 0;  ///< of one routed expert
  int64_t shared_intermediate = 0;  ///< of all shared experts together; 0 = none
  int64_t num_experts = 0;
  int64_t first_expert = 0;
  /// The shared experts' slice is as wide as a routed expert's, so the MoE ops take it as one more
  /// slot.
  bool shared_is_folded = false;
  int64_t num_slots = 0;  ///< of the MoE ops
};

struct AttentionWeights {
  std::unique_ptr<Weight> a;  ///< q_a over kv_a; kv_a alone without q_lora_rank
  std::unique_ptr<Weight> q;
  std::unique_ptr<Weight> kv_b;
  std::unique_ptr<Weight> o;
  DeviceTensor q_a_norm;
  DeviceTensor kv_a_norm;
};

/// Dense layers have gate_up and down; MoE layers the rest, and gate_up and down are their shared
/// experts.
struct LayerWeights {
  DeviceTensor input_norm;
  DeviceTensor post_attention_norm;
  AttentionWeights attention;
  std::unique_ptr<Weight> gate_up;
  std::unique_ptr<Weight> down;
  std::unique_ptr<Weight> router;
  DeviceTensor correction_bias;
  std::unique_ptr<Weight> experts_gate_up;
  std::unique_ptr<Weight> experts_down;
};

struct MtpWeights {
  DeviceTensor embed_norm;
  DeviceTensor hidden_norm;
  std::unique_ptr<Weight> eh_proj;
  DeviceTensor head_norm;
  DeviceTensor embedding;        ///< empty when it equals the model's, as in published checkpoints
  std::unique_ptr<Weight> head;  ///< null likewise
};

struct Model::State {
  State(const DeepseekConfig& model_config, const ParallelLayout& model_layout)
      : config(model_config), layout(model_layout), sizes(config, layout), map(config, layout) {}

  State(const State&) = delete;
  State& operator=(const State&) = delete;

  const DeepseekConfig config;
  const ParallelLayout layout;
  const LocalSizes sizes;
  const WeightMap map;
  ModelShape shape;
  Numerics numerics;
  float scale = 0.0F;  ///< of attention scores

  DeviceTensor embedding;
  DeviceTensor final_norm;
  std::unique_ptr<Weight> head;
  DeviceTensor rope_table;
  std::vector<LayerWeights> layers;  ///< main layers, then MTP layers
  std::vector<MtpWeights> mtp;

  int64_t weight_bytes = 0;
};

/// Activations of one pass over M tokens. `x` feeds attention, then the MLP.
struct StepTensors {
  TensorView residual;          ///< [M, H] plain
  TensorView partial;           ///< [M, H] plain: what this rank adds next
  TensorView more_partial;      ///< [M, H] plain; MoE layers whose shared experts are not folded
  ActivationView x;             ///< [M, H]
  TensorView x_plain;           ///< [M, H] plain: x for the router
  TensorView latents;           ///< [M, q_lora_rank + kv_width] plain
  ActivationView q_latent;      ///< [M, q_lora_rank]
  TensorView q;                 ///< [M, heads * qk_head_dim] plain
  ActivationView heads;         ///< [M, heads * v_head_dim]
  ActivationView dense_inner;   ///< [M, dense intermediate]
  ActivationView shared_inner;  ///< [M, shared intermediate]; likewise
  TensorView expert_ids;        ///< [M, top_k] i32
  TensorView expert_weights;    ///< [M, top_k] f32
  ActivationView expert_inner;  ///< [M * slots, expert intermediate]
  ActivationView normed;        ///< [M, H], the head's input
  TensorView hidden;            ///< [M, H] plain; with MTP
};

struct StepSizes {
  const DeepseekConfig& config;
  const LocalSizes& local;
  const Numerics& numerics;
  bool with_mtp = false;
};

StepTensors place_step(const StepSizes& sizes, StepArena& arena, int64_t num_tokens);

/// One decoder layer of a step. Reads and updates residual; leaves in `partial` what is to be added
/// next.
struct LayerRun {
  const Model::State& model;
  const LayerWeights& weights;
  const BatchGeometry& geometry;
  const ForwardContext& context;
  StepTensors& tensors;
  int64_t kv_layer = 0;
  bool is_first = false;  ///< partial is the embedding: the residual begins with it
};

void run_layer(const LayerRun& run);
void run_attention(const LayerRun& run);
void run_mlp(const LayerRun& run);

}  // namespace hadal
