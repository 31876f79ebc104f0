// Random operations on the scheduler in many small configurations; the harness checks every rule
// after every call. A failing seed is printed and replays alone.
#include <random>

#include "catch.h"
#include "scheduler_harness.h"

namespace hadal {
namespace {

constexpr int kNumSeeds = 1500;
constexpr int kNumOperations = 250;

SchedulerConfig random_config(std::mt19937& rng) {
  const auto pick = [&](std::initializer_list<int32_t> values) {
    return *(values.begin() + static_cast<ptrdiff_t>(rng() % values.size()));
  };
  SchedulerConfig config;
  config.num_pages = pick({5, 8, 12, 20});
  config.max_slots = pick({2, 4, 6});
  config.max_running_requests = pick({1, 3, 6});
  config.max_step_tokens = pick({8, 60, 150, 400});
  config.max_prefill_tokens = pick({40, 100, 400});
  config.chunked_prefill_tokens = pick({-1, 30, 64, 200});
  config.max_context_tokens = 320;
  config.vocab_size = 50;
  config.max_steps_in_flight = pick({1, 2, 2, 3});
  config.policy = static_cast<SchedulePolicy>(rng() % 5);
  config.enable_radix_cache = rng() % 8 != 0;
  config.conservativeness = rng() % 2 == 0 ? 0.0 : 1.0;
  return config;
}

SchedulerHarness::Ask random_ask(std::mt19937& rng) {
  const auto below = [&](uint32_t bound) { return static_cast<int32_t>(rng() % bound); };
  SchedulerHarness::Ask ask;
  const int32_t family = below(2);
  const int32_t num_shared = below(150);
  for (int32_t i = 0; i < num_shared; ++i)
    ask.prompt.push_back((family + i / 10) % 50);
  for (int32_t i = below(3) * below(20) + (num_shared == 0 ? 1 : 0); i > 0; --i)
    ask.prompt.push_back(below(50));
  ask.max_new_tokens = below(6) == 0 ? 0 : 1 + below(below(3) == 0 ? 130 : 20);
  ask.wants_prompt_logprobs = below(8) == 0;
  ask.name_space = below(3) == 0 ? "B" : "A";
  for (int32_t i = below(3); i > 0; --i)
    ask.stop_tokens.push_back(below(50));
  ask.priority = below(3);
  return ask;
}

TEST_CASE("Scheduler: random operations keep every invariant", "[sched]") {
  int64_t num_retractions = 0;
  int64_t num_cached_tokens = 0;
  for (uint32_t seed = 0; seed < kNumSeeds; ++seed) {
    INFO("seed " << seed);
    std::mt19937 rng(seed);
    SchedulerHarness h(random_config(rng));
    RequestId last = 0;
    for (int i = 0; i < kNumOperations; ++i) {
      const auto choice = rng() % 100;
      if (choice < 22 && h.stats().num_waiting < 8)
        last = h.submit(random_ask(rng));
      else if (choice < 30 && last > 0)
        h.cancel(last - std::min<RequestId>(last - 1, rng() % 8));
      else if (choice < 31)
        h.flush();
      else if (choice < 32 && last > 0)
        h.poison(last);
      else if (choice < 66)
        h.plan();
      else
        h.retire();
    }
    h.drain();
    num_retractions += h.stats().num_retractions;
    num_cached_tokens += h.stats().num_cached_tokens;
    h.flush();
    if (h.stats().pages_free != h.stats().pages_total)
      FAIL("D3: the whole pool can be reclaimed");
  }
  CHECK(num_retractions > 50);
  CHECK(num_cached_tokens > 10'000);
}

}  // namespace
}  // namespace hadal
