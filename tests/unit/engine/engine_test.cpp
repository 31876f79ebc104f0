// The engine on the null runner and on runners that fail: one terminal event for everyone, bounded
// queues, orderly ends.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <thread>
#include <vector>

#include <hadal/engine/engine.h>
#include <hadal/metrics/metrics.h>

#include "catch.h"
#include "collecting_sink.h"

namespace hadal {
namespace {

NullRunnerConfig small_runner(int32_t max_steps_in_flight = 2) {
  NullRunnerConfig config;
  config.limits.num_pages = 64;
  config.limits.max_step_tokens = 512;
  config.limits.max_slots = 8;
  config.limits.max_context_tokens = 2048;
  config.limits.vocab_size = 1000;
  config.limits.max_steps_in_flight = max_steps_in_flight;
  return config;
}

GenerateRequest make_request(int32_t num_prompt, int32_t max_new_tokens, uint64_t seed = 7) {
  GenerateRequest request;
  for (int32_t i = 0; i < num_prompt; ++i)
    request.prompt.push_back((i * 7 + static_cast<int32_t>(seed)) % 1000);
  request.max_new_tokens = max_new_tokens;
  request.sampling.seed = seed;
  return request;
}

std::vector<TokenId> expected_tokens(const GenerateRequest& request) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < request.max_new_tokens; ++i)
    tokens.push_back(null_runner_token(
        request.sampling.seed, static_cast<int64_t>(request.prompt.size()) + i, 1000));
  return tokens;
}

/// Passes steps on to a null runner until one fails or returns what is not a number.
class FaultyRunner final : public Runner {
 public:
  FaultyRunner(uint64_t failing_step, uint64_t nan_step)
      : runner_(make_null_runner(small_runner())),
        failing_step_(failing_step),
        nan_step_(nan_step) {}

  const RunnerLimits& limits() const override { return runner_->limits(); }

  Status submit(const BatchPlan& plan) override { return runner_->submit(plan); }

  Result<StepResult> wait() override {
    Result<StepResult> result = runner_->wait();
    if (result && result.value().step_id == failing_step_)
      return Error{ErrorCode::unavailable, "rank 3 is gone"};
    if (result && result.value().step_id == nan_step_ && !result.value().rows.empty())
      result.value().rows.front().has_nan = true;
    return result;
  }

 private:
  std::unique_ptr<Runner> runner_;
  uint64_t failing_step_;
  uint64_t nan_step_;
};

TEST_CASE("Engine: a request gets the tokens of its seed and one terminal event", "[engine]") {
  for (const int32_t depth : {1, 2}) {
    MetricsRegistry registry("m");
    Engine engine(EngineConfig{}, make_null_runner(small_runner(depth)), registry.metrics());
    engine.start();
    const GenerateRequest request = make_request(200, 100);
    auto sink = std::make_shared<CollectingSink>();
    REQUIRE(engine.submit(request, sink));
    REQUIRE(sink->wait_finished());
    CHECK(sink->tokens() == expected_tokens(request));
    CHECK(sink->num_terminal() == 1);
    CHECK(sink->last().finish == FinishReason::length);
    CHECK(sink->last().num_cached_tokens == 0);

    auto again = std::make_shared<CollectingSink>();
    REQUIRE(engine.submit(request, again));
    REQUIRE(again->wait_finished());
    CHECK(again->tokens() == expected_tokens(request));
    CHECK(again->last().num_cached_tokens == 199);
  }
}

/// Says that some of its steps were graphs.
class CountedRunner final : public Runner {
 public:
  const RunnerLimits& limits() const override { return runner_->limits(); }

  Status submit(const BatchPlan& plan) override { return runner_->submit(plan); }

  Result<StepResult> wait() override {
    counts_.replayed += 2;
    counts_.plain_decodes += 1;
    counts_.plain_others += 3;
    return runner_->wait();
  }

  StepCounts step_counts() const override { return counts_; }

 private:
  std::unique_ptr<Runner> runner_ = make_null_runner(small_runner());
  StepCounts counts_;
};

TEST_CASE("Engine: metrics tell how steps have run", "[engine]") {
  MetricsRegistry registry("m");
  Engine engine(EngineConfig{}, std::make_unique<CountedRunner>(), registry.metrics());
  engine.start();
  auto sink = std::make_shared<CollectingSink>();
  REQUIRE(engine.submit(make_request(5, 1), sink));
  REQUIRE(sink->wait_finished());
  const std::string text = registry.to_prometheus_text();
  CHECK_THAT(text, Catch::Matchers::Contains("hadal_steps_replayed_total{model_name=\"m\"} 2"));
  CHECK_THAT(text, Catch::Matchers::Contains("hadal_steps_plain_decode_total{model_name=\"m\"} 1"));
  CHECK_THAT(text,
             Catch::Matchers::Contains("hadal_steps_plain_prefill_total{model_name=\"m\"} 3"));
}

