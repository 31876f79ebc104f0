// A rank with graphs against one without: the same plans give the same tokens and the same
// log-probabilities to the bit, whatever the padding, with one step in flight or two. The same
// cases run on a GPU (HADAL_TEST_GPU) with graphs of CUDA.
#include "rank_worker.h"

#include <cstdio>
#include <cstdlib>

#include "catch.h"
#include "decode_row.h"
#include "model_setup.h"
#include "replay_backend.h"
#include "small_model.h"

namespace hadal {
namespace {

constexpr int32_t kSlots = 6;
constexpr int32_t kPagesPerSlot = 2;

std::unique_ptr<Backend> make_test_backend() {
#ifdef HADAL_TEST_GPU
  auto made = make_cuda_backend({});
  if (!made) {
    std::printf("skipped: %s\n", made.error().message.c_str());
    std::fflush(stdout);
    std::_Exit(77);  // SKIP_RETURN_CODE
  }
  return std::move(made).value();
#else
  return std::make_unique<ReplayBackend>(CpuBackendConfig{.num_threads = 1});
#endif
}

/// A loaded rank of a world of one.
struct Rank {
  std::unique_ptr<RankWorker> worker;
  CaptureReport captured;

  explicit Rank(const GraphConfig& graphs) {
    const ModelDir dir;
    ModelRunnerConfig config;
    config.model_dir = dir.path;
    config.load_format = LoadFormat::dummy;
    config.max_slots = kSlots;
    auto setup = make_setup(config);
    REQUIRE(setup);
    worker = std::make_unique<RankWorker>(make_test_backend(), make_self_communicator());
    REQUIRE(worker->load({.config = setup.value().model,
                          .layout = setup.value().layouts.front(),
                          .weights = *setup.value().weights,
                          .backend = worker->backend(),
                          .max_positions = kPagesPerSlot * kPageTokens}));
    REQUIRE(worker->prepare({.limits = {.num_pages = kSlots * kPagesPerSlot,
                                        .max_step_tokens = 128,
                                        .max_slots = kSlots,
                                        .max_context_tokens = kPagesPerSlot * kPageTokens,
                                        .vocab_size = 1000},
                             .graphs = graphs}));
    auto report = worker->capture_graphs();
    REQUIRE(report);
    captured = std::move(report).value();
  }
};

/// Makes plans as a scheduler would; every row samples and wants its log-probability.
class Planner {
 public:
  BatchPlan prefill(SlotId slot, int32_t num_tokens, const SamplingParams& sampling) {
    BatchPlan plan = begin();
    SlotUpdate update;
    update.slot = slot;
    update.reset.emplace();
    update.reset->sampling = sampling;
    update.reset->sampling.num_top_logprobs = 2;
    update.reset->num_prompt_tokens = num_tokens;
    for (int32_t i = 0; i < num_tokens; ++i) {
      plan.tokens.push_back((slot * 131 + i * 17) % 1000);
    }
    update.reset->history = plan.tokens;
    for (int32_t i = 0; i < kPagesPerSlot; ++i) {
      update.append_pages.push_back(slot * kPagesPerSlot + i);
    }
    plan.slot_updates.push_back(std::move(update));
    plan.rows.push_back({.slot = slot,
                         .num_tokens = num_tokens,
                         .form = AttentionForm::prompt,
                         .num_logits = 1,
                         .sample = true});
    lengths_[static_cast<size_t>(slot)] = num_tokens;
    return plan;
  }

  BatchPlan decode(std::initializer_list<SlotId> slots) {
    BatchPlan plan = begin();
    for (const SlotId slot : slots) {
      add_decode(plan, slot, lengths_[static_cast<size_t>(slot)]++);
    }
    return plan;
  }

 private:
  BatchPlan begin() {
    BatchPlan plan;
    plan.step_id = next_step_++;
    return plan;
  }

