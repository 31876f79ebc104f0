// Tiny models against what Hugging Face transformers answers: every routing method, with and
// without q_lora_rank and YaRN, FP8 and BF16, in every layout; prompts in the prompt form, answers
// in the generated one.
#include "catch.h"
#include "tiny_model.h"

namespace hadal::tiny {
namespace {

constexpr double kTolerance = 1e-4;

void check_rows(const Logits& logits, const nlohmann::json& expected) {
  for (const auto& [position, row] : expected.items()) {
    INFO("position " << position);
    CHECK(relative_error(logits[std::stoul(position)], row.get<std::vector<double>>()) <
          kTolerance);
  }
}

void check_variant(const std::string& variant, int32_t tp, int32_t ep) {
  INFO(variant << " tp " << tp << " ep " << ep);
  const nlohmann::json& golden = goldens().at(variant);
  const DeepseekConfig config = config_of(variant);
  const auto weights = make_dummy_weights(0);
  Harness harness(config, *weights, {.tp = tp, .ep = ep});
  Row row{golden.at("prompt").get<std::vector<int32_t>>(), 0, AttentionForm::prompt, {3, 9}};
  const Logits prompt = harness.run({row});
  check_rows(prompt, golden.at("logits"));
  const auto expected = golden.at("greedy").get<std::vector<int32_t>>();
  std::vector<float> last = prompt.back();
  Logits steps;
  for (const int32_t token : expected) {
    steps.push_back(last);
    REQUIRE(argmax(last) == token);
    row = {{token},
           row.kv_begin + static_cast<int32_t>(row.tokens.size()),
           AttentionForm::generated,
           {3, 9}};
    last = harness.run({row}).back();
  }
  check_rows(steps, golden.at("greedy_logits"));
}

TEST_CASE("tiny models: equal transformers on one rank", "[model]") {
  for (const char* variant : {"v3_fp8", "v3_bf16", "v2_lite", "v2"}) {
    check_variant(variant, 1, 1);
  }
}

// A sanitizer looks for races and bad accesses: two routings and two layouts show them as well as
// all.
#ifdef HADAL_SANITIZED
const std::vector<const char*> kVariants = {"v3_fp8", "v2_lite"};
const std::vector<std::pair<int32_t, int32_t>> kLayouts = {{2, 1}, {4, 2}};
#else
const std::vector<const char*> kVariants = {"v3_fp8", "v3_bf16", "v2_lite", "v2"};
const std::vector<std::pair<int32_t, int32_t>> kLayouts = {{2, 1}, {2, 2}, {4, 1}, {4, 2}, {4, 4}};
#endif

TEST_CASE("tiny models: equal transformers in every layout", "[model]") {
  for (const char* variant : kVariants) {
    for (const auto& [tp, ep] : kLayouts) {
      check_variant(variant, tp, ep);
    }
  }
}

TEST_CASE("tiny models: the MTP layer equals its reference", "[model]") {
  for (const char* variant : {"v3_fp8", "v3_bf16"}) {
    for (const int32_t tp : {1, 2}) {
      INFO(variant << " tp " << tp);
      const nlohmann::json& golden = goldens().at(variant);
      const auto weights = make_dummy_weights(0);
      Harness harness(config_of(variant), *weights, {.tp = tp, .with_mtp = true});
      Row row{golden.at("prompt").get<std::vector<int32_t>>(), 0, AttentionForm::prompt, {1, 2}};
      harness.run({row});
      row.tokens.erase(row.tokens.begin());
      check_rows(harness.run_mtp({row}), golden.at("mtp_logits"));
    }
  }
}

}  // namespace
}  // namespace hadal::tiny
