// An engine on rank 0 with followers that map the same board: equal answers, and every way in which
// a follower can be wrong.
#include <atomic>
#include <thread>

#include <hadal/cluster/fanout_runner.h>
#include <hadal/engine/engine.h>
#include <hadal/metrics/metrics.h>

#include "../engine/collecting_sink.h"
#include "catch.h"

using namespace hadal;

namespace {

NullRunnerConfig null_config() {
  NullRunnerConfig config;
  config.step_us = 200;
  config.limits = {.num_pages = 64,
                   .max_step_tokens = 256,
                   .max_slots = 8,
                   .max_context_tokens = 1024,
                   .vocab_size = 1000,
                   .max_steps_in_flight = 2};
  return config;
}

/// Changes the token that is sampled at one step.
class WrongRunner final : public Runner {
 public:
  explicit WrongRunner(uint64_t step_id)
      : step_id_(step_id), own_(make_null_runner(null_config())) {}

  const RunnerLimits& limits() const override { return own_->limits(); }

  Status submit(const BatchPlan& plan) override { return own_->submit(plan); }

  Result<StepResult> wait() override {
    auto result = own_->wait();
    if (result && result.value().step_id == step_id_ && !result.value().rows.empty()) {
      result.value().rows[0].token ^= 1;
    }
    return result;
  }

 private:
  uint64_t step_id_;
  std::unique_ptr<Runner> own_;
};

/// Has no result before two steps are submitted; notes whether it was waited for all the same.
class PairRunner final : public Runner {
 public:
  explicit PairRunner(std::atomic<bool>& was_waited_early)
      : was_waited_early_(was_waited_early), own_(make_null_runner(null_config())) {}

  const RunnerLimits& limits() const override { return own_->limits(); }

  Status submit(const BatchPlan& plan) override {
    ++num_submitted_;
    return own_->submit(plan);
  }

  Result<StepResult> wait() override {
    was_waited_early_ = was_waited_early_ || !has_result();
    return own_->wait();
  }

  bool has_result() const override { return num_submitted_ >= 2; }

 private:
  std::atomic<bool>& was_waited_early_;
  std::unique_ptr<Runner> own_;
  int32_t num_submitted_ = 0;
};

/// A board with `world` ranks; rank r > 0 follows on a thread with its own mapping.
struct World {
  explicit World(int32_t size) {
    auto made = Board::create({.world_size = size, .first_rank = 0, .num_local = size});
    REQUIRE(made);
    board = std::move(made).value();
  }

  ~World() { board->set_end(EndReason::drained, "the test is over"); }

  void follow(int32_t rank, std::unique_ptr<Runner> runner) {
    threads.emplace_back([path = board->path_for_others(), rank, own = std::move(runner)] {
      auto mine = Board::attach(path);
      if (mine) {
        (void)follow_plans(*own, *mine.value(), rank);
      }
    });
  }

  std::unique_ptr<Board> board;
  std::vector<std::jthread> threads;
};

GenerateRequest request_of(int32_t seed, int32_t num_tokens) {
  GenerateRequest request;
  for (int32_t i = 0; i < 20 + seed; ++i) {
    request.prompt.push_back((seed * 31 + i) % 1000);
  }
  request.sampling.seed = static_cast<uint64_t>(seed);
  request.max_new_tokens = num_tokens;
  request.ignore_stop_tokens = true;
  return request;
}

/// Step 1: one token of one new sequence.
BatchPlan first_plan() {
  BatchPlan plan;
  plan.step_id = 1;
  SlotUpdate update;
  update.reset = SlotReset{};
  update.reset->num_prompt_tokens = 1;
  update.append_pages = {0};
  plan.slot_updates = {update};
  plan.rows = {{0, 0, 1, AttentionForm::prompt, 1, true}};
  plan.tokens = {3};
  return plan;
}

}  // namespace

TEST_CASE("fan-out: five ranks answer as one", "[cluster]") {
  World world(5);
  for (int32_t rank = 1; rank < 5; ++rank) {
    world.follow(rank, make_null_runner(null_config()));
  }
  MetricsRegistry metrics("m");
  Engine engine(EngineConfig{},
                make_fanout_runner(make_null_runner(null_config()), *world.board, {}),
                metrics.metrics());
  engine.start();
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int32_t i = 0; i < 12; ++i) {
    sinks.push_back(std::make_shared<CollectingSink>());
    REQUIRE(engine.submit(request_of(i, 40), sinks.back()));
  }
  for (int32_t i = 0; i < 12; ++i) {
    REQUIRE(sinks[static_cast<size_t>(i)]->wait_finished());
    const auto tokens = sinks[static_cast<size_t>(i)]->tokens();
    REQUIRE(tokens.size() == 40);
    CHECK(tokens[7] == null_runner_token(static_cast<uint64_t>(i), 20 + i + 7, 1000));
  }
  CHECK_FALSE(engine.fatal_error());
  const uint64_t last = engine.stats().last_step_id;
  for (int32_t rank = 0; rank < 5; ++rank) {
    CHECK(world.board->last_acked(rank) >= last);
  }
  engine.drain_and_stop(TimePoint::max());
}