/// Steps of 20 ms that would take a second to give to a device; notes how long after the last
/// result each step came that was planned ahead.
class SlowLaunchRunner final : public Runner {
 public:
  explicit SlowLaunchRunner(std::vector<double>& waits) : waits_(waits) {
    NullRunnerConfig config = small_runner();
    config.step_us = 20'000;
    runner_ = make_null_runner(config);
  }

  const RunnerLimits& limits() const override { return runner_->limits(); }

  Status submit(const BatchPlan& plan) override {
    if (num_in_flight_++ == 1) {
      const auto now = std::chrono::steady_clock::now();
      waits_.push_back(std::chrono::duration<double>(now - last_result_).count());
    }
    return runner_->submit(plan);
  }

  Result<StepResult> wait() override {
    --num_in_flight_;
    auto result = runner_->wait();
    last_result_ = std::chrono::steady_clock::now();
    return result;
  }

  double launch_seconds() const override { return 1.0; }

 private:
  std::vector<double>& waits_;
  std::unique_ptr<Runner> runner_;
  int32_t num_in_flight_ = 0;
  std::chrono::steady_clock::time_point last_result_ = std::chrono::steady_clock::now();
};

TEST_CASE("Engine: a step that takes long to give is planned at once", "[engine]") {
  std::vector<double> waits;
  MetricsRegistry registry("m");
  Engine engine(EngineConfig{}, std::make_unique<SlowLaunchRunner>(waits), registry.metrics());
  engine.start();
  auto sink = std::make_shared<CollectingSink>();
  REQUIRE(engine.submit(make_request(5, 60), sink));
  REQUIRE(sink->wait_finished());
  engine.drain_and_stop(TimePoint::max());
  REQUIRE(waits.size() > 40);
  std::sort(waits.begin(), waits.end());
  CHECK(waits[waits.size() / 2] < 0.005);
}

TEST_CASE("Engine: what cannot run is refused with both numbers", "[engine]") {
  MetricsRegistry registry("m");
  Engine engine(EngineConfig{}, make_null_runner(small_runner()), registry.metrics());
  auto sink = std::make_shared<CollectingSink>();
  const auto refused = engine.submit(make_request(2000, 100), sink);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::invalid_argument);
  CHECK(refused.error().message.find("2100") != std::string::npos);
  CHECK(refused.error().message.find("2048") != std::string::npos);
  CHECK_FALSE(engine.submit(make_request(0, 1), sink));
  GenerateRequest foreign = make_request(3, 1);
  foreign.prompt[1] = 1000;
  CHECK_FALSE(engine.submit(foreign, sink));
  CHECK(sink->events().empty());
}

TEST_CASE("Engine: the queue is bounded in requests and in tokens", "[engine]") {
  MetricsRegistry registry("m");
  EngineConfig config;
  config.max_queued_requests = 3;
  config.max_queued_tokens = 250;
  Engine engine(config, make_null_runner(small_runner()), registry.metrics());
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  const auto submit = [&](int32_t num_prompt) {
    sinks.push_back(std::make_shared<CollectingSink>());
    return engine.submit(make_request(num_prompt, 2), sinks.back());
  };
  REQUIRE(submit(200));
  const auto too_many_tokens = submit(51);
  REQUIRE_FALSE(too_many_tokens);
  CHECK(too_many_tokens.error().code == ErrorCode::resource_exhausted);
  REQUIRE(submit(20));
  REQUIRE(submit(20));
  const auto too_many = submit(1);
  REQUIRE_FALSE(too_many);
  CHECK(too_many.error().code == ErrorCode::resource_exhausted);
  CHECK(engine.stats().num_queued == 3);
  engine.start();
  for (const size_t accepted : {size_t{0}, size_t{2}, size_t{3}})
    CHECK(sinks[accepted]->wait_finished());
  CHECK(sinks[1]->events().empty());
  CHECK(submit(51));
  CHECK(sinks.back()->wait_finished());
}

