// The published configurations parse to what they mean; each wrong or unsupported field is named.
#include <hadal/model/config.h>

#include "catch.h"
#include "configs.h"

namespace hadal {
namespace {

using Catch::Matchers::Contains;

/// `base` with one field's text replaced; the field must be there.
std::string with(std::string base, const std::string& from, const std::string& to) {
  const size_t at = base.find(from);
  REQUIRE(at != std::string::npos);
  return base.replace(at, from.size(), to);
}

std::string failure(const std::string& json) {
  const auto config = parse_deepseek_config(json);
  REQUIRE_FALSE(config);
  return config.error().message;
}

TEST_CASE("config: DeepSeek-R1", "[model]") {
  const auto config = parse_deepseek_config(kR1Config);
  REQUIRE(config);
  const DeepseekConfig& c = config.value();
  CHECK(c.hidden_size == 7168);
  CHECK(c.q_lora_rank == 1536);
  CHECK(c.kv_width() == 576);
  CHECK(c.topk_method == TopkMethod::noaux_tc);
  CHECK(c.scoring_func == ScoringFunc::sigmoid);
  CHECK(c.n_group == 8);
  CHECK(c.topk_group == 4);
  CHECK(c.norm_topk_prob);
  CHECK(c.routed_scaling_factor == 2.5);
  CHECK(c.first_k_dense_replace == 3);
  CHECK_FALSE(c.is_moe_layer(2));
  CHECK(c.is_moe_layer(3));
  CHECK(c.num_nextn_predict_layers == 1);
  CHECK(c.is_fp8);
  CHECK(c.eos_token_ids == std::vector<TokenId>{1});
  REQUIRE(c.yarn);
  CHECK(c.yarn->factor == 40);
  CHECK(softmax_scale(c) == Approx(0.135234).epsilon(1e-5));
  CHECK(rope_magnitude(c) == 1.0F);
}

TEST_CASE("config: DeepSeek-V2-Lite", "[model]") {
  const auto config = parse_deepseek_config(kV2LiteConfig);
  REQUIRE(config);
  const DeepseekConfig& c = config.value();
  CHECK(c.q_lora_rank == 0);
  CHECK(c.topk_method == TopkMethod::greedy);
  CHECK(c.scoring_func == ScoringFunc::softmax);
  CHECK_FALSE(c.norm_topk_prob);
  CHECK(c.n_shared_experts == 2);
  CHECK_FALSE(c.is_fp8);
  CHECK(c.num_nextn_predict_layers == 0);
  CHECK(rope_magnitude(c) == 1.0F);
  CHECK(softmax_scale(c) == Approx(0.114721).epsilon(1e-4));
}

TEST_CASE("config: Moonlight has no rope_scaling, Kimi-K2 has its own model_type", "[model]") {
  const auto moonlight = parse_deepseek_config(kMoonlightConfig);
  REQUIRE(moonlight);
  CHECK_FALSE(moonlight.value().yarn);
  CHECK(moonlight.value().rope_theta == 50000.0);
  CHECK(moonlight.value().rms_norm_eps == 1e-5);
  CHECK(softmax_scale(moonlight.value()) == Approx(1.0 / std::sqrt(192.0)));
  const auto kimi = parse_deepseek_config(with(
      with(kR1Config, "\"deepseek_v3\"", "\"kimi_k2\""), "\"beta_fast\": 32", "\"beta_fast\": 1"));
  REQUIRE(kimi);
  CHECK(kimi.value().topk_method == TopkMethod::noaux_tc);
}

TEST_CASE("config: rope_parameters replaces rope_scaling and rope_theta", "[model]") {
  const std::string old_style = kR1Config;
  std::string new_style = with(old_style, "\"rope_scaling\"", "\"rope_parameters\"");
  new_style =
      with(new_style, "\"type\": \"yarn\"", "\"rope_type\": \"yarn\", \"rope_theta\": 10000.0");
  new_style = with(new_style, "\"rope_theta\": 10000,", "");
  const auto a = parse_deepseek_config(old_style);
  const auto b = parse_deepseek_config(new_style);
  REQUIRE(a);
  REQUIRE(b);
  CHECK(rope_inverse_frequencies(a.value()) == rope_inverse_frequencies(b.value()));
  CHECK(softmax_scale(a.value()) == softmax_scale(b.value()));
}

TEST_CASE("config: wrong fields are named with what was expected and found", "[model]") {
  const std::string r1 = kR1Config;
  CHECK_THAT(failure(with(r1, "\"hidden_size\": 7168,", "")), Contains("hidden_size: missing"));
  CHECK_THAT(failure(with(r1, "\"hidden_size\": 7168", "\"hidden_size\": \"7168\"")),
             Contains("hidden_size: expected an integer from 1 to 1048576, found \"7168\""));
  CHECK_THAT(failure(with(r1, "\"hidden_size\": 7168", "\"hidden_size\": 1e300")),
             Contains("hidden_size"));
  CHECK_THAT(failure(with(r1, "\"hidden_size\": 7168", "\"hidden_size\": 18446744073709551615")),
             Contains("hidden_size"));
  CHECK_THAT(failure(with(r1, "\"kv_lora_rank\": 512", "\"kv_lora_rank\": -1")),
             Contains("kv_lora_rank"));
  CHECK_THAT(failure(with(r1, "\"n_group\": 8", "\"n_group\": 7")), Contains("does not divide"));
  CHECK_THAT(failure(with(r1, "\"topk_group\": 4", "\"topk_group\": 9")), Contains("topk_group"));
  CHECK_THAT(failure(with(r1, "\"norm_topk_prob\": true", "\"norm_topk_prob\": 1")),
             Contains("norm_topk_prob: expected true or false, found 1"));
  CHECK_THAT(failure(with(r1, "\"factor\": 40", "\"factor\": null")),
             Contains("rope_scaling.factor: missing"));
  CHECK_THAT(failure("[]"), Contains("expected a JSON object"));
  CHECK_THAT(failure(std::string(100000, '[')), Contains("nested deeper"));
  CHECK_THAT(failure("{"), Contains("not valid JSON"));
}

TEST_CASE("config: what hadal does not implement is refused by name", "[model]") {
  const std::string r1 = kR1Config;
  const auto refused = [&](const char* from, const char* to, const char* says) {
    const auto config = parse_deepseek_config(with(r1, from, to));
    REQUIRE_FALSE(config);
    CHECK(config.error().code == ErrorCode::unsupported);
    CHECK_THAT(config.error().message, Contains(says));
  };
  refused("\"deepseek_v3\"", "\"llama\"", "model_type 'llama'");
  refused("\"silu\"", "\"gelu\"", "hidden_act 'gelu'");
  refused("\"attention_bias\": false", "\"attention_bias\": true", "attention_bias");
  refused("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true", "tie_word_embeddings");
  refused("\"moe_layer_freq\": 1", "\"moe_layer_freq\": 2", "moe_layer_freq 2");
  refused("\"noaux_tc\"", "\"random\"", "topk_method 'random'");
  refused("\"noaux_tc\"", "\"greedy\"", "topk_method 'greedy' with scoring_func 'sigmoid'");
  refused("\"num_key_value_heads\": 128", "\"num_key_value_heads\": 8", "num_key_value_heads 8");
  refused("\"yarn\"", "\"linear\"", "type 'linear'");
  refused("\"fp8\"", "\"awq\"", "quant_method 'awq'");
  refused("\"e4m3\"", "\"e5m2\"", "fmt 'e5m2'");
  refused("[128, 128]", "[64, 64]", "weight_block_size");
  refused("\"dynamic\"", "\"static\"", "activation_scheme 'static'");
}

}  // namespace
}  // namespace hadal
