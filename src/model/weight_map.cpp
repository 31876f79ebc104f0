// The table of weight_map.h as code.
#include "weight_map.h"

#include <algorithm>

#include <hadal/backend/weight.h>

namespace hadal {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

std::string layer_prefix(int64_t layer) {
  return "model.layers." + std::to_string(layer) + ".";
}

}  // namespace

const char* to_string(WeightGroup group) {
  switch (group) {
    case WeightGroup::embedding_and_head:
      return "embedding and head";
    case WeightGroup::attention:
      return "attention";
    case WeightGroup::dense_mlp:
      return "dense MLP";
    case WeightGroup::routed_experts:
      return "routed experts";
    case WeightGroup::shared_experts:
      return "shared experts";
    case WeightGroup::router_and_norms:
      return "router and norms";
    case WeightGroup::mtp:
      return "multi-token prediction";
  }
  return "";
}

WeightSlice TensorPart::scale_slice() const {
  WeightSlice blocks;
  blocks.row_begin = slice.row_begin / kScaleBlock;
  blocks.num_rows = ceil_div(slice.row_begin + slice.num_rows, kScaleBlock) - blocks.row_begin;
  blocks.col_begin = slice.col_begin / kScaleBlock;
  blocks.num_cols = ceil_div(slice.col_begin + slice.num_cols, kScaleBlock) - blocks.col_begin;
  return blocks;
}

int64_t TensorPart::size_bytes() const {
  int64_t bytes = slice.num_rows * slice.num_cols * stored_size(values.type);
  if (scale) {
    const WeightSlice blocks = scale_slice();
    bytes += blocks.num_rows * blocks.num_cols * stored_size(scale->type);
  }
  return bytes;
}

WeightMap::WeightMap(const DeepseekConfig& config, const ParallelLayout& layout)
    : config_(config), layout_(layout) {}

TensorPart WeightMap::matrix(
    WeightGroup group, const std::string& name, int64_t out, int64_t in, const Cut& cut) const {
  TensorPart part;
  part.group = group;
  part.values = {name + ".weight", {out, in}, StoredType::bf16, in};
  part.slice = {0, out, 0, in};
  if (cut.rows) {
    part.slice.num_rows = out / cut.ways;
    part.slice.row_begin = part.slice.num_rows * cut.index;
  }
  if (cut.columns) {
    part.slice.num_cols = in / cut.ways;
    part.slice.col_begin = part.slice.num_cols * cut.index;
  }
  if (config_.is_fp8) {
    part.values.type = StoredType::f8_e4m3;
    part.scale = WeightSpec{name + ".weight_scale_inv",
                            {ceil_div(out, kScaleBlock), ceil_div(in, kScaleBlock)},
                            StoredType::f32,
                            in};
  }
  return part;
}

TensorPart WeightMap::plain(TensorPart part, StoredType type) const {
  part.values.type = type;
  part.scale.reset();
  return part;
}

TensorPart WeightMap::vector(WeightGroup group, const std::string& name, int64_t size) const {
  TensorPart part;
  part.group = group;
  part.values = {name, {size}, StoredType::bf16, size};
  part.slice = {0, 1, 0, size};
  return part;
}

int64_t WeightMap::vocab_per_rank() const {
  return ceil_div(config_.vocab_size, layout_.tp);
}

int64_t WeightMap::vocab_begin() const {
  return vocab_per_rank() * layout_.rank;
}

TensorPart WeightMap::vocabulary(WeightGroup group, const std::string& name) const {
  TensorPart part = plain(matrix(group, name, config_.vocab_size, config_.hidden_size, {}));
  part.slice.row_begin = std::min(vocab_begin(), config_.vocab_size);
  part.slice.num_rows = std::min(vocab_per_rank(), config_.vocab_size - part.slice.row_begin);
  return part;
}