TEST_CASE("Engine: stop tokens end a sequence, unless ignored or too early", "[engine]") {
  MetricsRegistry registry("m");
  Engine engine(EngineConfig{}, make_null_runner(small_runner()), registry.metrics());
  engine.start();
  GenerateRequest request = make_request(70, 50);
  const std::vector<TokenId> all = expected_tokens(request);
  request.stop_token_ids = {all[9]};
  auto stopped = std::make_shared<CollectingSink>();
  REQUIRE(engine.submit(request, stopped));
  REQUIRE(stopped->wait_finished());
  CHECK(stopped->last().finish == FinishReason::stop);
  CHECK(stopped->last().matched_stop_token == all[9]);
  CHECK(stopped->tokens() == std::vector<TokenId>(all.begin(), all.begin() + 10));

  request.ignore_stop_tokens = true;
  auto ignored = std::make_shared<CollectingSink>();
  REQUIRE(engine.submit(request, ignored));
  REQUIRE(ignored->wait_finished());
  CHECK(ignored->tokens() == all);
  CHECK(ignored->last().finish == FinishReason::length);
}

TEST_CASE("Engine: scoring returns a logprob for every prompt token but the first", "[engine]") {
  MetricsRegistry registry("m");
  EngineConfig config;
  config.chunked_prefill_tokens = 64;
  Engine engine(config, make_null_runner(small_runner()), registry.metrics());
  engine.start();
  for (const int32_t max_new_tokens : {0, 3}) {
    GenerateRequest request = make_request(333, max_new_tokens);
    request.wants_prompt_logprobs = true;
    request.sampling.num_top_logprobs = 2;
    auto sink = std::make_shared<CollectingSink>();
    REQUIRE(engine.submit(request, sink));
    REQUIRE(sink->wait_finished());
    const TokenEvent first = sink->events().front();
    REQUIRE(first.prompt_logprobs.size() == 332);
    REQUIRE(first.prompt_top_logprobs.size() == 332);
    for (size_t i = 0; i < 332; ++i) {
      CHECK(first.prompt_logprobs[i].token == request.prompt[i + 1]);
      CHECK(first.prompt_top_logprobs[i].size() == 2);
    }
    CHECK(first.num_cached_tokens == 0);
    CHECK(sink->tokens() == expected_tokens(request));
    CHECK(sink->last().finish == FinishReason::length);
    CHECK(sink->num_terminal() == 1);
  }
  auto nothing = std::make_shared<CollectingSink>();
  REQUIRE(engine.submit(make_request(10, 0), nothing));
  REQUIRE(nothing->wait_finished());
  CHECK(nothing->events().size() == 1);
}

TEST_CASE("Engine: a cancelled request ends once and leaves no page", "[engine]") {
  MetricsRegistry registry("m");
  NullRunnerConfig runner = small_runner();
  runner.step_us = 500;
  Engine engine(EngineConfig{}, make_null_runner(runner), registry.metrics());
  engine.start();
  auto sink = std::make_shared<CollectingSink>();
  const auto id = engine.submit(make_request(100, 1500), sink);
  REQUIRE(id);
  REQUIRE(sink->wait_for_tokens(5));
  engine.cancel(id.value());
  engine.cancel(id.value());
  engine.cancel(12345);
  REQUIRE(sink->wait_finished());
  engine.cancel(id.value());
  engine.drain_and_stop(TimePoint::max());
  CHECK(sink->num_terminal() == 1);
  CHECK(sink->last().finish == FinishReason::cancelled);
  CHECK(engine.stats().pages_leased == 0);
  CHECK(engine.stats().pages_free + engine.stats().pages_cached == 64);
}

TEST_CASE("Engine: a failed step ends everyone with one error", "[engine]") {
  MetricsRegistry registry("m");
  Engine engine(EngineConfig{}, std::make_unique<FaultyRunner>(20, 0), registry.metrics());
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < 12; ++i) {
    sinks.push_back(std::make_shared<CollectingSink>());
    REQUIRE(engine.submit(make_request(100, 200, static_cast<uint64_t>(i)), sinks.back()));
  }
  engine.start();
  for (const auto& sink : sinks) {
    REQUIRE(sink->wait_finished());
    CHECK(sink->num_terminal() == 1);
    CHECK(sink->last().finish == FinishReason::error);
    CHECK(sink->last().error.find("rank 3 is gone") != std::string::npos);
  }
  const auto late = engine.submit(make_request(1, 1), sinks[0]);
  REQUIRE_FALSE(late);
  CHECK(late.error().code == ErrorCode::unavailable);
  REQUIRE(engine.fatal_error());
  CHECK_FALSE(engine.flush_cache());
}

