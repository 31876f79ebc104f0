// The goldens on the CUDA backend, teacher-forced: BF16 between ops, BF16 pages. With BF16 inputs
// of FP8 linears it stands near float32; with E4M3 inputs and 1x128 scales the size of their noise
// is held.
#include <cstdio>

#include "golden_model.h"

namespace hadal::tiny {
namespace {

/// KL divergence of `found` from a golden row, over the golden's best tokens.
double golden_kl(const GoldenRows& golden, size_t row, const std::vector<float>& found) {
  const double found_lse = log_sum_exp(found);
  double sum = 0.0;
  for (size_t i = row * golden.top; i < (row + 1) * golden.top; ++i) {
    const double log_p = golden.logits[i] - golden.lse[row];
    sum += std::exp(log_p) * (log_p - (found[static_cast<size_t>(golden.ids[i])] - found_lse));
  }
  return sum;
}

double mean_kl(const GoldenRows& golden, const Logits& found) {
  double sum = 0.0;
  for (size_t r = 0; r < golden.lse.size(); ++r) {
    sum += golden_kl(golden, r, found[r]);
  }
  return sum / static_cast<double>(golden.lse.size());
}

HarnessConfig gpu_options(const GoldenModel& model) {
  HarnessConfig options = options_for(model);
  options.device = DeviceType::cuda;
  options.kv_dtype = DType::bf16;
  return options;
}

void check_on_gpu(const GoldenModel& model, DType kv_dtype) {
  HarnessConfig options = gpu_options(model);
  options.kv_dtype = kv_dtype;
  Harness harness(model.config, *model.weights, options);
  for (const auto& [prompt, facts] : model.entry.at("prompts").items()) {
    const auto num_prompt = facts.at("prompt_tokens").get<size_t>();
    const auto ids = model.file.array<int32_t>(prompt + ".ids");
    const Logits found = generate(harness, ids, num_prompt);
    const GoldenRows exact = read_rows(model.file, prompt, prompt);
    size_t same = 0;
    bool is_same_where_clear = true;
    for (size_t r = 0; r < exact.lse.size(); ++r) {
      const float* logits = exact.logits.data() + r * exact.top;
      const bool is_same = argmax(found[r]) == exact.ids[r * exact.top];
      same += is_same ? 1 : 0;
      is_same_where_clear = is_same_where_clear && (is_same || logits[0] - logits[1] <= 0.5F);
    }
    const double kl = mean_kl(exact, found);
    std::printf("golden %s %s, KV in %s: top-1 %zu of %zu, KL to float32 %.2e\n",
                model.name.c_str(),
                prompt.c_str(),
                std::string(to_string(kv_dtype)).c_str(),
                same,
                exact.lse.size(),
                kl);
    INFO(model.name << " " << prompt);
    CHECK(same + 2 >= exact.lse.size());
    CHECK(is_same_where_clear);
    CHECK(kl < 5e-3);
  }
}

TEST_CASE("goldens on the GPU: the same tokens, near distributions", "[gpu]") {
  for_each_model([](const GoldenModel& model) { check_on_gpu(model, DType::bf16); });
}

TEST_CASE("goldens on the GPU: with FP8 pages the same tokens, near distributions", "[gpu]") {
  for_each_model([](const GoldenModel& model) {
    // A dummy model's logits are flat: rounding its latents says nothing about a trained one.
    if (!model.entry.contains("dummy_seed")) {
      check_on_gpu(model, DType::f8_e4m3);
    }
  });
}

TEST_CASE("goldens on the GPU: E4M3 inputs make as much noise as the reference says", "[gpu]") {
  for_each_model([](const GoldenModel& model) {
    if (model.config.is_fp8) {
      check_rounding_noise(model, gpu_options(model), 4096);
    }
  });
}

}  // namespace
}  // namespace hadal::tiny
