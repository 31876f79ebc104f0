// Behaviour of the scheduler, one rule a case. The names in brackets are the seeded bugs of the
// radix and scheduler model that the case would catch.
#include <algorithm>

#include <hadal/sched/scheduler.h>

#include "catch.h"
#include "scheduler_harness.h"

namespace hadal {
namespace {

using Ask = SchedulerHarness::Ask;

SchedulerConfig base_config(int32_t depth = 2) {
  SchedulerConfig config;
  config.num_pages = 32;
  config.max_slots = 8;
  config.max_step_tokens = 256;
  config.max_context_tokens = 2048;
  config.vocab_size = 1000;
  config.max_steps_in_flight = depth;
  config.chunked_prefill_tokens = 128;
  config.max_prefill_tokens = 200;
  return config;
}

std::vector<TokenId> prompt(int32_t length, TokenId family = 0) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < length; ++i)
    tokens.push_back((family * 331 + i) % 1000);
  return tokens;
}

int32_t num_rows_of(const BatchPlan& plan, AttentionForm form) {
  return static_cast<int32_t>(std::count_if(
      plan.rows.begin(), plan.rows.end(), [&](const PlanRow& row) { return row.form == form; }));
}

TEST_CASE("Scheduler: a step carries every decode and prefill chunks within the budget",
          "[sched]") {
  SchedulerHarness h(base_config());
  for (int i = 0; i < 3; ++i)
    h.submit({prompt(20, i), 60});
  for (int i = 0; i < 4; ++i)
    h.turn();
  h.submit({prompt(500, 7), 4});
  int num_mixed = 0;
  for (int i = 0; i < 8; ++i) {
    h.turn();
    if (num_rows_of(h.last_plan(), AttentionForm::prompt) > 0) {
      CHECK(num_rows_of(h.last_plan(), AttentionForm::generated) == 3);
      CHECK(h.last_plan().tokens.size() <= 3 + 128);
      ++num_mixed;
    }
  }
  CHECK(num_mixed == 4);
  h.drain();
}

TEST_CASE("Scheduler: planning ahead, a decode's token comes from the device", "[sched]") {
  SchedulerHarness h(base_config(2));
  h.submit({prompt(10), 5});
  REQUIRE(h.plan());
  REQUIRE(h.plan());
  CHECK(h.last_plan().tokens == std::vector<TokenId>{kTokenFromDevice});
  CHECK_FALSE(h.plan());
  h.drain();
}

TEST_CASE("Scheduler: a reused prompt leaves one token to compute [match_all]", "[sched]") {
  SchedulerHarness h(base_config());
  const RequestId first = h.submit({prompt(128), 3});
  h.drain();
  const RequestId second = h.submit({prompt(128), 3});
  h.drain();
  CHECK(h.record(first).num_cached_tokens == 0);
  CHECK(h.record(second).num_cached_tokens == 127);
}

TEST_CASE("Scheduler: a second turn reuses the answer of the first to the token", "[sched]") {
  SchedulerHarness h(base_config());
  const RequestId first = h.submit({prompt(100), 50});
  h.drain();
  std::vector<TokenId> next = h.record(first).prompt;
  next.insert(next.end(), h.record(first).tokens.begin(), h.record(first).tokens.end());
  next.push_back(5);
  const RequestId second = h.submit({next, 3});
  h.drain();
  // The last token of the answer was never fed back, so its KV does not exist.
  CHECK(h.record(second).num_cached_tokens == 149);
}

TEST_CASE("Scheduler: namespaces do not share prefixes [ignore_salt]", "[sched]") {
  SchedulerHarness h(base_config());
  h.submit({prompt(128), 1, "a"});
  h.drain();
  const RequestId other = h.submit({prompt(128), 1, "b"});
  const RequestId same = h.submit({prompt(128), 1, "a"});
  h.drain();
  CHECK(h.record(other).num_cached_tokens == 0);
  CHECK(h.record(same).num_cached_tokens == 127);
}

TEST_CASE("Scheduler: the second of two equal prompts waits for the first's pages [dup_leak]",
          "[sched]") {
  SchedulerHarness h(base_config());
  const RequestId a = h.submit({prompt(150), 20});
  const RequestId b = h.submit({prompt(150), 20});
  REQUIRE(h.plan());
  CHECK(h.planned_requests() == std::set<RequestId>{a});
  h.drain();
  CHECK(h.record(b).num_cached_tokens == 128);
}

