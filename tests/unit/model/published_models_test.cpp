// configs/models against what is known of the published checkpoints: sizes a rank of each layout
// reads, and the facts of which a wrong one would go unnoticed in a benchmark.
#include <string>

#include <hadal/model/model.h>

#include "catch.h"

namespace hadal {
namespace {

DeepseekConfig published(const std::string& name) {
  auto config = load_deepseek_config(std::string(HADAL_SOURCE_DIR) + "/configs/models/" + name);
  REQUIRE(config);
  return std::move(config).value();
}

/// GB that one rank reads, MTP layers left out.
double rank_gigabytes(const DeepseekConfig& config, int32_t tp) {
  const auto layout = make_parallel_layout(tp, 1, 0);
  REQUIRE(layout);
  REQUIRE(check_layout(config, layout.value()));
  int64_t bytes = 0;
  for (const WeightBytes& group : count_weight_bytes(config, layout.value(), false)) {
    bytes += group.bytes;
  }
  return static_cast<double>(bytes) / 1e9;
}

TEST_CASE("published models: R1", "[model]") {
  const DeepseekConfig r1 = published("deepseek-r1");
  CHECK(r1.is_fp8);
  CHECK(r1.num_nextn_predict_layers == 1);
  CHECK(rank_gigabytes(r1, 16) == Approx(43.13).epsilon(0.001));
  CHECK(rank_gigabytes(r1, 8) == Approx(85.12).epsilon(0.001));
  CHECK(r1.num_hidden_layers * r1.kv_record(DType::bf16).size_bytes() == 70272);
  CHECK(r1.kv_record(DType::f8_e4m3).size_bytes() == 656);
  CHECK(r1.num_hidden_layers * r1.kv_record(DType::f8_e4m3).size_bytes() == 40016);
  CHECK(softmax_scale(r1) == Approx(0.135234).epsilon(1e-5));
  CHECK(check_fp8_blocks(r1, make_parallel_layout(16, 1, 0).value()));
}

TEST_CASE("published models: Kimi-K2", "[model]") {
  const DeepseekConfig kimi = published("kimi-k2");
  CHECK(kimi.is_fp8);
  CHECK(kimi.n_routed_experts == 384);
  // Three matrices an expert, 60 layers: 1,014.7 of its 1,026.4 billion parameters.
  const double experts = 60.0 * 384 * 3 * 2048 * 7168;
  CHECK(rank_gigabytes(kimi, 1) * 1e9 > experts);
  CHECK(rank_gigabytes(kimi, 1) == Approx(1029.2).epsilon(0.005));
  CHECK(check_fp8_blocks(kimi, make_parallel_layout(16, 1, 0).value()));
}

TEST_CASE("published models: the 16 B models in BF16", "[model]") {
  const DeepseekConfig lite = published("deepseek-v2-lite");
  CHECK_FALSE(lite.is_fp8);
  CHECK(lite.q_lora_rank == 0);
  CHECK(rank_gigabytes(lite, 1) == Approx(2 * 15.706).epsilon(0.001));
  const DeepseekConfig moonlight = published("moonlight-16b-a3b");
  CHECK_FALSE(moonlight.is_fp8);
  CHECK(moonlight.scoring_func == ScoringFunc::sigmoid);
  CHECK_FALSE(moonlight.yarn);
  CHECK(rank_gigabytes(moonlight, 1) == Approx(2 * 15.96).epsilon(0.002));
}

}  // namespace
}  // namespace hadal
