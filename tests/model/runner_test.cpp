// The runner on tiny models: goldens through plans, layouts that agree token for token, sampling
// that does not see its batch, page copies, prompt log-probabilities, and plans that break the
// rules.
#include <random>

#include "catch.h"
#include "runner_driver.h"

namespace hadal::tiny {
namespace {

using Catch::Matchers::Contains;

std::vector<TokenId> random_prompt(uint32_t seed, size_t count) {
  std::mt19937 random(seed);
  std::vector<TokenId> tokens(count);
  for (TokenId& token : tokens) {
    token = static_cast<TokenId>(random() % 97);
  }
  return tokens;
}

SamplingParams greedy() {
  SamplingParams sampling;
  sampling.temperature = 0.0F;
  return sampling;
}

/// Sequences that use every sampling parameter between them.
std::vector<Sequence> mixed_sequences() {
  std::vector<Sequence> sequences;
  for (uint32_t i = 0; i < 6; ++i) {
    Sequence sequence;
    sequence.prompt = random_prompt(100 + i, 3 + 23 * i);
    SamplingParams& p = sequence.sampling;
    p.temperature = 0.6F + 0.2F * static_cast<float>(i % 3);
    p.seed = 1000 + i;
    p.top_p = i % 2 == 0 ? 0.9F : 1.0F;
    p.top_k = i == 3 ? 5 : 0;
    p.min_p = i == 4 ? 0.05F : 0.0F;
    p.frequency_penalty = i == 1 ? 0.7F : 0.0F;
    p.presence_penalty = i == 2 ? 0.5F : 0.0F;
    p.repetition_penalty = i == 5 ? 1.3F : 1.0F;
    p.num_top_logprobs = i == 0 ? 4 : -1;
    if (i == 1) {
      p.logit_bias = {{5, 3.0F}, {6, -100.0F}};
    }
    sequences.push_back(sequence);
  }
  return sequences;
}

TEST_CASE("runner: greedy answers equal transformers in every layout", "[runtime]") {
  for (const char* variant : {"v3_fp8", "v2_lite", "v2"}) {
    const ModelDirectory dir(config_text(variant));
    for (const auto& [tp, ep] : {std::pair{1, 1}, {2, 1}, {4, 2}}) {
      INFO(variant << " tp " << tp << " ep " << ep);
      ModelRunnerConfig config = tiny_runner_config(dir.path());
      config.tp = tp;
      config.ep = ep;
      const auto runner = make_tiny_runner(config);
      std::vector<Sequence> one(1);
      one[0].prompt = goldens().at(variant).at("prompt").get<std::vector<TokenId>>();
      one[0].sampling = greedy();
      Driver(*runner).generate(one, 24);
      CHECK(one[0].tokens() == goldens().at(variant).at("greedy").get<std::vector<TokenId>>());
    }
  }
}

#ifdef HADAL_SANITIZED
constexpr int32_t kSampledSteps = 10;  // a step takes 0.2 s under TSan
#else
constexpr int32_t kSampledSteps = 30;
#endif

TEST_CASE("runner: sampled answers are the same on 1, 2 and 4 ranks", "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));
  std::vector<std::vector<TokenId>> expected;
  for (const int32_t tp : {1, 2, 4}) {
    ModelRunnerConfig config = tiny_runner_config(dir.path());
    config.tp = tp;
    const auto runner = make_tiny_runner(config);
    std::vector<Sequence> sequences = mixed_sequences();
    Driver(*runner).generate(sequences, kSampledSteps);
    for (size_t s = 0; s < sequences.size(); ++s) {
      INFO("tp " << tp << " sequence " << s);
      if (tp == 1) {
        expected.push_back(sequences[s].tokens());
      } else {
        CHECK(sequences[s].tokens() == expected[s]);
      }
    }
  }
}

TEST_CASE("runner: a sequence alone and in a batch samples the same, log-probabilities included",
          "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));
  std::vector<Sequence> together = mixed_sequences();
  {
    const auto runner = make_tiny_runner(tiny_runner_config(dir.path()));
    Driver(*runner).generate(together, 20);
  }
  for (size_t s = 0; s < together.size(); ++s) {
    INFO("sequence " << s);
    const auto runner = make_tiny_runner(tiny_runner_config(dir.path()));
    std::vector<Sequence> alone{mixed_sequences()[s]};
    Driver(*runner).generate(alone, 20);
    CHECK(alone[0].tokens() == together[s].tokens());
    for (size_t i = 0; i < 20; ++i) {
      CHECK(alone[0].results[i].logprob == together[s].results[i].logprob);
      CHECK(alone[0].results[i].top.size() == together[s].results[i].top.size());
    }
  }
  CHECK(together[0].results[3].top.size() == 4);
  CHECK(together[0].results[3].top[0].logprob >= together[0].results[3].top[1].logprob);
}

TEST_CASE("runner: min_new_tokens keeps stop tokens away, and no longer", "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));
  const auto expected = goldens().at("v3_fp8").at("greedy").get<std::vector<TokenId>>();
  const auto runner = make_tiny_runner(tiny_runner_config(dir.path()));
  std::vector<Sequence> one(1);
  one[0].prompt = goldens().at("v3_fp8").at("prompt").get<std::vector<TokenId>>();
  one[0].sampling = greedy();
  one[0].sampling.min_new_tokens = 1;
  one[0].sampling.stop_tokens = {expected[0]};
  Driver(*runner).generate(one, 4);
  CHECK(one[0].tokens()[0] != expected[0]);
  std::vector<Sequence> two(1, one[0]);
  two[0].results.clear();
  two[0].sampling.min_new_tokens = 0;
  const auto other = make_tiny_runner(tiny_runner_config(dir.path()));
  Driver(*other).generate(two, 4);
  CHECK(two[0].tokens()[0] == expected[0]);
}

/// Plan with one slot's prompt row on the given pages.
BatchPlan prompt_plan(SlotId slot,
                      const std::vector<TokenId>& tokens,
                      int32_t kv_begin,
                      const std::vector<PageId>& pages,
                      const SamplingParams& sampling) {
  BatchPlan plan;
  plan.slot_updates.push_back(
      {slot, SlotReset{sampling, {}, static_cast<int32_t>(tokens.size())}, pages});
  const std::vector<TokenId> rest(tokens.begin() + kv_begin, tokens.end());
  plan.rows.push_back(
      {slot, kv_begin, static_cast<int32_t>(rest.size()), AttentionForm::prompt, 1, true});
  plan.tokens = rest;
  return plan;
}

/// A page copy must leave no trace in an answer, whatever the pages' format.
void check_copied_page(KvDtype kv_dtype) {
  const ModelDirectory dir(config_text("v3_bf16"));
  ModelRunnerConfig config = tiny_runner_config(dir.path());
  config.kv_dtype = kv_dtype;
  const auto runner = make_tiny_runner(config);
  Driver driver(*runner);
  SamplingParams sampling = greedy();
  sampling.num_top_logprobs = 0;
  const std::vector<TokenId> first = random_prompt(1, 120);
  std::vector<TokenId> second(first.begin(), first.begin() + 90);
  for (const TokenId token : random_prompt(2, 15)) {
    second.push_back(token);
  }
  const auto cold = driver.step(prompt_plan(0, second, 0, {10, 11}, sampling));
  REQUIRE(cold);
  REQUIRE(driver.step(prompt_plan(1, first, 0, {20, 21}, sampling)));
  BatchPlan reuse = prompt_plan(2, second, 90, {20, 30}, sampling);
  reuse.page_copies.push_back({21, 30, 90 - kPageTokens});
  const auto warm = driver.step(reuse);
  REQUIRE(warm);
  CHECK(warm.value().rows[0].token == cold.value().rows[0].token);
  CHECK(warm.value().rows[0].logprob == cold.value().rows[0].logprob);
}

TEST_CASE("runner: a copied page serves its first tokens exactly", "[runtime]") {
  check_copied_page(KvDtype::automatic);
  check_copied_page(KvDtype::fp8_e4m3);
}

TEST_CASE("runner: pages that went to the host tier and came back serve exactly", "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));
  for (const auto& [tp, kv_dtype] : {std::pair{1, KvDtype::automatic},
                                     std::pair{2, KvDtype::automatic},
                                     std::pair{2, KvDtype::fp8_e4m3}}) {
    ModelRunnerConfig config = tiny_runner_config(dir.path());
    config.tp = tp;
    config.kv_dtype = kv_dtype;
    config.host_cache_ratio = 0.25;
    const auto runner = make_tiny_runner(config);
    CHECK(runner->limits().num_host_pages == 12);
    Driver driver(*runner);
    SamplingParams sampling = greedy();
    sampling.num_top_logprobs = 0;
    const std::vector<TokenId> tokens = random_prompt(1, 140);
    const auto cold = driver.step(prompt_plan(0, tokens, 0, {10, 11, 12}, sampling));
    REQUIRE(cold);
    // Two pages leave, one to each rank's part of the tier, and others take their places.
    BatchPlan leave = prompt_plan(1, random_prompt(2, 128), 0, {10, 11}, sampling);
    leave.page_moves = {{11, 7, true}, {10, 4, true}};
    REQUIRE(driver.step(leave));
    BatchPlan back = prompt_plan(2, tokens, 2 * kPageTokens, {20, 21, 22}, sampling);
    back.page_moves = {{20, 4, false}, {21, 7, false}};
    const auto warm = driver.step(back);
    REQUIRE(warm);
    CHECK(warm.value().rows[0].token == cold.value().rows[0].token);
    CHECK(warm.value().rows[0].logprob == cold.value().rows[0].logprob);
  }
}

TEST_CASE("runner: prompt log-probabilities, whole and in chunks, on 1 and 2 ranks", "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));
  const std::vector<TokenId> prompt = random_prompt(3, 300);
  const auto size = static_cast<int32_t>(prompt.size());
  const auto weights = make_dummy_weights(0);
  Harness harness(config_of("v3_fp8"), *weights, {});
  const Logits logits = harness.run({{prompt, 0, AttentionForm::prompt, {0, 1, 2, 3, 4}}});
  for (const int32_t tp : {1, 2}) {
    ModelRunnerConfig config = tiny_runner_config(dir.path());
    config.tp = tp;
    const auto runner = make_tiny_runner(config);
    Driver driver(*runner);
    SamplingParams sampling = greedy();
    sampling.num_top_logprobs = 3;
    BatchPlan plan = prompt_plan(0, prompt, 0, {1, 2, 3, 4, 5}, sampling);
    plan.rows[0].num_logits = size;
    const auto whole = driver.step(plan);
    REQUIRE(whole);
    const RowResult& row = whole.value().rows.at(0);
    REQUIRE(row.prompt_logprobs.size() == prompt.size() - 1);
    for (size_t i = 0; i + 1 < prompt.size(); ++i) {
      double sum = 0.0;
      for (const float value : logits[i]) {
        sum += std::exp(static_cast<double>(value));
      }
      const double expected = logits[i][static_cast<size_t>(prompt[i + 1])] - std::log(sum);
      CHECK(row.prompt_logprobs[i].token == prompt[i + 1]);
      CHECK(row.prompt_logprobs[i].logprob == Approx(expected).epsilon(1e-4).margin(1e-4));
      REQUIRE(row.prompt_top[i].size() == 3);
      CHECK(row.prompt_top[i][0].token == argmax(logits[i]));
    }
    // A chunk of a prompt that is scored repeats its last token in the next chunk.
    BatchPlan head = plan;
    head.rows[0] = {0, 0, 130, AttentionForm::prompt, 130, false};
    head.tokens.resize(130);
    const auto first = driver.step(head);
    REQUIRE(first);
    BatchPlan tail;
    tail.rows.push_back({0, 129, size - 129, AttentionForm::prompt, size - 129, true});
    tail.tokens.assign(prompt.begin() + 129, prompt.end());
    const auto second = driver.step(tail);
    REQUIRE(second);
    std::vector<TokenLogprob> joined = first.value().rows[0].prompt_logprobs;
    CHECK(first.value().rows[0].token == -1);
    const auto& more = second.value().rows[0].prompt_logprobs;
    joined.insert(joined.end(), more.begin(), more.end());
    REQUIRE(joined.size() == row.prompt_logprobs.size());
    for (size_t i = 0; i < joined.size(); ++i) {
      CHECK(joined[i].logprob == row.prompt_logprobs[i].logprob);
    }
    CHECK(second.value().rows[0].token == row.token);
  }
}

TEST_CASE("runner: a plan that breaks the limits ends the group with one error", "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));

  struct Case {
    const char* says;
    std::function<void(BatchPlan&)> damage;
  };

  const Case cases[] = {
      {"page 48", [](BatchPlan& p) { p.slot_updates[0].append_pages = {48}; }},
      {"page -1", [](BatchPlan& p) { p.slot_updates[0].append_pages = {-1}; }},
      {"slot 8", [](BatchPlan& p) { p.slot_updates[0].slot = 8; }},
      {"have room for 64", [](BatchPlan& p) { p.rows[0].kv_begin = 60; }},
      {"token 97", [](BatchPlan& p) { p.tokens[3] = 97; }},
      {"token -2", [](BatchPlan& p) { p.tokens[3] = -2; }},
      {"rows of 10 tokens, but 11", [](BatchPlan& p) { p.tokens.push_back(1); }},
      {"num_logits 11", [](BatchPlan& p) { p.rows[0].num_logits = 11; }},
      {"copy of 65 tokens",
       [](BatchPlan& p) {
         p.page_copies.push_back({0, 1, 65});
       }},
      {"copy of 1 tokens from page 48",
       [](BatchPlan& p) {
         p.page_copies.push_back({48, 1, 1});
       }},
      {"move between page 1 and host page 0",
       [](BatchPlan& p) {
         p.page_moves.push_back({1, 0, true});
       }},
      {"logit_bias of token 97",
       [](BatchPlan& p) {
         p.slot_updates[0].reset->sampling.logit_bias = {{97, 1.0F}};
       }},
      {"step 3 after step 7", [](BatchPlan& p) { p.step_id = 3; }},
  };
  for (const Case& c : cases) {
    for (const int32_t tp : {1, 2}) {
      INFO(c.says << " tp " << tp);
      ModelRunnerConfig config = tiny_runner_config(dir.path());
      config.tp = tp;
      const auto runner = make_tiny_runner(config);
      BatchPlan plan = prompt_plan(0, random_prompt(1, 10), 0, {1}, greedy());
      plan.step_id = 7;
      REQUIRE(runner->submit(plan));
      REQUIRE(runner->wait());
      plan.step_id = 8;
      c.damage(plan);
      REQUIRE(runner->submit(plan));
      const auto result = runner->wait();
      REQUIRE_FALSE(result);
      CHECK(result.error().code == ErrorCode::data_loss);
      CHECK_THAT(result.error().message, Contains(c.says));
      REQUIRE(runner->submit(plan));
      CHECK_FALSE(runner->wait());
    }
  }
}

TEST_CASE("runner: configurations that cannot be are refused by name", "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));
  const auto refused = [&](const std::function<void(ModelRunnerConfig&)>& change,
                           const char* says) {
    ModelRunnerConfig config = tiny_runner_config(dir.path());
    change(config);
    const auto runner = make_model_runner(config);
    REQUIRE_FALSE(runner);
    CHECK_THAT(runner.error().message, Contains(says));
  };
  refused([](auto& c) { c.model_dir = "/nonexistent"; }, "/nonexistent");
  refused([](auto& c) { c.load_format = LoadFormat::automatic; }, "model.safetensors");
  refused([](auto& c) { c.tp = 3; }, "num_attention_heads 4");
  refused([](auto& c) { c.ep = 2; }, "ep 2 does not divide tp 1");
  refused(
      [](auto& c) {
        c.tp = 2;
        c.allow_cut_blocks = false;
      },
      "inside the checkpoint's 128 x 128 FP8 blocks; with --ep-size 1, --tp-size can be 1");
  refused([](auto& c) { c.context_length = 513; }, "--context-length: expected at most");
  refused([](auto& c) { c.memory_fraction = 0.0; }, "memory_fraction");
  refused([](auto& c) { c.max_step_tokens = 4; }, "max_step_tokens 4");
  refused([](auto& c) { c.max_total_tokens = int64_t{1} << 40; }, "KV pages");
  // No machine has so many GPUs, and a build without CUDA none.
  refused(
      [](auto& c) {
        c.device = DeviceType::cuda;
        c.base_gpu_id = 1000;
      },
      "CUDA");
}

TEST_CASE("runner: the memory plan adds up and matches what is built", "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));
  ModelRunnerConfig config = tiny_runner_config(dir.path());
  config.max_total_tokens = 0;
  const auto plan = plan_model_memory(config, int64_t{1} << 30);
  REQUIRE(plan);
  int64_t sum = 0;
  for (const WeightGroupBytes& group : plan.value().weights) {
    sum += group.bytes;
  }
  CHECK(sum == plan.value().weight_bytes);
  CHECK(plan.value().kv_bytes_per_token == 3 * 96 * 4);
  CHECK(plan.value().num_pages == 8 * 512 / kPageTokens);
  CHECK(plan.value().context_length == 512);
  CHECK_THAT(to_text(plan.value()), Contains("routed experts") && Contains("1152 bytes"));
  const auto runner = make_tiny_runner(config);
  CHECK(runner->limits().num_pages == plan.value().num_pages);
  CHECK_FALSE(plan_model_memory(config, 1000));
}

TEST_CASE("runner: FP8 pages are counted and built as FP8 records", "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));
  ModelRunnerConfig config = tiny_runner_config(dir.path());
  config.kv_dtype = KvDtype::fp8_e4m3;
  config.host_cache_ratio = 1.0;
  const auto plan = plan_model_memory(config, int64_t{1} << 30);
  REQUIRE(plan);
  const auto model = load_deepseek_config(dir.path());
  REQUIRE(model);
  // Codes, a scale, and the rope part in BF16: no padding at these sizes.
  REQUIRE(model.value().kv_lora_rank + model.value().qk_rope_head_dim == 96);
  const int64_t record = model.value().kv_lora_rank + 4 + 2 * model.value().qk_rope_head_dim;
  CHECK(plan.value().kv_bytes_per_token == 3 * record);
  const auto runner = make_tiny_runner(config);
  CHECK(runner->limits().page_bytes == 3 * record * kPageTokens);
}

/// The value that an error proposes for a flag.
double proposed(const std::string& message, const std::string& flag) {
  const size_t at = message.find(flag + " ");
  INFO(message);
  REQUIRE(at != std::string::npos);
  return std::stod(message.substr(at + flag.size() + 1));
}

TEST_CASE("runner: a plan that does not fit names flags with which it would", "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));
  ModelRunnerConfig config = tiny_runner_config(dir.path());
  config.max_slots = 128;
  config.max_step_tokens = 128 + 4096;
  config.max_total_tokens = 64 * 1024;
  const auto roomy = plan_model_memory(config, int64_t{1} << 40);
  REQUIRE(roomy);
  const int64_t fixed = roomy.value().fixed_bytes();
  const int64_t pages = config.max_total_tokens * roomy.value().kv_bytes_per_token;
  const auto error_at = [&](int64_t free_bytes) {
    const auto plan = plan_model_memory(config, free_bytes);
    REQUIRE_FALSE(plan);
    CHECK(plan.error().code == ErrorCode::resource_exhausted);
    return plan.error().message;
  };
  const auto fits = [&](int64_t free_bytes, const std::function<void(ModelRunnerConfig&)>& change) {
    ModelRunnerConfig changed = config;
    change(changed);
    return static_cast<bool>(plan_model_memory(changed, free_bytes));
  };

  // A little short: less KV, or a larger share of the memory.
  const auto near = static_cast<int64_t>(static_cast<double>(fixed + pages) / 0.9);
  const std::string little = error_at(near);
  const auto tokens = static_cast<int64_t>(proposed(little, "--max-total-tokens"));
  CHECK(tokens > config.max_total_tokens / 2);
  CHECK(fits(near, [&](auto& c) { c.max_total_tokens = tokens; }));
  CHECK_FALSE(fits(near, [&](auto& c) { c.max_total_tokens = tokens + kPageTokens; }));
  const double fraction = proposed(little, "--mem-fraction-static");
  CHECK(fraction <= 0.93);
  CHECK(fits(near, [&](auto& c) { c.memory_fraction = fraction; }));

  // No room for the work space of such steps.
  config.max_total_tokens = 0;
  const auto far = static_cast<int64_t>(static_cast<double>(fixed) * 0.8);
  const std::string much = error_at(far);
  const auto prefill = static_cast<int32_t>(proposed(much, "--max-prefill-tokens"));
  CHECK(fits(far, [&](auto& c) { c.max_step_tokens = c.max_slots + prefill; }));
  CHECK_FALSE(fits(far, [&](auto& c) { c.max_step_tokens = c.max_slots + 2 * prefill; }));

  CHECK_THAT(error_at(1000), Contains("no single flag would make it fit"));
  const auto runner = make_model_runner([&] {
    ModelRunnerConfig huge = config;
    huge.max_total_tokens = int64_t{1} << 40;
    return huge;
  }());
  REQUIRE_FALSE(runner);
  CHECK_THAT(runner.error().message, Contains("it would fit with --max-total-tokens"));
}

}  // namespace
}  // namespace hadal::tiny
