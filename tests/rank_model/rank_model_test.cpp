// The model over processes: thread ranks' bits on any number of nodes, and one rank's answer within
// rounding.
#include "rank_model.h"

namespace hadal::tiny {
namespace {

/// A prompt of the variant's golden, then greedy tokens one by one; the logits of every row.
Logits generate(Harness& harness, const std::vector<int32_t>& prompt, int32_t count) {
  Row row{prompt, 0, AttentionForm::prompt, {3, 9}};
  Logits rows = harness.run({row});
  for (int32_t i = 0; i < count; ++i) {
    row = {{argmax(rows.back())},
           row.kv_begin + static_cast<int32_t>(row.tokens.size()),
           AttentionForm::generated,
           {3, 9}};
    rows.push_back(harness.run({row}).back());
  }
  return rows;
}

double worst_error(const Logits& found, const Logits& expected) {
  REQUIRE(found.size() == expected.size());
  double worst = 0.0;
  for (size_t r = 0; r < expected.size(); ++r) {
    const std::vector<double> row(expected[r].begin(), expected[r].end());
    worst = std::max(worst, relative_error(found[r], row));
  }
  return worst;
}

/// Half of R1's layout per head, cut as R1 is over 16 ranks: 2 heads and one FP8 block of every MLP
/// each.
DeepseekConfig r1_like_config() {
  nlohmann::json config = nlohmann::json::parse(config_text("v3_fp8"));
  config["hidden_size"] = 256;
  config["num_attention_heads"] = 32;
  config["num_key_value_heads"] = 32;
  config["q_lora_rank"] = 128;
  config["kv_lora_rank"] = 128;
  config["qk_nope_head_dim"] = 128;
  config["qk_rope_head_dim"] = 64;
  config["v_head_dim"] = 128;
  config["intermediate_size"] = 2048;
  config["moe_intermediate_size"] = 2048;
  config["num_hidden_layers"] = 2;
  auto parsed = parse_deepseek_config(config.dump());
  INFO((parsed ? std::string() : parsed.error().message));
  REQUIRE(parsed);
  return std::move(parsed).value();
}

TEST_CASE("process ranks: a model has the bits of thread ranks", "[ranks]") {
  for (const char* variant : {"v3_fp8", "v2_lite"}) {
    const DeepseekConfig config = config_of(variant);
    const auto weights = make_dummy_weights(0);
    const auto prompt = goldens().at(variant).at("prompt").get<std::vector<int32_t>>();
    Harness alone(config, *weights, {});
    const Logits one_rank = generate(alone, prompt, 4);
    const RankLayout layouts[] = {
        {2, 1, 2}, {4, 1, 2, AllReduce::hier}, {4, 1, 2, AllReduce::flat}, {4, 2, 4}, {4, 4, 1}};
    for (const RankLayout& layout : layouts) {
      INFO(variant << " tp " << layout.tp << " ep " << layout.ep << " node " << layout.node_size);
      Harness threads(config, *weights, {.tp = layout.tp, .ep = layout.ep});
      const Logits expected = generate(threads, prompt, 4);
      const std::string report =
          on_process_ranks(config, *weights, {}, layout, [&](Harness& harness) {
            return pack(generate(harness, prompt, 4));
          });
      const Logits found = unpack(report, static_cast<size_t>(config.vocab_size));
      CHECK((found == expected));
      CHECK(worst_error(found, one_rank) < 1e-4);
    }
  }
}

TEST_CASE("process ranks: R1's layout over 16 ranks equals one rank", "[ranks]") {
  const DeepseekConfig config = r1_like_config();
  const auto weights = make_dummy_weights(3);
  const std::vector<int32_t> prompt = {5, 17, 80, 2, 44, 9, 61, 33, 12};
  Harness alone(config, *weights, {});
  const Logits expected = generate(alone, prompt, 3);
  const RankLayout layouts[] = {{16, 1, 8}, {16, 4, 8}, {4, 2, 4}};
  for (const RankLayout& layout : layouts) {
    INFO("tp " << layout.tp << " ep " << layout.ep);
    const std::string report =
        on_process_ranks(config, *weights, {}, layout, [&](Harness& harness) {
          return pack(generate(harness, prompt, 3));
        });
    const Logits found = unpack(report, static_cast<size_t>(config.vocab_size));
    const double error = worst_error(found, expected);
    INFO("error " << error);
    CHECK(error < 1e-4);
    CHECK(error > 0.0);  // another order of additions: zero would mean that nothing was cut
  }
}

}  // namespace
}  // namespace hadal::tiny
