// One parameter of an FP8 matrix is one byte (its scale, 4 bytes in 16,384, is left out), of any
// other two.
#include "bench_cost.h"

#include <cmath>

namespace hadal {

namespace {

/// Parameters of the linear layers of one layer, by how many tokens need them.
struct LayerParameters {
  double attention = 0;
  double dense = 0;       ///< dense MLP or shared experts
  double one_expert = 0;  ///< 0 in dense layers
  double router = 0;      ///< two bytes each
};

LayerParameters layer_parameters(const DeepseekConfig& config, int64_t layer) {
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto heads = static_cast<double>(config.num_attention_heads);
  const auto query = heads * static_cast<double>(config.qk_head_dim());
  const auto q_rank = static_cast<double>(config.q_lora_rank);
  const auto kv_rank = static_cast<double>(config.kv_lora_rank);
  const auto nope = static_cast<double>(config.qk_nope_head_dim);
  const auto value = static_cast<double>(config.v_head_dim);
  LayerParameters result;
  result.attention = q_rank > 0 ? hidden * q_rank + q_rank * query : hidden * query;
  result.attention += hidden * static_cast<double>(config.kv_width());
  result.attention += kv_rank * heads * (nope + value) + heads * value * hidden;
  if (!config.is_moe_layer(layer)) {
    result.dense = 3 * hidden * static_cast<double>(config.intermediate_size);
    return result;
  }
  result.one_expert = 3 * hidden * static_cast<double>(config.moe_intermediate_size);
  result.dense = result.one_expert * static_cast<double>(config.n_shared_experts);
  result.router = hidden * static_cast<double>(config.n_routed_experts);
  return result;
}

}  // namespace

double decode_step_bytes(const DeepseekConfig& config,
                         int32_t batch,
                         double context,
                         DType kv_type) {
  const double matrix_bytes = config.is_fp8 ? 1 : 2;
  const auto experts = static_cast<double>(config.n_routed_experts);
  const auto chosen = static_cast<double>(config.num_experts_per_tok);
  const double different = experts > 0 ? experts * (1 - std::pow(1 - chosen / experts, batch)) : 0;
  double bytes = 2 * static_cast<double>(config.vocab_size * config.hidden_size);  // the head
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const LayerParameters parameters = layer_parameters(config, layer);
    bytes += matrix_bytes *
             (parameters.attention + parameters.dense + parameters.one_expert * different);
    bytes += 2 * parameters.router;
    bytes += batch * context * static_cast<double>(config.kv_record(kv_type).size_bytes());
  }
  return bytes;
}

double prefill_flops(const DeepseekConfig& config, int64_t num_tokens) {
  const auto tokens = static_cast<double>(num_tokens);
  double flops = 0;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const LayerParameters parameters = layer_parameters(config, layer);
    flops += 2 * tokens *
             (parameters.attention + parameters.dense + parameters.router +
              parameters.one_expert * static_cast<double>(config.num_experts_per_tok));
    const auto head_work = static_cast<double>(config.qk_head_dim() + config.v_head_dim);
    flops += static_cast<double>(config.num_attention_heads) * head_work * tokens * (tokens + 1);
  }
  return flops;
}

}  // namespace hadal