TEST_CASE("Scheduler: pages of a cancelled sequence wait for the step in flight [free_inflight]",
          "[sched]") {
  SchedulerHarness h(base_config());
  const RequestId id = h.submit({prompt(100), 50});
  REQUIRE(h.plan());
  REQUIRE(h.plan());
  h.cancel(id);
  CHECK(h.record(id).num_terminal == 1);
  CHECK(h.record(id).finish == FinishReason::cancelled);
  CHECK(h.stats().pages_leased == 2);
  h.retire();
  CHECK(h.stats().pages_leased == 2);
  h.retire();
  CHECK(h.stats().pages_leased == 0);
  CHECK(h.stats().pages_cached == 2);
  h.cancel(id);  // [double_end, late_token]
  CHECK(h.record(id).num_terminal == 1);
  CHECK(h.record(id).tokens.empty());
}

TEST_CASE("Scheduler: a waiting sequence can be cancelled [silent_drop]", "[sched]") {
  SchedulerConfig config = base_config();
  config.max_running_requests = 1;
  SchedulerHarness h(config);
  h.submit({prompt(10), 30});
  const RequestId waiting = h.submit({prompt(10, 1), 5});
  h.turn();
  h.cancel(waiting);
  CHECK(h.record(waiting).num_terminal == 1);
  CHECK(h.stats().num_waiting == 0);
  h.drain();
}

TEST_CASE("Scheduler: a stop ends at once, and its KV is donated [tail_leak, late_token]",
          "[sched]") {
  SchedulerHarness h(base_config());
  const TokenId stop = SchedulerHarness::sampled_token(1, 13, 1000);
  const RequestId id = h.submit({prompt(10), 50, "", {stop}});
  h.drain();
  CHECK(h.record(id).finish == FinishReason::stop);
  CHECK(h.record(id).tokens.size() == 4);
  CHECK(h.record(id).tokens.back() == stop);
  CHECK(h.stats().pages_cached == 1);
}

TEST_CASE(
    "Scheduler: the oldest finishes when pages run out, the newest goes back and resumes "
    "[retract_lost, retract_inflight, evict_locked, abort_keeps_lock]",
    "[sched]") {
  for (const int32_t depth : {1, 2}) {
    SchedulerConfig config = base_config(depth);
    config.num_pages = 10;
    config.conservativeness = 0.0;
    SchedulerHarness h(config);
    std::vector<RequestId> ids;
    for (int i = 0; i < 4; ++i)
      ids.push_back(h.submit({prompt(100, i), 300}));
    h.drain();
    CHECK(h.stats().num_retractions > 0);
    for (const RequestId id : ids) {
      CHECK(h.record(id).finish == FinishReason::length);
      CHECK(h.record(id).tokens.size() == 300);
    }
    h.flush();
    CHECK(h.stats().pages_free == 10);  // the whole pool can be reclaimed
  }
}

TEST_CASE("Scheduler: recomputed answers keep the form of generated positions", "[sched]") {
  SchedulerConfig config = base_config(1);
  config.num_pages = 6;
  config.conservativeness = 0.0;
  config.enable_radix_cache = false;  // everything is recomputed
  SchedulerHarness h(config);
  h.submit({prompt(60, 0), 250});
  h.submit({prompt(60, 1), 250});
  bool has_two_rows = false;
  for (int i = 0; i < 2000 && !has_two_rows; ++i) {
    h.turn();
    for (size_t k = 1; k < h.last_plan().rows.size(); ++k) {
      const PlanRow& before = h.last_plan().rows[k - 1];
      const PlanRow& row = h.last_plan().rows[k];
      has_two_rows |= before.slot == row.slot && before.form == AttentionForm::prompt &&
                      row.form == AttentionForm::generated && row.num_tokens > 1 && !before.sample;
    }
  }
  CHECK(h.stats().num_retractions > 0);
  CHECK(has_two_rows);
  h.drain();
}

TEST_CASE("Scheduler: a sequence that fills the whole pool runs, also from a cached tail",
          "[sched]") {
  SchedulerConfig config = base_config();
  config.num_pages = 4;
  SchedulerHarness h(config);
  h.submit({prompt(200), 56});
  h.drain();
  // Its last page is a tail to copy from, but source and copy together would be a fifth page.
  std::vector<TokenId> again = prompt(256);
  const RequestId id = h.submit({std::vector<TokenId>(again.begin(), again.begin() + 250), 6});
  h.drain();
  CHECK(h.record(id).finish == FinishReason::length);
  GenerateRequest too_long;
  too_long.prompt = prompt(200);
  too_long.max_new_tokens = 57;
  CHECK_FALSE(Scheduler::validate(config, too_long));
}