  uint64_t next_step_ = 0;
  std::array<int32_t, kSlots> lengths_{};
};

SamplingParams greedy() {
  SamplingParams params;
  params.temperature = 0.0F;
  return params;
}

SamplingParams penalised() {
  SamplingParams params;
  params.seed = 5;
  params.temperature = 0.7F;
  params.repetition_penalty = 1.3F;
  params.frequency_penalty = 0.4F;
  return params;
}

/// Prompts, decodes of changing batches across a page's end, a slot taken over on the way.
std::vector<BatchPlan> make_plans() {
  Planner planner;
  std::vector<BatchPlan> plans;
  for (SlotId slot = 0; slot < kSlots; ++slot) {
    plans.push_back(planner.prefill(slot, 55 + 3 * slot, slot % 2 == 0 ? greedy() : penalised()));
  }
  for (int32_t i = 0; i < 4; ++i) {
    plans.push_back(planner.decode({0, 1, 2}));
    plans.push_back(planner.decode({5, 2, 0, 3, 4}));
    plans.push_back(planner.decode({1}));
  }
  plans.push_back(planner.prefill(2, 20, penalised()));
  plans.push_back(planner.decode({2, 4}));
  plans.push_back(planner.decode({0, 1, 2, 3, 4, 5}));
  return plans;
}

constexpr int32_t kDecodes = 14;

void require_same(const StepResult& found, const StepResult& wanted) {
  REQUIRE(found.step_id == wanted.step_id);
  REQUIRE(found.rows.size() == wanted.rows.size());
  for (size_t r = 0; r < found.rows.size(); ++r) {
    const RowResult& row = found.rows[r];
    const RowResult& other = wanted.rows[r];
    REQUIRE_FALSE(row.has_nan);
    REQUIRE(row.slot == other.slot);
    REQUIRE(row.token == other.token);
    REQUIRE(row.logprob == other.logprob);
    REQUIRE(row.top.size() == 2);
    for (size_t t = 0; t < row.top.size(); ++t) {
      REQUIRE(row.top[t].token == other.top[t].token);
      REQUIRE(row.top[t].logprob == other.top[t].logprob);
    }
  }
}

std::vector<StepResult> run_one_by_one(Rank& rank, const std::vector<BatchPlan>& plans) {
  std::vector<StepResult> results;
  for (const BatchPlan& plan : plans) {
    auto result = rank.worker->run(plan);
    REQUIRE(result);
    results.push_back(std::move(result).value());
  }
  return results;
}

TEST_CASE("rank: padded replays give what op by op gives", "[runtime]") {
  const std::vector<BatchPlan> plans = make_plans();
  Rank plain({.is_enabled = false});
  CHECK(plain.captured.batches.empty());
  const std::vector<StepResult> wanted = run_one_by_one(plain, plans);
  CHECK(plain.worker->counts().replayed == 0);
  CHECK(plain.worker->counts().plain_decodes == kDecodes);
  CHECK(plain.worker->counts().plain_others == kSlots + 1);

  // Batches of 1 to 6 in graphs of 1, 4 and 6 rows.
  Rank graphs({.batches = {1, 4, 6}});
  CHECK(graphs.captured.batches == std::vector<int32_t>{1, 4, 6});
  CHECK(graphs.captured.lengths == std::vector<int32_t>{kPagesPerSlot * kPageTokens});
  const std::vector<StepResult> found = run_one_by_one(graphs, plans);
  CHECK(graphs.worker->counts().replayed == kDecodes);
  CHECK(graphs.worker->counts().plain_decodes == 0);
  CHECK(graphs.worker->counts().plain_others == kSlots + 1);
  for (size_t i = 0; i < plans.size(); ++i) {
    require_same(found[i], wanted[i]);
  }
}

TEST_CASE("rank: two steps in flight give what one gives", "[runtime]") {
  const std::vector<BatchPlan> plans = make_plans();
  Rank serial({});
  const std::vector<StepResult> wanted = run_one_by_one(serial, plans);
  Rank ahead({});
  REQUIRE(ahead.worker->submit(plans[0]));
  for (size_t i = 0; i < plans.size(); ++i) {
    if (i + 1 < plans.size()) {
      REQUIRE(ahead.worker->submit(plans[i + 1]));
    }
    const auto result = ahead.worker->collect();
    REQUIRE(result);
    require_same(result.value(), wanted[i]);
    CHECK(result.value().device_busy_s > 0.0);
    CHECK(result.value().device_idle_s >= 0.0);
    CHECK((result.value().device_idle_s > 0.0) == (i > 0));
  }
}

TEST_CASE("rank: without padding only captured batches replay", "[runtime]") {
  const std::vector<BatchPlan> plans = make_plans();
  Rank rank({.batches = {3, 6}, .pads = false});
  (void)run_one_by_one(rank, plans);
  CHECK(rank.worker->counts().replayed == 5);
  CHECK(rank.worker->counts().plain_decodes == kDecodes - 5);
}

TEST_CASE("rank: a step may have a graph of its own", "[runtime]") {
  const std::vector<BatchPlan> plans = make_plans();
  Rank plain({.is_enabled = false});
  Rank fresh({.is_enabled = false});
  for (const BatchPlan& plan : plans) {
    const auto wanted = plain.worker->run(plan);
    const auto found = fresh.worker->run(plan, StepMode::fresh_graph);
    REQUIRE(wanted);
    REQUIRE(found);
    require_same(found.value(), wanted.value());
  }
  CHECK(fresh.worker->counts().replayed == kDecodes);
}

TEST_CASE("rank: many histories in one plan, more than one upload holds", "[runtime]") {
  // Each of the histories fills most of an upload; one slot is taken over twice.
  Rank rank({});
  Rank other({});
  Planner planner;
  BatchPlan all;
  for (const SlotId slot : {0, 1, 2, 3, 3}) {
    BatchPlan one = planner.prefill(slot, 20, penalised());
    SlotReset& reset = *one.slot_updates.front().reset;
    for (int32_t i = 0; i < 80; ++i) {
      reset.history.push_back((slot + i) % 1000);
    }
    if (slot == 3 && !all.rows.empty() && all.rows.back().slot == 3) {
      all.slot_updates.push_back(one.slot_updates.front());
      continue;
    }
    all.slot_updates.push_back(one.slot_updates.front());
    all.rows.push_back(one.rows.front());
    all.tokens.insert(all.tokens.end(), one.tokens.begin(), one.tokens.end());
  }
  const auto together = rank.worker->run(all);
  REQUIRE(together);
  Planner again;
  for (const SlotId slot : {0, 1, 2, 3}) {
    BatchPlan one = again.prefill(slot, 20, penalised());
    for (int32_t i = 0; i < 80; ++i) {
      one.slot_updates.front().reset->history.push_back((slot + i) % 1000);
    }
    const auto alone = other.worker->run(one);
    REQUIRE(alone);
    const RowResult& found = together.value().rows[static_cast<size_t>(slot)];
    CHECK(found.token == alone.value().rows.front().token);
    CHECK(found.logprob == alone.value().rows.front().logprob);
  }
}

}  // namespace
}  // namespace hadal
