// Building a shard from a weight store: what is stacked on what, and nothing else.
#include <charconv>
#include <cmath>

#include "model_state.h"

namespace hadal {
namespace {

using Parts = std::vector<const TensorPart*>;

/// Assigns a Result's value or returns its error from the enclosing function.
template <class T>
Status assign(T& target, Result<T> result) {
  if (!result) {
    return result.error();
  }
  target = std::move(result).value();
  return ok_status();
}

Status load_attention(WeightLoader& loader,
                      const Model::State& model,
                      const AttentionParts& parts,
                      AttentionWeights& out) {
  Parts stacked;
  if (parts.q_a) {
    stacked.push_back(&*parts.q_a);
    HADAL_RETURN_IF_ERROR(assign(out.q_a_norm, loader.vector_f32(*parts.q_a_norm)));
  }
  stacked.push_back(&parts.kv_a);
  HADAL_RETURN_IF_ERROR(assign(out.a, loader.weight(WeightRole::linear, stacked)));
  HADAL_RETURN_IF_ERROR(assign(out.kv_a_norm, loader.vector_f32(parts.kv_a_norm)));
  HADAL_RETURN_IF_ERROR(assign(out.q, loader.weight(WeightRole::linear, Parts{&parts.q})));
  const KvBHeads heads{
      model.sizes.num_heads, model.config.qk_nope_head_dim, model.config.v_head_dim};
  HADAL_RETURN_IF_ERROR(
      assign(out.kv_b, loader.weight(WeightRole::kv_b, Parts{&parts.kv_b}, heads)));
  return assign(out.o, loader.weight(WeightRole::linear, Parts{&parts.o}));
}

/// `down_role` is linear for a dense or separate shared MLP, down for one that joins the experts.
Status load_mlp(WeightLoader& loader,
                const MlpParts& parts,
                WeightRole down_role,
                LayerWeights& out) {
  HADAL_RETURN_IF_ERROR(
      assign(out.gate_up, loader.weight(WeightRole::gate_up, Parts{&parts.gate, &parts.up})));
  return assign(out.down, loader.weight(down_role, Parts{&parts.down}));
}

Status load_experts(WeightLoader& loader, const LayerParts& parts, LayerWeights& out) {
  HADAL_RETURN_IF_ERROR(
      assign(out.router, loader.weight(WeightRole::router, Parts{&*parts.router})));
  if (parts.correction_bias) {
    HADAL_RETURN_IF_ERROR(assign(out.correction_bias, loader.vector_f32(*parts.correction_bias)));
  }
  Parts gate_up;
  Parts down;
  for (const MlpParts& expert : parts.experts) {
    gate_up.insert(gate_up.end(), {&expert.gate, &expert.up});
    down.push_back(&expert.down);
  }
  HADAL_RETURN_IF_ERROR(assign(out.experts_gate_up, loader.weight(WeightRole::gate_up, gate_up)));
  return assign(out.experts_down, loader.weight(WeightRole::down, down));
}

Status load_layer(WeightLoader& loader,
                  const Model::State& model,
                  int64_t index,
                  LayerWeights& out) {
  const LayerParts parts = model.map.layer(index);
  HADAL_RETURN_IF_ERROR(assign(out.input_norm, loader.vector_f32(parts.input_norm)));
  HADAL_RETURN_IF_ERROR(
      assign(out.post_attention_norm, loader.vector_f32(parts.post_attention_norm)));
  HADAL_RETURN_IF_ERROR(load_attention(loader, model, parts.attention, out.attention));
  if (parts.dense) {
    return load_mlp(loader, *parts.dense, WeightRole::linear, out);
  }
  if (parts.shared) {
    const WeightRole role = model.sizes.shared_is_folded ? WeightRole::down : WeightRole::linear;
    HADAL_RETURN_IF_ERROR(load_mlp(loader, *parts.shared, role, out));
  }
  return load_experts(loader, parts, out);
}

Status load_top(WeightLoader& loader, Model::State& model) {
  const TopParts parts = model.map.top();
  const int64_t rows = model.map.vocab_per_rank();
  HADAL_RETURN_IF_ERROR(assign(model.embedding, loader.table(parts.embedding, rows)));
  HADAL_RETURN_IF_ERROR(assign(model.final_norm, loader.vector_f32(parts.norm)));
  return assign(model.head, loader.weight(WeightRole::lm_head, Parts{&parts.head}, {}, rows));
}

/// Embedding and head of an MTP layer, where they are not the model's own over again.
Status load_mtp_copies(WeightLoader& loader,
                       const Model::State& model,
                       const MtpParts& parts,
                       MtpWeights& out) {
  const TopParts top = model.map.top();
  const int64_t rows = model.map.vocab_per_rank();
  const auto same_embedding = loader.are_equal(top.embedding, parts.embedding);
  const auto same_head = loader.are_equal(top.head, parts.head);
  if (!same_embedding || !same_head) {
    return same_embedding ? same_head.error() : same_embedding.error();
  }
  if (!same_embedding.value()) {
    HADAL_RETURN_IF_ERROR(assign(out.embedding, loader.table(parts.embedding, rows)));
  }
  if (same_head.value()) {
    return ok_status();
  }
  return assign(out.head, loader.weight(WeightRole::lm_head, Parts{&parts.head}, {}, rows));
}

Status load_mtp(WeightLoader& loader, Model::State& model) {
  for (int64_t i = 0; i < model.shape.num_mtp_layers; ++i) {
    const int64_t layer = model.config.num_hidden_layers + i;
    const MtpParts parts = model.map.mtp(layer);
    MtpWeights out;
    HADAL_RETURN_IF_ERROR(assign(out.embed_norm, loader.vector_f32(parts.embed_norm)));
    HADAL_RETURN_IF_ERROR(assign(out.hidden_norm, loader.vector_f32(parts.hidden_norm)));
    HADAL_RETURN_IF_ERROR(
        assign(out.eh_proj, loader.weight(WeightRole::linear, Parts{&parts.eh_proj})));
    HADAL_RETURN_IF_ERROR(assign(out.head_norm, loader.vector_f32(parts.head_norm)));
    HADAL_RETURN_IF_ERROR(load_mtp_copies(loader, model, parts, out));
    model.mtp.push_back(std::move(out));
  }
  return ok_status();
}

/// [positions, rope] f32: cosines, then sines. Angles are rounded to float32 first, as the
/// reference does.
Result<DeviceTensor> make_rope_table(WeightLoader& loader,
                                     const DeepseekConfig& config,
                                     int64_t positions) {
  const std::vector<float> frequencies = rope_inverse_frequencies(config);
  const float magnitude = rope_magnitude(config);
  const size_t half = frequencies.size();
  std::vector<float> table(static_cast<size_t>(positions) * 2 * half);
  for (size_t position = 0; position < static_cast<size_t>(positions); ++position) {
    float* row = table.data() + position * 2 * half;
    for (size_t i = 0; i < half; ++i) {
      const float angle = frequencies[i] * static_cast<float>(position);
      row[i] = std::cos(angle) * magnitude;
      row[half + i] = std::sin(angle) * magnitude;
    }
  }
  return loader.upload(make_view(reinterpret_cast<std::byte*>(table.data()),
                                 DType::f32,
                                 Shape{positions, config.qk_rope_head_dim}));
}

int64_t total_bytes(const Model::State& model) {
  const auto of = [](const std::unique_ptr<Weight>& weight) {
    return weight ? weight->size_bytes() : 0;
  };
  int64_t bytes = model.embedding.size_bytes() + model.final_norm.size_bytes() + of(model.head) +
                  model.rope_table.size_bytes();
  for (const LayerWeights& layer : model.layers) {
    const AttentionWeights& a = layer.attention;
    bytes += layer.input_norm.size_bytes() + layer.post_attention_norm.size_bytes() +
             a.q_a_norm.size_bytes() + a.kv_a_norm.size_bytes() +
             layer.correction_bias.size_bytes() + of(a.a) + of(a.q) + of(a.kv_b) + of(a.o) +
             of(layer.gate_up) + of(layer.down) + of(layer.router) + of(layer.experts_gate_up) +
             of(layer.experts_down);
  }
  for (const MtpWeights& mtp : model.mtp) {
    bytes += mtp.embed_norm.size_bytes() + mtp.hidden_norm.size_bytes() + of(mtp.eh_proj) +
             mtp.head_norm.size_bytes() + mtp.embedding.size_bytes() + of(mtp.head);
  }
  return bytes;
}

}  // namespace

Result<std::unique_ptr<Model>> Model::load(const ModelLoadArgs& args) {
  const DeepseekConfig& config = args.config;
  HADAL_RETURN_IF_ERROR(check_layout(config, args.layout));
  const int64_t num_mtp = args.with_mtp ? config.num_nextn_predict_layers : 0;
  if (num_mtp > 0 && 2 * config.hidden_size % args.layout.tp != 0) {
    return Error{ErrorCode::invalid_argument,
                 "parallel layout: eh_proj's 2 * hidden_size cannot be cut evenly over tp " +
                     std::to_string(args.layout.tp)};
  }
  HADAL_CHECK(args.max_positions > 0, "a model needs positions");
  auto state = std::make_unique<State>(config, args.layout);
  state->numerics = args.backend.numerics();
  HADAL_CHECK(state->numerics.plain_input != ActFormat::e4m3,
              "plain weights take plain activations");
  state->scale = softmax_scale(config);
  const int64_t num_layers = config.num_hidden_layers + num_mtp;
  state->shape = {.num_layers = num_layers,
                  .hidden_size = config.hidden_size,
                  .vocab_size = config.vocab_size,
                  .vocab_per_rank = state->map.vocab_per_rank(),
                  .num_mtp_layers = num_mtp};
  WeightLoader loader(args.weights, args.backend, args.meter);
  HADAL_RETURN_IF_ERROR(load_top(loader, *state));
  HADAL_RETURN_IF_ERROR(
      assign(state->rope_table, make_rope_table(loader, config, args.max_positions)));
  state->layers.resize(static_cast<size_t>(num_layers));
  for (int64_t i = 0; i < num_layers; ++i) {
    HADAL_RETURN_IF_ERROR(load_layer(loader, *state, i, state->layers[static_cast<size_t>(i)]));
  }
  HADAL_RETURN_IF_ERROR(load_mtp(loader, *state));
  state->weight_bytes = total_bytes(*state);
  return std::unique_ptr<Model>(new Model(std::move(state)));
}

Status check_weights(const DeepseekConfig& config,
                     const ParallelLayout& layout,
                     const WeightStore& weights,
                     bool with_mtp) {
  Status status = ok_status();
  WeightMap(config, layout).for_each(with_mtp, [&](const TensorPart& part) {
    for (const WeightSpec* spec : {&part.values, part.scale ? &*part.scale : nullptr}) {
      if (spec != nullptr && status) {
        if (auto found = weights.find(*spec); !found) {
          status = found.error();
        }
      }
    }
  });
  return status;
}

void visit_weight_reads(const DeepseekConfig& config,
                        const ParallelLayout& layout,
                        bool with_mtp,
                        const WeightReadFn& visit) {
  constexpr std::string_view kLayer = "model.layers.";
  WeightMap(config, layout).for_each(with_mtp, [&](const TensorPart& part) {
    const std::string_view name = part.values.name;
    int64_t order = 0;
    if (name.starts_with(kLayer)) {
      std::from_chars(name.data() + kLayer.size(), name.data() + name.size(), order);
      ++order;
    }
    visit(part.values, part.slice, order);
    if (part.scale) {
      visit(*part.scale, part.scale_slice(), order);
    }
  });
}

std::vector<WeightBytes> count_weight_bytes(const DeepseekConfig& config,
                                            const ParallelLayout& layout,
                                            bool with_mtp) {
  std::vector<WeightBytes> groups;
  for (uint8_t group = 0; group <= static_cast<uint8_t>(WeightGroup::mtp); ++group) {
    groups.push_back({to_string(static_cast<WeightGroup>(group)), 0});
  }
  WeightMap(config, layout).for_each(with_mtp, [&](const TensorPart& part) {
    groups[static_cast<size_t>(part.group)].bytes += part.size_bytes();
  });
  return groups;
}

}  // namespace hadal
