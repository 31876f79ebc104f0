// An engine on the null runner with the tiny tokenizer: everything but a model.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include <hadal/api/server.h>
#include <hadal/engine/engine.h>
#include <hadal/metrics/metrics.h>
#include <hadal/runtime/runner.h>

#include "tiny_tokenizer.h"

namespace hadal_test {

/// A runner whose steps do not end while a test says so.
class HangingRunner final : public hadal::Runner {
 public:
  HangingRunner(std::unique_ptr<hadal::Runner> runner, std::atomic<bool>* hangs)
      : runner_(std::move(runner)), hangs_(hangs) {}

  const hadal::RunnerLimits& limits() const override { return runner_->limits(); }

  hadal::Status submit(const hadal::BatchPlan& plan) override { return runner_->submit(plan); }

  hadal::Result<hadal::StepResult> wait() override {
    while (hangs_->load()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return runner_->wait();
  }

 private:
  std::unique_ptr<hadal::Runner> runner_;
  std::atomic<bool>* hangs_;
};

struct NullEngineOptions {
  int64_t step_us = 0;
  int32_t num_pages = 256;
  int32_t max_slots = 16;
  int32_t max_context_tokens = 4096;
  int32_t max_queued_requests = 256;
  bool starts = true;
  std::atomic<bool>* hangs = nullptr;  ///< see HangingRunner; nullptr = never
};

class NullEngine {
 public:
  explicit NullEngine(const NullEngineOptions& options = {})
      : tokenizer_(make_tiny_tokenizer()), chat_template_(make_tiny_template()), registry_("tiny") {
    hadal::NullRunnerConfig runner;
    runner.step_us = options.step_us;
    runner.limits.num_pages = options.num_pages;
    runner.limits.max_step_tokens = 2048;
    runner.limits.max_slots = options.max_slots;
    runner.limits.max_context_tokens = options.max_context_tokens;
    runner.limits.vocab_size = TinyTokenizer::kVocabSize;
    runner.limits.max_steps_in_flight = 2;
    hadal::EngineConfig config;
    config.max_running_requests = options.max_slots;
    config.max_queued_requests = options.max_queued_requests;
    std::unique_ptr<hadal::Runner> made = hadal::make_null_runner(runner);
    if (options.hangs != nullptr) {
      made = std::make_unique<HangingRunner>(std::move(made), options.hangs);
    }
    engine_ = std::make_unique<hadal::Engine>(config, std::move(made), registry_.metrics());
    if (options.starts) {
      engine_->start();
    }
  }

  hadal::ServedModel served() {
    hadal::ServedModel model;
    model.engine = engine_.get();
    model.metrics = &registry_.metrics();
    model.tokenizer = &tokenizer_;
    model.chat_template = &chat_template_;
    model.eos_token_ids = {TinyTokenizer::kEos};
    model.context_length = engine_->limits().max_context_tokens;
    model.model_path = "/models/tiny";
    model.tokenizer_path = "/models/tiny";
    model.server_args_json = R"({"tp_size":1})";
    return model;
  }

  hadal::Engine& engine() { return *engine_; }

  const hadal::Tokenizer& tokenizer() const { return tokenizer_; }

  const hadal::MetricsRegistry& registry() const { return registry_; }

  /// What the null runner generates after `prompt` with `seed`, without stopping.
  std::vector<hadal::TokenId> tokens_after(size_t prompt_size, uint64_t seed, size_t count) const {
    std::vector<hadal::TokenId> tokens;
    for (size_t i = 0; i < count; ++i) {
      tokens.push_back(hadal::null_runner_token(
          seed, static_cast<int64_t>(prompt_size + i), TinyTokenizer::kVocabSize));
    }
    return tokens;
  }

  std::string text_of(const std::vector<hadal::TokenId>& tokens) const {
    hadal::TokenDecoder decoder(tokenizer_);
    std::string text;
    for (const hadal::TokenId id : tokens) {
      text += decoder.push(id);
    }
    return text + decoder.flush();
  }

 private:
  hadal::Tokenizer tokenizer_;
  hadal::ChatTemplate chat_template_;
  hadal::MetricsRegistry registry_;
  std::unique_ptr<hadal::Engine> engine_;
};

}  // namespace hadal_test