TopParts WeightMap::top() const {
  return {vocabulary(WeightGroup::embedding_and_head, "model.embed_tokens"),
          vector(WeightGroup::router_and_norms, "model.norm.weight", config_.hidden_size),
          vocabulary(WeightGroup::embedding_and_head, "lm_head")};
}

MlpParts WeightMap::mlp(WeightGroup group,
                        const std::string& prefix,
                        int64_t intermediate,
                        int64_t index,
                        int64_t ways) const {
  const Cut rows{.rows = true, .index = index, .ways = ways};
  const Cut columns{.columns = true, .index = index, .ways = ways};
  const int64_t hidden = config_.hidden_size;
  return {matrix(group, prefix + "gate_proj", intermediate, hidden, rows),
          matrix(group, prefix + "up_proj", intermediate, hidden, rows),
          matrix(group, prefix + "down_proj", hidden, intermediate, columns)};
}

AttentionParts WeightMap::attention(const std::string& prefix) const {
  constexpr WeightGroup kGroup = WeightGroup::attention;
  const Cut heads_out{.rows = true, .index = layout_.attn_tp_rank(), .ways = layout_.attn_tp};
  const Cut heads_in{.columns = true, .index = layout_.attn_tp_rank(), .ways = layout_.attn_tp};
  const int64_t hidden = config_.hidden_size;
  const int64_t heads = config_.num_attention_heads;
  const int64_t q_size = heads * config_.qk_head_dim();
  const int64_t kv_b_size = heads * (config_.qk_nope_head_dim + config_.v_head_dim);
  const bool has_q_lora = config_.q_lora_rank > 0;
  AttentionParts parts{
      .q_a = std::nullopt,
      .q_a_norm = std::nullopt,
      .q = has_q_lora ? matrix(kGroup, prefix + "q_b_proj", q_size, config_.q_lora_rank, heads_out)
                      : matrix(kGroup, prefix + "q_proj", q_size, hidden, heads_out),
      .kv_a = matrix(kGroup, prefix + "kv_a_proj_with_mqa", config_.kv_width(), hidden, {}),
      .kv_a_norm = vector(
          WeightGroup::router_and_norms, prefix + "kv_a_layernorm.weight", config_.kv_lora_rank),
      .kv_b = matrix(kGroup, prefix + "kv_b_proj", kv_b_size, config_.kv_lora_rank, heads_out),
      .o = matrix(kGroup, prefix + "o_proj", hidden, heads * config_.v_head_dim, heads_in)};
  if (has_q_lora) {
    parts.q_a = matrix(kGroup, prefix + "q_a_proj", config_.q_lora_rank, hidden, {});
    parts.q_a_norm =
        vector(WeightGroup::router_and_norms, prefix + "q_a_layernorm.weight", config_.q_lora_rank);
  }
  return parts;
}

LayerParts WeightMap::layer(int64_t layer) const {
  const std::string prefix = layer_prefix(layer);
  const std::string mlp_prefix = prefix + "mlp.";
  constexpr WeightGroup kSmall = WeightGroup::router_and_norms;
  const int64_t hidden = config_.hidden_size;
  LayerParts parts{
      .input_norm = vector(kSmall, prefix + "input_layernorm.weight", hidden),
      .post_attention_norm = vector(kSmall, prefix + "post_attention_layernorm.weight", hidden),
      .attention = attention(prefix + "self_attn."),
      .dense = std::nullopt,
      .router = std::nullopt,
      .correction_bias = std::nullopt,
      .experts = {},
      .shared = std::nullopt};
  if (!config_.is_moe_layer(layer)) {
    parts.dense = mlp(
        WeightGroup::dense_mlp, mlp_prefix, config_.intermediate_size, layout_.rank, layout_.tp);
    return parts;
  }
  const int64_t num_experts = config_.n_routed_experts;
  parts.router = plain(matrix(kSmall, mlp_prefix + "gate", num_experts, hidden, {}));
  if (config_.topk_method == TopkMethod::noaux_tc) {
    parts.correction_bias = plain(
        vector(kSmall, mlp_prefix + "gate.e_score_correction_bias", num_experts), StoredType::f32);
  }
  const int64_t local = num_experts / layout_.moe_ep;
  const int64_t first = local * layout_.moe_ep_rank();
  for (int64_t expert = first; expert < first + local; ++expert) {
    parts.experts.push_back(mlp(WeightGroup::routed_experts,
                                mlp_prefix + "experts." + std::to_string(expert) + ".",
                                config_.moe_intermediate_size,
                                layout_.moe_tp_rank(),
                                layout_.moe_tp));
  }
  if (config_.n_shared_experts > 0) {
    parts.shared = mlp(WeightGroup::shared_experts,
                       mlp_prefix + "shared_experts.",
                       config_.n_shared_experts * config_.moe_intermediate_size,
                       layout_.rank,
                       layout_.tp);
  }
  return parts;
}

