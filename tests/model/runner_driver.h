// A minimal engine for tests: takes sequences through a Runner with whole prompts first, then
// decode steps, each step submitted before the one ahead is waited for.
#pragma once

#include <filesystem>
#include <fstream>
#include <map>

#include <hadal/runtime/model_runner.h>

#include "catch.h"
#include "tiny_model.h"

namespace hadal::tiny {

/// A directory with a config.json, removed with the object.
class ModelDirectory {
 public:
  explicit ModelDirectory(const std::string& config) {
    std::string pattern = (std::filesystem::temp_directory_path() / "hadal-model-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
    std::ofstream(path_ / "config.json") << config;
  }

  ModelDirectory(const ModelDirectory&) = delete;
  ModelDirectory& operator=(const ModelDirectory&) = delete;

  ~ModelDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline ModelRunnerConfig tiny_runner_config(const std::filesystem::path& directory) {
  ModelRunnerConfig config;
  config.model_dir = directory;
  config.load_format = LoadFormat::dummy;
  config.cpu_mode = CpuMode::exact;
  config.allow_cut_blocks = true;
  config.num_threads = 1;
  config.max_total_tokens = 64 * 48;
  config.max_slots = 8;
  config.max_step_tokens = 512;
  return config;
}

inline std::unique_ptr<Runner> make_tiny_runner(const ModelRunnerConfig& config) {
  auto runner = make_model_runner(config);
  INFO((runner ? std::string() : runner.error().message));
  REQUIRE(runner);
  return std::move(runner).value();
}

/// One sequence and what came of it.
struct Sequence {
  std::vector<TokenId> prompt;
  SamplingParams sampling;
  std::vector<RowResult> results;  ///< one a generated token

  std::vector<TokenId> tokens() const {
    std::vector<TokenId> ids;
    for (const RowResult& result : results) {
      ids.push_back(result.token);
    }
    return ids;
  }
};

class Driver {
 public:
  explicit Driver(Runner& runner) : runner_(runner) {}

  /// Generates `count` tokens for all sequences together; decode tokens never visit the host.
  void generate(std::vector<Sequence>& sequences, int32_t count) {
    BatchPlan plan = next_plan();
    for (size_t s = 0; s < sequences.size(); ++s) {
      const auto size = static_cast<int32_t>(sequences[s].prompt.size());
      SlotUpdate update;
      update.slot = static_cast<SlotId>(s);
      update.reset = SlotReset{sequences[s].sampling, sequences[s].prompt, size};
      for (int32_t page = 0; page * kPageTokens < size + count; ++page) {
        update.append_pages.push_back(next_page_++);
      }
      plan.slot_updates.push_back(update);
      plan.rows.push_back({update.slot, 0, size, AttentionForm::prompt, 1, true});
      plan.tokens.insert(plan.tokens.end(), sequences[s].prompt.begin(), sequences[s].prompt.end());
    }
    REQUIRE(runner_.submit(plan));
    for (int32_t step = 1; step < count; ++step) {
      plan = next_plan();
      for (size_t s = 0; s < sequences.size(); ++s) {
        const auto at = static_cast<int32_t>(sequences[s].prompt.size()) + step - 1;
        plan.rows.push_back({static_cast<SlotId>(s), at, 1, AttentionForm::generated, 1, true});
        plan.tokens.push_back(kTokenFromDevice);
      }
      REQUIRE(runner_.submit(plan));
      take(sequences);
    }
    take(sequences);
  }

  /// Submits one plan and waits for it.
  Result<StepResult> step(BatchPlan plan) {
    plan.step_id = next_step_++;
    REQUIRE(runner_.submit(plan));
    return runner_.wait();
  }

 private:
  BatchPlan next_plan() {
    BatchPlan plan;
    plan.step_id = next_step_++;
    return plan;
  }

  void take(std::vector<Sequence>& sequences) {
    auto result = runner_.wait();
    INFO((result ? std::string() : result.error().message));
    REQUIRE(result);
    REQUIRE(result.value().rows.size() == sequences.size());
    for (size_t s = 0; s < sequences.size(); ++s) {
      CHECK_FALSE(result.value().rows[s].has_nan);
      sequences[s].results.push_back(result.value().rows[s]);
    }
  }

  Runner& runner_;
  uint64_t next_step_ = 7;
  PageId next_page_ = 0;
};

}  // namespace hadal::tiny
