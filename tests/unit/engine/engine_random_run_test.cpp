// 10,000 requests with cancels, stops and retractions on the null runner: no page leaks, everyone
// gets exactly one terminal event, and every token is the one its seed and position give.
#include <algorithm>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include <hadal/engine/engine.h>
#include <hadal/metrics/metrics.h>

#include "catch.h"
#include "collecting_sink.h"

namespace hadal {
namespace {

constexpr int32_t kVocab = 500;
constexpr int kNumRequests = 10'000;
constexpr int kNumClients = 4;

NullRunnerConfig tight_runner() {
  NullRunnerConfig config;
  config.limits.num_pages = 40;  // a sequence wants up to 12: retractions
  config.limits.max_step_tokens = 600;
  config.limits.max_slots = 24;
  config.limits.max_context_tokens = 1024;
  config.limits.vocab_size = kVocab;
  config.limits.max_steps_in_flight = 2;
  return config;
}

GenerateRequest random_request(std::mt19937& rng) {
  const auto below = [&](uint32_t bound) { return static_cast<int32_t>(rng() % bound); };
  GenerateRequest request;
  // A few shared beginnings, then a tail of its own.
  const int32_t family = below(5);
  const int32_t num_shared = below(300);
  for (int32_t i = 0; i < num_shared; ++i)
    request.prompt.push_back((family * 131 + i * 17) % kVocab);
  const int32_t num_own = below(4) == 0 ? 0 : below(150);
  for (int32_t i = 0; i < num_own; ++i)
    request.prompt.push_back(below(kVocab));
  if (request.prompt.empty())
    request.prompt.push_back(below(kVocab));
  request.max_new_tokens = below(10) == 0 ? below(2) : 1 + below(below(4) == 0 ? 300 : 40);
  request.sampling.seed = rng();
  for (int32_t i = below(3); i > 0; --i)
    request.stop_token_ids.push_back(below(kVocab));
  if (below(20) == 0) {
    request.wants_prompt_logprobs = true;
    request.sampling.num_top_logprobs = below(3);
  }
  if (below(10) == 0)
    request.cache_namespace = "tenant";
  return request;
}

struct Case {
  GenerateRequest request;
  std::shared_ptr<CollectingSink> sink;
};

void check_answer(const Case& c) {
  const std::vector<TokenEvent> events = c.sink->events();
  REQUIRE(c.sink->num_terminal() == 1);
  REQUIRE(events.back().finish);
  REQUIRE(*events.back().finish != FinishReason::error);
  const auto num_prompt = static_cast<int64_t>(c.request.prompt.size());
  const auto& stops = c.request.stop_token_ids;
  const std::vector<TokenId> tokens = c.sink->tokens();
  for (size_t i = 0; i < tokens.size(); ++i) {
    REQUIRE(tokens[i] == null_runner_token(c.request.sampling.seed,
                                           num_prompt + static_cast<int64_t>(i),
                                           kVocab));
    const bool is_stop = std::find(stops.begin(), stops.end(), tokens[i]) != stops.end();
    REQUIRE(is_stop == (i + 1 == tokens.size() && *events.back().finish == FinishReason::stop));
  }
  if (*events.back().finish == FinishReason::length)
    REQUIRE(static_cast<int32_t>(tokens.size()) == c.request.max_new_tokens);
  if (c.request.wants_prompt_logprobs && !tokens.empty())
    REQUIRE(events.front().prompt_logprobs.size() == c.request.prompt.size() - 1);
  REQUIRE(events.back().num_cached_tokens < num_prompt);
}

TEST_CASE("Engine: 10,000 random requests leave no page, no silence and no wrong token",
          "[engine]") {
  MetricsRegistry registry("m");
  EngineConfig config;
  config.max_queued_requests = 64;
  config.chunked_prefill_tokens = 128;
  config.max_prefill_tokens = 400;
  config.schedule_conservativeness = 0.0;  // no reserve: retractions happen
  Engine engine(config, make_null_runner(tight_runner()), registry.metrics());
  engine.start();
  std::vector<std::vector<Case>> cases(kNumClients);
  std::vector<std::thread> clients;
  for (int client = 0; client < kNumClients; ++client) {
    clients.emplace_back([&engine, &mine = cases[static_cast<size_t>(client)], client] {
      std::mt19937 rng(static_cast<uint32_t>(client));
      std::vector<RequestId> recent;
      while (mine.size() < kNumRequests / kNumClients) {
        Case c{random_request(rng), std::make_shared<CollectingSink>()};
        const auto id = engine.submit(c.request, c.sink);
        if (!id) {  // the queue is full
          mine.empty() ? std::this_thread::yield() : void(mine.back().sink->wait_finished());
          continue;
        }
        recent.push_back(id.value());
        mine.push_back(std::move(c));
        if (rng() % 5 == 0)
          engine.cancel(recent[recent.size() - 1 - rng() % std::min<size_t>(recent.size(), 30)]);
      }
    });
  }
  for (std::thread& client : clients)
    client.join();
  engine.drain_and_stop(TimePoint::max());

  const EngineStats stats = engine.stats();
  CHECK(stats.pages_leased == 0);
  CHECK(stats.pages_free + stats.pages_cached == stats.pages_total);
  CHECK(stats.num_retractions > 20);
  CHECK(stats.cached_tokens_total > 10'000);
  size_t num_cancelled = 0;
  size_t num_stopped = 0;
  for (const auto& mine : cases) {
    for (const Case& c : mine) {
      check_answer(c);
      num_cancelled += c.sink->last().finish == FinishReason::cancelled;
      num_stopped += c.sink->last().finish == FinishReason::stop;
    }
  }
  CHECK(num_cancelled > 500);
  CHECK(num_stopped > 300);
}

}  // namespace
}  // namespace hadal
