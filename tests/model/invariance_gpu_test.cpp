// On the GPU, too, a token's logits depend on its sequence alone, to the bit: hadal-mini, whose
// sizes take the kernels of the large models.
#include "golden_model.h"

namespace hadal::tiny {
namespace {

constexpr size_t kPromptTokens = 200;
constexpr size_t kAnswerTokens = 8;
constexpr int32_t kOthers = 64;

/// One sequence of the test, its tokens known beforehand.
struct Fixed {
  std::vector<int32_t> tokens;
  std::vector<int32_t> pages;

  Row row(size_t begin, size_t end, AttentionForm form) const {
    return {{tokens.begin() + static_cast<std::ptrdiff_t>(begin),
             tokens.begin() + static_cast<std::ptrdiff_t>(end)},
            static_cast<int32_t>(begin),
            form,
            pages};
  }
};

void append(Logits& all, Logits more) {
  std::move(more.begin(), more.end(), std::back_inserter(all));
}

class Invariance {
 public:
  Invariance(const GoldenModel& model, bool rounds_inputs, DType kv_dtype) : model_(model) {
    options_ = options_for(model);
    options_.device = DeviceType::cuda;
    options_.kv_dtype = kv_dtype;
    options_.e4m3_activations = rounds_inputs;
    options_.num_pages = 8 + 2 * kOthers;
    sequence_ = {random_tokens(1, kPromptTokens + kAnswerTokens, model.config.vocab_size),
                 {3, 0, 7, 5}};
  }

  /// Prompt in these chunks, then one token a step: a row of logits a token.
  Logits alone(const std::vector<size_t>& chunks) const {
    Harness harness(model_.config, *model_.weights, options_);
    Logits found;
    size_t at = 0;
    for (const size_t size : chunks) {
      append(found, harness.run({sequence_.row(at, at + size, AttentionForm::prompt)}));
      at += size;
    }
    for (; at < sequence_.tokens.size(); ++at) {
      append(found, harness.run({sequence_.row(at, at + 1, AttentionForm::generated)}));
    }
    return found;
  }

  /// The same while others generate, and some begin with it.
  Logits among_others() const {
    Harness harness(model_.config, *model_.weights, options_);
    std::vector<Fixed> others;
    for (int32_t i = 0; i < kOthers; ++i) {
      const auto length = static_cast<size_t>(3 + i % 40);
      others.push_back({random_tokens(100 + static_cast<uint32_t>(i),
                                      length + kAnswerTokens + 1,
                                      model_.config.vocab_size),
                        {8 + 2 * i, 9 + 2 * i}});
    }
    std::vector<size_t> done(others.size(), 0);
    // The prompt of each, then one token a step; the sequence's own row lies in the middle.
    const auto step = [&](const Row* own, bool is_early) {
      std::vector<Row> rows;
      size_t num_tokens = 0;
      size_t own_begin = 0;
      const auto add = [&](Row row) {
        num_tokens += row.tokens.size();
        rows.push_back(std::move(row));
      };
      for (size_t i = 0; i < others.size(); ++i) {
        if (own != nullptr && i == others.size() / 2) {
          own_begin = num_tokens;
          add(*own);
        }
        if (is_early && i % 3 == 0) {
          continue;  // begins with the sequence
        }
        const bool is_new = done[i] == 0;
        const size_t end = is_new ? others[i].tokens.size() - kAnswerTokens - 1 : done[i] + 1;
        add(others[i].row(done[i], end, is_new ? AttentionForm::prompt : AttentionForm::generated));
        done[i] = end;
      }
      const Logits all = harness.run(rows);
      const auto begin = all.begin() + static_cast<std::ptrdiff_t>(own_begin);
      return own == nullptr
                 ? Logits{}
                 : Logits(begin, begin + static_cast<std::ptrdiff_t>(own->tokens.size()));
    };
    (void)step(nullptr, true);
    const Row prompt = sequence_.row(0, kPromptTokens, AttentionForm::prompt);
    Logits found = step(&prompt, false);
    for (size_t at = kPromptTokens; at < sequence_.tokens.size(); ++at) {
      const Row row = sequence_.row(at, at + 1, AttentionForm::generated);
      append(found, step(&row, false));
    }
    return found;
  }

 private:
  const GoldenModel& model_;
  HarnessConfig options_;
  Fixed sequence_;
};

}  // namespace

TEST_CASE("invariance on the GPU: the same bits alone, among 64 others, in chunks and cached",
          "[gpu]") {
  for_each_model([](const GoldenModel& model) {
    if (model.entry.contains("dummy_seed")) {
      return;
    }
    for (const auto& [rounds_inputs, kv_dtype] : {std::pair{false, DType::bf16},
                                                  std::pair{true, DType::bf16},
                                                  std::pair{false, DType::f8_e4m3}}) {
      INFO((rounds_inputs ? "E4M3" : "BF16") << " inputs, KV in " << to_string(kv_dtype));
      const Invariance test(model, rounds_inputs, kv_dtype);
      const Logits whole = test.alone({kPromptTokens});
      CHECK((test.among_others() == whole));
      CHECK((test.alone({64, 64, 72}) == whole));
      CHECK((test.alone({128, 72}) == whole));
      CHECK((test.alone({1, 62, 70, 67}) == whole));
    }
  });
}

}  // namespace hadal::tiny
