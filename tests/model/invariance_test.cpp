// A token's logits depend on its sequence alone, to the bit: not on the batch, the chunk, the
// pages, or on whether generated tokens are computed one by one or again after a retraction.
#include "catch.h"
#include "tiny_model.h"

namespace hadal::tiny {
namespace {

struct Fixture {
  DeepseekConfig config;
  std::unique_ptr<WeightStore> weights = make_dummy_weights(5);
  HarnessConfig options;

  Fixture(const std::string& variant, CpuMode mode, DType kv_dtype) : config(config_of(variant)) {
    options.mode = mode;
    options.kv_dtype = kv_dtype;
  }

  Harness harness() const { return Harness(config, *weights, options); }

  std::vector<int32_t> tokens(uint32_t seed, size_t count) const {
    return random_tokens(seed, count, config.vocab_size);
  }
};

void check_invariance(const Fixture& f) {
  const std::vector<int32_t> prompt = f.tokens(1, 150);
  Harness alone = f.harness();
  const Logits whole = alone.run({{prompt, 0, AttentionForm::prompt, {0, 1, 2}}});

  SECTION("chunks") {
    Harness other = f.harness();
    Logits found;
    size_t at = 0;
    for (const size_t size : {1U, 63U, 7U, 50U, 29U}) {
      const Row row{{prompt.begin() + static_cast<std::ptrdiff_t>(at),
                     prompt.begin() + static_cast<std::ptrdiff_t>(at + size)},
                    static_cast<int32_t>(at),
                    AttentionForm::prompt,
                    {0, 1, 2}};
      for (auto& logits : other.run({row})) {
        found.push_back(std::move(logits));
      }
      at += size;
    }
    CHECK((found == whole));
  }
  SECTION("pages") {
    Harness other = f.harness();
    CHECK((other.run({{prompt, 0, AttentionForm::prompt, {11, 4, 7}}}) == whole));
  }
  SECTION("batch and recomputation") {
    // One sequence generates alone; then the same tokens ride in a batch, and are recomputed in one
    // row.
    const std::vector<int32_t> answer = f.tokens(2, 20);
    Logits steps;
    for (size_t i = 0; i < answer.size(); ++i) {
      const auto begin = static_cast<int32_t>(prompt.size() + i);
      steps.push_back(
          alone.run({{{answer[i]}, begin, AttentionForm::generated, {0, 1, 2}}}).front());
    }
    Harness batch = f.harness();
    const std::vector<int32_t> second = f.tokens(3, 70);
    const std::vector<int32_t> third = f.tokens(4, 5);
    const auto begin = static_cast<int32_t>(prompt.size());
    const Logits mixed = batch.run({{second, 0, AttentionForm::prompt, {5, 6}},
                                    {prompt, 0, AttentionForm::prompt, {8, 9, 10}},
                                    {answer, begin, AttentionForm::generated, {8, 9, 10}},
                                    {third, 0, AttentionForm::prompt, {7}}});
    const auto part = [&](size_t from, size_t count) {
      return Logits(mixed.begin() + static_cast<std::ptrdiff_t>(from),
                    mixed.begin() + static_cast<std::ptrdiff_t>(from + count));
    };
    CHECK((part(second.size(), prompt.size()) == whole));
    CHECK((part(second.size() + prompt.size(), answer.size()) == steps));
  }
}

TEST_CASE("model: exact mode is invariant to batch, chunk and pages", "[model]") {
  check_invariance(Fixture("v3_fp8", CpuMode::exact, DType::f32));
}

TEST_CASE("model: fast mode is invariant to batch, chunk and pages", "[model]") {
  check_invariance(Fixture("v3_fp8", CpuMode::fast, DType::bf16));
}

TEST_CASE("model: fast mode with FP8 pages is invariant, too", "[model]") {
  check_invariance(Fixture("v3_fp8", CpuMode::fast, DType::f8_e4m3));
}

TEST_CASE("model: fast mode without quantisation is invariant, too", "[model]") {
  check_invariance(Fixture("v2_lite", CpuMode::fast, DType::bf16));
}

TEST_CASE("model: E4M3 activations are near the exact ones and not equal to them", "[model]") {
  Fixture f("v3_fp8", CpuMode::exact, DType::f32);
  const std::vector<int32_t> prompt = f.tokens(6, 40);
  const Row row{prompt, 0, AttentionForm::prompt, {0}};
  const Logits exact = f.harness().run({row});
  f.options.e4m3_activations = true;
  const Logits rounded = f.harness().run({row});
  CHECK_FALSE((exact == rounded));
  const std::vector<double> expected(exact.front().begin(), exact.front().end());
  CHECK(relative_error(rounded.front(), expected) < 0.2);
}

}  // namespace
}  // namespace hadal::tiny
