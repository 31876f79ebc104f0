// config.json of the DeepSeek V2 / V3 family (V2-Lite, V2, V3, R1, Moonlight, Kimi-K2), validated
// into one value. Absent means the family's documented default; a value that would change the
// answer and that hadal does not implement is refused by name; fields that do not change the answer
// are ignored.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/base/result.h>
#include <hadal/ops/kv_record.h>
#include <hadal/text/token.h>

namespace hadal {

enum class ScoringFunc : uint8_t { softmax, sigmoid };

/// How a token's experts are chosen: the best scores; the best of the groups with the best score;
/// or, with a correction bias, the best of the groups whose two best biased scores add up highest.
enum class TopkMethod : uint8_t { greedy, group_limited_greedy, noaux_tc };

/// `rope_scaling` of type yarn (arXiv 2309.00071, DeepSeek's variant).
struct YarnScaling {
  double factor = 1.0;
  double original_max_position_embeddings = 4096.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 1.0;
  double mscale_all_dim = 0.0;
};

/// Field names are the checkpoint's own.
struct DeepseekConfig {
  std::string model_type;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;

  int64_t q_lora_rank = 0;  ///< 0 = queries are not compressed
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  double rope_theta = 10000.0;
  std::optional<YarnScaling> yarn;

  int64_t n_routed_experts = 0;  ///< 0 = every layer is dense
  int64_t n_shared_experts = 0;
  int64_t num_experts_per_tok = 0;
  int64_t moe_intermediate_size = 0;
  int64_t first_k_dense_replace = 0;
  int64_t n_group = 1;
  int64_t topk_group = 1;
  ScoringFunc scoring_func = ScoringFunc::softmax;
  TopkMethod topk_method = TopkMethod::greedy;
  bool norm_topk_prob = false;
  double routed_scaling_factor = 1.0;

  int64_t num_nextn_predict_layers = 0;
  bool is_fp8 = false;  ///< linear weights are E4M3 with 128 x 128 scales
  std::vector<TokenId> eos_token_ids;

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }

  /// Numbers cached per token and layer.
  int64_t kv_width() const { return kv_lora_rank + qk_rope_head_dim; }

  /// How they are cached; `dtype` as in KvRecord.
  KvRecord kv_record(DType dtype) const { return {dtype, kv_lora_rank, qk_rope_head_dim}; }

  bool is_moe_layer(int64_t layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace;
  }
};

/// The text of a config.json (at most 4 MiB). invalid_argument names the field, what was expected
/// and found; unsupported names the value that hadal does not implement.
Result<DeepseekConfig> parse_deepseek_config(std::string_view json);

/// Reads `directory`/config.json. Errors name the file.
Result<DeepseekConfig> load_deepseek_config(const std::filesystem::path& directory);

/// Rotary frequencies, `qk_rope_head_dim / 2` of them, in float32 steps as the reference computes
/// them.
std::vector<float> rope_inverse_frequencies(const DeepseekConfig& config);
/// What cosines and sines are multiplied with (YaRN: mscale over mscale_all_dim).
float rope_magnitude(const DeepseekConfig& config);
/// Scale of attention scores: qk_head_dim^-0.5, times YaRN's mscale_all_dim squared.
float softmax_scale(const DeepseekConfig& config);

}  // namespace hadal
