// hadal-mini and its three variants against the goldens of tests/data/goldens (transformers
// in float32 on dequantised weights): greedy tokens, every stored logit and log-sum-exp, the MTP
// layer, and the second set with activations rounded to E4M3.
#include <algorithm>
#include <functional>

#include "golden_model.h"

namespace hadal::tiny {
namespace {

constexpr double kTolerance = 1e-4;  ///< of the row's largest absolute logit

/// Largest error over rows, relative to each row's largest absolute logit.
double worst_error(const Logits& found, const GoldenRows& golden) {
  double worst = 0.0;
  for (size_t r = 0; r < golden.lse.size(); ++r) {
    double largest = 0.0;
    double error = std::abs(log_sum_exp(found[r]) - golden.lse[r]);
    for (const float value : found[r]) {
      largest = std::max(largest, std::abs(static_cast<double>(value)));
    }
    for (size_t i = r * golden.top; i < (r + 1) * golden.top; ++i) {
      const double value = found[r][static_cast<size_t>(golden.ids[i])];
      error = std::max(error, std::abs(value - golden.logits[i]));
    }
    worst = std::max(worst, std::isfinite(error) ? error / largest : INFINITY);
  }
  return worst;
}

using PromptLogits = std::map<std::string, Logits>;

/// Returns the logits of each prompt's rows.
PromptLogits check_prompts(const GoldenModel& model, const HarnessConfig& options, size_t longest) {
  PromptLogits all;
  Harness harness(model.config, *model.weights, options);
  for (const auto& [prompt, facts] : model.entry.at("prompts").items()) {
    const auto num_prompt = facts.at("prompt_tokens").get<size_t>();
    if (num_prompt > longest) {
      continue;
    }
    INFO(model.name << " " << prompt << " tp " << options.tp << " ep " << options.ep);
    const auto ids = model.file.array<int32_t>(prompt + ".ids");
    Logits found = generate(harness, ids, num_prompt);
    for (size_t i = 0; num_prompt + i < ids.size(); ++i) {
      CHECK(argmax(found[i]) == ids[num_prompt + i]);
    }
    CHECK(worst_error(found, read_rows(model.file, prompt, prompt)) < kTolerance);
    all[prompt] = std::move(found);
  }
  return all;
}

void check_mtp(const GoldenModel& model) {
  HarnessConfig options = options_for(model);
  options.with_mtp = true;
  Harness harness(model.config, *model.weights, options);
  for (const auto& [prompt, facts] : model.entry.at("prompts").items()) {
    const auto num_prompt = facts.at("prompt_tokens").get<size_t>();
    if (!model.file.has(prompt + ".mtp.lse") || num_prompt > 300) {
      continue;
    }
    INFO(model.name << " " << prompt << " MTP");
    Row row{
        model.file.array<int32_t>(prompt + ".ids"), 0, AttentionForm::prompt, {4, 2, 9, 7, 1, 5}};
    harness.run({row});
    row.tokens.erase(row.tokens.begin());
    const Logits all = harness.run_mtp({row});
    const Logits found(all.begin() + static_cast<std::ptrdiff_t>(num_prompt) - 1, all.end());
    CHECK(worst_error(found, read_rows(model.file, prompt + ".mtp", prompt + ".mtp")) < kTolerance);
  }
}

double kl_divergence(const std::vector<float>& exact, const std::vector<float>& found) {
  const double exact_lse = log_sum_exp(exact);
  const double found_lse = log_sum_exp(found);
  double sum = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double log_p = exact[i] - exact_lse;
    sum += std::exp(log_p) * (log_p - (found[i] - found_lse));
  }
  return sum;
}

/// Pages of fast mode, and how near exact mode they must stay.
struct FastPages {
  DType kv_dtype;
  double clear_gap;  ///< the same token wherever exact mode's best two logits are this far apart
  double
      mean_kl_max;  ///< of a prompt: a row where rounding turns a choice of experts moves further
};

double best_gap(std::vector<float> logits) {
  std::partial_sort(logits.begin(), logits.begin() + 2, logits.end(), std::greater<>());
  return static_cast<double>(logits[0]) - static_cast<double>(logits[1]);
}

void check_fast(const GoldenModel& model, const PromptLogits& exact, const FastPages& pages) {
  HarnessConfig options = options_for(model);
  options.mode = CpuMode::fast;
  options.kv_dtype = pages.kv_dtype;
  Harness fast(model.config, *model.weights, options);
  for (const auto& [prompt, expected] : exact) {
    const auto num_prompt = model.entry.at("prompts").at(prompt).at("prompt_tokens").get<size_t>();
    const auto ids = model.file.array<int32_t>(prompt + ".ids");
    const Logits found = generate(fast, ids, num_prompt);
    double sum = 0.0;
    INFO(model.name << " " << prompt << " fast, KV in " << to_string(pages.kv_dtype));
    for (size_t i = 0; num_prompt + i < ids.size(); ++i) {
      if (best_gap(expected[i]) >= pages.clear_gap) {
        CHECK(argmax(found[i]) == ids[num_prompt + i]);
      }
      sum += kl_divergence(expected[i], found[i]);
    }
    const double mean_kl = sum / static_cast<double>(ids.size() - num_prompt);
    CHECK(mean_kl < pages.mean_kl_max);
  }
}

TEST_CASE("goldens: exact mode equals transformers, fast mode stays near it", "[model]") {
  for_each_model([](const GoldenModel& model) {
    const PromptLogits exact = check_prompts(model, options_for(model), 4096);
    if (!model.entry.contains("dummy_seed")) {
      check_fast(model, exact, {DType::bf16, 0.0, 1e-3});
      check_fast(model, exact, {DType::f8_e4m3, 0.5, 2e-3});
    }
  });
}

TEST_CASE("goldens: exact mode equals transformers on several ranks", "[model]") {
  for_each_model([](const GoldenModel& model) {
    for (const auto& [tp, ep] : {std::pair{2, 1}, {4, 2}}) {
      HarnessConfig options = options_for(model);
      options.tp = tp;
      options.ep = ep;
      check_prompts(model, options, 100);
    }
  });
}

TEST_CASE("goldens: the MTP layer equals the reference", "[model]") {
  for_each_model([](const GoldenModel& model) {
    if (model.config.num_nextn_predict_layers > 0) {
      check_mtp(model);
    }
  });
}

TEST_CASE("goldens: rounding activations to E4M3 makes as much noise as the reference says",
          "[model]") {
  for_each_model([](const GoldenModel& model) {
    if (model.config.is_fp8) {
      check_rounding_noise(model, options_for(model), 300);
    }
  });
}

}  // namespace
}  // namespace hadal::tiny