TEST_CASE("Scheduler: prompt logprobs cover every token but the first and bypass the cache",
          "[sched]") {
  SchedulerConfig config = base_config();
  config.max_step_logits = 48;
  SchedulerHarness h(config);
  h.submit({prompt(300), 1});
  h.drain();
  const RequestId id = h.submit({prompt(300), 0, "", {}, true});
  h.drain();
  const auto& record = h.record(id);
  CHECK(record.num_cached_tokens == 0);
  REQUIRE(record.prompt_logprobs.size() == 299);
  for (size_t i = 0; i < 299; ++i)
    CHECK(record.prompt_logprobs[i].token == record.prompt[i + 1]);
}

TEST_CASE("Scheduler: non-finite logits end one request; its KV serves nobody", "[sched]") {
  SchedulerHarness h(base_config());
  const RequestId bad = h.submit({prompt(200), 20});
  const RequestId good = h.submit({prompt(200, 3), 20});
  for (int i = 0; i < 5; ++i)
    h.turn();
  h.poison(bad);
  h.drain();
  CHECK(h.record(bad).finish == FinishReason::error);
  CHECK(h.record(good).finish == FinishReason::length);
  const RequestId again = h.submit({prompt(200), 2});
  h.drain();
  CHECK(h.record(again).num_cached_tokens == 0);
}

TEST_CASE("Scheduler: without the radix cache nothing is kept", "[sched]") {
  SchedulerConfig config = base_config();
  config.enable_radix_cache = false;
  SchedulerHarness h(config);
  h.submit({prompt(200), 20});
  h.submit({prompt(200), 20});
  h.drain();
  CHECK(h.stats().pages_free == 32);
  CHECK(h.stats().num_cached_tokens == 0);
}

/// Order in which four waiting requests get their first row when only one may run.
std::vector<RequestId> admission_order(SchedulePolicy policy) {
  SchedulerConfig config = base_config(1);
  config.policy = policy;
  config.max_running_requests = 1;
  SchedulerHarness h(config);
  h.submit({prompt(128, 1), 1});
  h.drain();
  h.submit({prompt(128, 2), 1});
  h.drain();
  std::vector<TokenId> long_match = prompt(128, 2);
  long_match.push_back(9);
  std::vector<TokenId> short_match = prompt(64, 1);
  short_match.push_back(9);
  h.submit({prompt(50, 5), 1, "", {}, false, 1});  // 3: nothing cached
  h.submit({short_match, 1, "", {}, false, 3});    // 4
  h.submit({long_match, 1, "", {}, false, 2});     // 5
  h.submit({short_match, 1, "", {}, false, 3});    // 6
  std::vector<RequestId> order;
  while (order.size() < 4) {
    h.turn();
    const RequestId id = *h.planned_requests().begin();
    if (order.empty() || order.back() != id)
      order.push_back(id);
  }
  h.drain();
  return order;
}

TEST_CASE("Scheduler: policies order the queue", "[sched]") {
  CHECK(admission_order(SchedulePolicy::fcfs) == std::vector<RequestId>{3, 4, 5, 6});
  CHECK(admission_order(SchedulePolicy::lpm) == std::vector<RequestId>{5, 4, 6, 3});
  CHECK(admission_order(SchedulePolicy::dfs_weight) == std::vector<RequestId>{4, 6, 5, 3});
  CHECK(admission_order(SchedulePolicy::priority) == std::vector<RequestId>{4, 6, 5, 3});
  std::vector<RequestId> random = admission_order(SchedulePolicy::random);
  std::sort(random.begin(), random.end());
  CHECK(random == std::vector<RequestId>{3, 4, 5, 6});
}

TEST_CASE("Scheduler: lpm starves nobody", "[sched]") {
  SchedulerConfig config = base_config(1);
  config.max_running_requests = 1;
  SchedulerHarness h(config);
  h.submit({prompt(128, 1), 1});
  h.drain();
  const RequestId unlucky = h.submit({prompt(30, 9), 1});
  int num_turns = 0;
  for (; h.record(unlucky).num_terminal == 0 && num_turns < 500; ++num_turns) {
    h.submit({prompt(128, 1), 1});
    h.turn();
  }
  CHECK(num_turns < 100);
  h.drain();
}

TEST_CASE("Scheduler: unchunked prompts run whole, alone if need be", "[sched]") {
  SchedulerConfig config = base_config(1);
  config.chunked_prefill_tokens = 0;
  config.max_step_tokens = 600;
  SchedulerHarness h(config);
  h.submit({prompt(150, 1), 1});
  const RequestId large = h.submit({prompt(500, 2), 1});
  h.turn();
  CHECK(h.last_plan().tokens.size() == 150);
  h.turn();
  CHECK(h.last_plan().tokens.size() == 500);
  CHECK(h.record(large).num_terminal == 1);
}

}  // namespace
}  // namespace hadal
