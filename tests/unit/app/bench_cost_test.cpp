// The arithmetic behind the fractions that `bench` prints, against DeepSeek-R1's published sizes.
#include "bench_cost.h"

#include "catch.h"

using namespace hadal;

namespace {

DeepseekConfig deepseek_r1() {
  DeepseekConfig config;
  config.vocab_size = 129280;
  config.hidden_size = 7168;
  config.intermediate_size = 18432;
  config.num_hidden_layers = 61;
  config.num_attention_heads = 128;
  config.q_lora_rank = 1536;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 128;
  config.n_routed_experts = 256;
  config.n_shared_experts = 1;
  config.num_experts_per_tok = 8;
  config.moe_intermediate_size = 2048;
  config.first_k_dense_replace = 3;
  config.is_fp8 = true;
  return config;
}

}  // namespace

TEST_CASE("bench cost: R1 activates 37 billion parameters a token", "[app]") {
  const DeepseekConfig config = deepseek_r1();
  const double head = 129280.0 * 7168;
  // The published 37 B count embedding and head; here the head has two bytes a parameter.
  const double bytes = decode_step_bytes(config, 1, 0, DType::bf16);
  CHECK(bytes == Approx(37e9).epsilon(0.03));
  CHECK(prefill_flops(config, 1) / 2 == Approx(37e9 - 2 * head).epsilon(0.03));
}

TEST_CASE("bench cost: R1 holds 671 billion parameters", "[app]") {
  const DeepseekConfig config = deepseek_r1();
  const double all_experts = decode_step_bytes(config, 100'000, 0, DType::bf16);
  CHECK(all_experts == Approx(671e9).epsilon(0.01));
}

TEST_CASE("bench cost: KV grows by 70,272 bytes a token in BF16, 40,016 in FP8", "[app]") {
  const DeepseekConfig config = deepseek_r1();
  const auto grown = [&](int32_t batch, DType kv_type) {
    return decode_step_bytes(config, batch, 1000, kv_type) -
           decode_step_bytes(config, batch, 0, kv_type);
  };
  CHECK(grown(1, DType::bf16) == Approx(70'272'000.0).epsilon(1e-3));
  CHECK(grown(4, DType::f32) == Approx(4 * 2 * 70'272'000.0).epsilon(1e-3));
  CHECK(grown(1, DType::f8_e4m3) == Approx(61 * 656'000.0).epsilon(1e-3));
}

TEST_CASE("bench cost: attention makes long prompts dearer than linear", "[app]") {
  const DeepseekConfig config = deepseek_r1();
  CHECK(prefill_flops(config, 2048) > 2 * prefill_flops(config, 1024));
}