TEST_CASE("fan-out: a rank takes the next plan while a step runs", "[cluster]") {
  std::atomic<bool> was_waited_early{false};
  World world(2);
  world.follow(1, std::make_unique<PairRunner>(was_waited_early));
  auto runner = make_fanout_runner(make_null_runner(null_config()), *world.board, {});
  const BatchPlan plan = first_plan();
  REQUIRE(runner->submit(plan));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // long enough to wait too early
  BatchPlan next;
  next.step_id = 2;
  next.rows = {{0, 1, 1, AttentionForm::generated, 1, true}};
  next.tokens = {kTokenFromDevice};
  REQUIRE(runner->submit(next));
  REQUIRE(runner->wait());
  REQUIRE(runner->wait());
  CHECK_FALSE(was_waited_early);
  CHECK(world.board->last_acked(1) == 2);
}

TEST_CASE("fan-out: a rank that samples another id ends the group", "[cluster]") {
  World world(3);
  world.follow(1, make_null_runner(null_config()));
  world.follow(2, std::make_unique<WrongRunner>(6));
  MetricsRegistry metrics("m");
  Engine engine(EngineConfig{},
                make_fanout_runner(make_null_runner(null_config()), *world.board, {}),
                metrics.metrics());
  engine.start();
  auto sink = std::make_shared<CollectingSink>();
  REQUIRE(engine.submit(request_of(1, 200), sink));
  REQUIRE(sink->wait_finished());
  CHECK(sink->last().finish == FinishReason::error);
  CHECK(world.board->end().reason == EndReason::disagreement);
  CHECK(world.board->end().text == "rank 2 disagrees with rank 0 at step 6: it sampled other ids");
  CHECK(engine.fatal_error()->find("rank 2 disagrees") != std::string::npos);
}

TEST_CASE("fan-out: a damaged or foreign plan is refused by the rank", "[cluster]") {
  World world(2);
  Board& board = *world.board;
  BatchPlan plan;
  plan.step_id = 1;
  std::vector<std::byte> bytes = encode(plan);
  bytes.resize(bytes.size() + 8);  // a digest of zero
  REQUIRE(board.publish(bytes));
  auto runner = make_null_runner(null_config());
  const Status followed = follow_plans(*runner, board, 1);
  REQUIRE_FALSE(followed);
  CHECK(followed.error().code == ErrorCode::data_loss);
  CHECK(board.end().text ==
        "rank 1 disagrees with rank 0: the plan of step 1 does not fit this rank's page tables");
}

TEST_CASE("fan-out: a step without answers is overdue and names the rank", "[cluster]") {
  World world(3);
  world.follow(1, make_null_runner(null_config()));  // rank 2 never comes
  auto runner = make_fanout_runner(
      make_null_runner(null_config()), *world.board, {.watchdog_s = 0.2, .floor_s = 0.1});
  CHECK_FALSE(runner->hung_step(system_clock().now()));
  const BatchPlan plan = first_plan();
  REQUIRE(runner->submit(plan));
  std::jthread watcher([&] {
    while (true) {
      if (const auto why = runner->hung_step(system_clock().now())) {
        world.board->set_end(EndReason::rank_hung, *why);
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  const auto result = runner->wait();
  REQUIRE_FALSE(result);
  CHECK(result.error().message.starts_with("step 1 did not end within 0.2 s: no answer from rank"));
  CHECK(result.error().message.find("rank 2") != std::string::npos);
}

TEST_CASE("board: the stream wraps, refuses what does not fit, and keeps the first end",
          "[cluster]") {
  World world(2);
  Board& board = *world.board;
  const std::vector<std::byte> large(static_cast<size_t>(kPlanBytesMax));
  CHECK(board.publish(large));
  CHECK_FALSE(board.publish(std::vector<std::byte>(large.size() + 64)));
  std::vector<std::byte> plan;
  for (int i = 0; i < 5; ++i) {
    REQUIRE(board.read(1, plan, system_clock().now()));
    CHECK(plan.size() == large.size() - static_cast<size_t>(i) * 1000);
    std::vector<std::byte> next(large.size() - static_cast<size_t>(i + 1) * 1000);
    next.back() = static_cast<std::byte>(i);
    REQUIRE(board.publish(next));
  }
  REQUIRE(board.read(1, plan, system_clock().now()));
  CHECK(plan.back() == std::byte{4});
  CHECK_FALSE(board.read(1, plan, system_clock().now() + std::chrono::milliseconds(30)));
  CHECK_FALSE(board.ack_of(1, 1));
  board.set_ack(1, {2, 20, 21});  // the first answer need not be step 1's
  CHECK_FALSE(board.ack_of(1, 1));
  CHECK(board.ack_of(1, 2)->produced == 21);
  CHECK(board.last_acked(1) == 2);
  board.set_end(EndReason::rank_failed, "first");
  board.set_end(EndReason::node_lost, "second");
  CHECK(board.end().text == "first");
  CHECK_FALSE(board.read(1, plan, TimePoint::max()));
  CHECK(Board::attach("/dev/null").error().code == ErrorCode::data_loss);
}