TEST_CASE("Engine: logits that are not numbers fail one request, and its KV is not reused",
          "[engine]") {
  MetricsRegistry registry("m");
  Engine engine(EngineConfig{}, std::make_unique<FaultyRunner>(0, 10), registry.metrics());
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (uint64_t seed : {1U, 2U, 3U}) {
    sinks.push_back(std::make_shared<CollectingSink>());
    REQUIRE(engine.submit(make_request(100, 50, seed), sinks.back()));
  }
  engine.start();
  for (const auto& sink : sinks)
    REQUIRE(sink->wait_finished());
  CHECK(sinks[0]->last().finish == FinishReason::error);
  CHECK(sinks[1]->tokens() == expected_tokens(make_request(100, 50, 2)));
  CHECK(sinks[2]->tokens() == expected_tokens(make_request(100, 50, 3)));
  CHECK_FALSE(engine.fatal_error());
  auto retry = std::make_shared<CollectingSink>();
  REQUIRE(engine.submit(make_request(100, 5, 1), retry));
  REQUIRE(retry->wait_finished());
  CHECK(retry->last().num_cached_tokens == 0);
}

TEST_CASE("Engine: draining finishes what runs and refuses what comes", "[engine]") {
  MetricsRegistry registry("m");
  NullRunnerConfig runner = small_runner();
  runner.step_us = 200;
  Engine engine(EngineConfig{}, make_null_runner(runner), registry.metrics());
  engine.start();
  auto sink = std::make_shared<CollectingSink>();
  REQUIRE(engine.submit(make_request(10, 300), sink));
  std::thread stopper([&] { engine.drain_and_stop(TimePoint::max()); });
  stopper.join();
  CHECK(sink->tokens().size() == 300);
  CHECK(sink->num_terminal() == 1);
  const auto late = engine.submit(make_request(1, 1), sink);
  REQUIRE_FALSE(late);
  CHECK(late.error().code == ErrorCode::unavailable);
}

TEST_CASE("Engine: the deadline of a drain ends the rest with an error", "[engine]") {
  MetricsRegistry registry("m");
  NullRunnerConfig runner = small_runner();
  runner.step_us = 1000;
  Engine engine(EngineConfig{}, make_null_runner(runner), registry.metrics());
  engine.start();
  auto sink = std::make_shared<CollectingSink>();
  auto queued = std::make_shared<CollectingSink>();
  REQUIRE(engine.submit(make_request(10, 2000), sink));
  REQUIRE(sink->wait_for_tokens(1));
  REQUIRE(engine.submit(make_request(10, 2000), queued));
  engine.drain_and_stop(system_clock().now() + std::chrono::milliseconds(20));
  for (const auto& each : {sink, queued}) {
    CHECK(each->num_terminal() == 1);
    CHECK(each->last().finish == FinishReason::error);
  }
  CHECK(engine.stats().pages_leased == 0);
}

TEST_CASE("Engine: an engine that never started ends what was queued", "[engine]") {
  auto sink = std::make_shared<CollectingSink>();
  {
    MetricsRegistry registry("m");
    Engine engine(EngineConfig{}, make_null_runner(small_runner()), registry.metrics());
    REQUIRE(engine.submit(make_request(10, 10), sink));
  }
  CHECK(sink->num_terminal() == 1);
  CHECK(sink->last().finish == FinishReason::error);
}

TEST_CASE("Engine: flush empties the cache when nothing runs", "[engine]") {
  MetricsRegistry registry("m");
  Engine engine(EngineConfig{}, make_null_runner(small_runner()), registry.metrics());
  engine.start();
  auto sink = std::make_shared<CollectingSink>();
  REQUIRE(engine.submit(make_request(300, 1), sink));
  REQUIRE(sink->wait_finished());
  // The terminal event precedes the end of the step loop's turn by a moment.
  for (int i = 0; i < 1000 && !engine.flush_cache(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK(engine.stats().pages_free == 64);
}

TEST_CASE("Engine: an idle engine uses no processor time", "[engine]") {
  MetricsRegistry registry("m");
  Engine engine(EngineConfig{}, make_null_runner(small_runner()), registry.metrics());
  engine.start();
  auto sink = std::make_shared<CollectingSink>();
  REQUIRE(engine.submit(make_request(10, 10), sink));
  REQUIRE(sink->wait_finished());
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  timespec before{};
  timespec after{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  const double used = static_cast<double>(after.tv_sec - before.tv_sec) +
                      1e-9 * static_cast<double>(after.tv_nsec - before.tv_nsec);
  CHECK(used < 0.005);
}

}  // namespace
}  // namespace hadal