MtpParts WeightMap::mtp(int64_t layer) const {
  const std::string prefix = layer_prefix(layer);
  const int64_t hidden = config_.hidden_size;
  const Cut columns{.columns = true, .index = layout_.rank, .ways = layout_.tp};
  return {vector(WeightGroup::mtp, prefix + "enorm.weight", hidden),
          vector(WeightGroup::mtp, prefix + "hnorm.weight", hidden),
          plain(matrix(WeightGroup::mtp, prefix + "eh_proj", hidden, 2 * hidden, columns)),
          vector(WeightGroup::mtp, prefix + "shared_head.norm.weight", hidden),
          vocabulary(WeightGroup::mtp, prefix + "embed_tokens"),
          vocabulary(WeightGroup::mtp, prefix + "shared_head.head")};
}

void WeightMap::for_each(bool with_mtp, const std::function<void(const TensorPart&)>& visit) const {
  const auto visit_mlp = [&](const MlpParts& parts, bool in_mtp) {
    for (TensorPart part : {parts.gate, parts.up, parts.down}) {
      part.group = in_mtp ? WeightGroup::mtp : part.group;
      visit(part);
    }
  };
  const TopParts tops = top();
  visit(tops.embedding);
  visit(tops.norm);
  visit(tops.head);
  const int64_t num_layers =
      config_.num_hidden_layers + (with_mtp ? config_.num_nextn_predict_layers : 0);
  for (int64_t index = 0; index < num_layers; ++index) {
    const bool in_mtp = index >= config_.num_hidden_layers;
    const LayerParts parts = layer(index);
    const auto visit_one = [&](const std::optional<TensorPart>& part) {
      if (part) {
        TensorPart counted = *part;
        counted.group = in_mtp ? WeightGroup::mtp : part->group;
        visit(counted);
      }
    };
    const AttentionParts& a = parts.attention;
    for (const auto& part : {std::optional(parts.input_norm),
                             std::optional(parts.post_attention_norm),
                             a.q_a,
                             a.q_a_norm,
                             std::optional(a.q),
                             std::optional(a.kv_a),
                             std::optional(a.kv_a_norm),
                             std::optional(a.kv_b),
                             std::optional(a.o),
                             parts.router,
                             parts.correction_bias}) {
      visit_one(part);
    }
    for (const std::optional<MlpParts>& mlp_parts : {parts.dense, parts.shared}) {
      if (mlp_parts) {
        visit_mlp(*mlp_parts, in_mtp);
      }
    }
    for (const MlpParts& expert : parts.experts) {
      visit_mlp(expert, in_mtp);
    }
    if (in_mtp) {
      const MtpParts mtp_parts = mtp(index);
      visit(mtp_parts.embed_norm);
      visit(mtp_parts.hidden_norm);
      visit(mtp_parts.eh_proj);
      visit(mtp_parts.head_norm);
      visit(mtp_parts.embedding);
      visit(mtp_parts.head);
    }
  }
}

}  // namespace hadal
