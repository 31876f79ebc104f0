// The scheduler under pressure: shares of keys, deadlines, step times, retraction, and what a step
// costs in allocations.
#include <algorithm>
#include <map>
#include <vector>

#include <hadal/sched/scheduler.h>

#include "catch.h"
#include "fair_share.h"
#include "step_time.h"

namespace hadal {
namespace {

SchedulerConfig base_config(int32_t depth = 1) {
  SchedulerConfig config;
  config.num_pages = 64;
  config.max_slots = 8;
  config.max_step_tokens = 512;
  config.max_context_tokens = 4096;
  config.vocab_size = 1000;
  config.max_steps_in_flight = depth;
  config.chunked_prefill_tokens = 256;
  config.max_prefill_tokens = 256;
  return config;
}

GenerateRequest make_request(int32_t length, int32_t max_new_tokens, TokenId family) {
  GenerateRequest request;
  for (int32_t i = 0; i < length; ++i)
    request.prompt.push_back((family * 331 + i) % 1000);
  request.max_new_tokens = max_new_tokens;
  return request;
}

/// Runs plans on nothing: every sampled token is 7. `seconds_of` may tell how long a step took.
struct Driver {
  explicit Driver(const SchedulerConfig& config)
      : scheduler(config), depth(config.max_steps_in_flight) {}

  RequestId submit(GenerateRequest request) {
    scheduler.submit(++last_id, std::move(request));
    collect();
    return last_id;
  }

  bool plan() {
    BatchPlan next;
    if (!scheduler.plan_next(next))
      return false;
    StepResult result;
    result.step_id = next.step_id;
    for (const PlanRow& row : next.rows) {
      if (row.num_logits > 0) {
        RowResult out;
        out.slot = row.slot;
        out.token = row.sample ? 7 : -1;
        result.rows.push_back(out);
      }
    }
    results.push_back(std::move(result));
    last_plan = std::move(next);
    return true;
  }

  void retire(double seconds = 0.0) {
    scheduler.commit(results.front(), seconds);
    results.erase(results.begin());
    collect();
    scheduler.check_invariants();
  }

  bool turn(double seconds = 0.0) {
    while (static_cast<int32_t>(results.size()) < depth && plan()) {
    }
    if (results.empty())
      return false;
    retire(seconds);
    return true;
  }

  void collect() {
    std::vector<TokenEvent> events;
    scheduler.take_events(events);
    for (const TokenEvent& event : events) {
      num_tokens[event.id] += event.token ? 1 : 0;
      if (event.finish) {
        CHECK(finishes.emplace(event.id, *event.finish).second);
        errors[event.id] = event.error;
      }
    }
  }

  Scheduler scheduler;
  int32_t depth;
  RequestId last_id = 0;
  BatchPlan last_plan;
  std::vector<StepResult> results;
  std::map<RequestId, int> num_tokens;
  std::map<RequestId, FinishReason> finishes;
  std::map<RequestId, std::string> errors;
};

TEST_CASE("FairShares: newcomers owe nothing, and idle time earns one long request", "[sched]") {
  constexpr double kCredit = FairShares::kCredit;
  FairShares shares;
  const ShareId a = shares.open("a", 1.0);
  shares.charge(a, kCredit + 100.0);
  const ShareId b = shares.open("b", 2.0);
  CHECK(shares.served(b) == 100.0);
  CHECK(shares.is_least(b));
  CHECK_FALSE(shares.is_least(a));
  shares.charge(b, 100.0);
  CHECK(shares.served(b) == 150.0);
  // The credit of one is no credit for the next.
  const ShareId c = shares.open("c", 1.0);
  CHECK(shares.served(c) == 100.0);
  shares.close(c);
  shares.close(b);
  CHECK(shares.num_busy() == 1);
  shares.charge(a, 10.0 * kCredit);
  CHECK(shares.open("b", 2.0) == b);
  CHECK(shares.served(b) == 10.0 * kCredit + 100.0);
  // Who has used its share has no credit, idle or not.
  shares.charge(b, 4.0 * kCredit);
  shares.close(b);
  CHECK(shares.open("b", 2.0) == b);
  CHECK(shares.served(b) == 12.0 * kCredit + 100.0);
  // Nor has anyone for the time in which nobody was busy.
  shares.close(a);
  shares.close(b);
  CHECK(shares.open("c", 1.0) == c);
  CHECK(shares.served(c) == 11.0 * kCredit + 100.0);
  shares.close(c);
  for (int i = 0; i < 10'000; ++i)
    shares.close(shares.open(std::to_string(i), 1.0));
  CHECK(shares.num_known() <= 4096);
}

TEST_CASE("PlanPace: a plan is due shortly before its turn, and never after steps that vary",
          "[sched]") {
  PlanPace pace;
  CHECK(pace.delay(0.0005, 0.0) == 0.0);  // nothing to gain
  for (int i = 0; i < 100; ++i)
    pace.observe(pace.delay(0.040, 0.0002), 0.040);
  const double steady = pace.delay(0.040, 0.0002);
  CHECK(steady > 0.9 * 0.040);
  CHECK(steady < 0.040 - 0.0002 - 0.0005);
  CHECK(pace.delay(0.040, 0.010) < 0.030);
  // Half of the steps end at 60 % of what was predicted.
  int num_late = 0;
  for (int i = 0; i < 200; ++i) {
    const double delay = pace.delay(0.040, 0.0002);
    const double seconds = i % 2 == 0 ? 0.024 : 0.040;
    num_late += i >= 20 && seconds < delay ? 1 : 0;
    pace.observe(delay, seconds);
  }
  CHECK(num_late <= 30);
}

TEST_CASE("Scheduler: a quiet key is served next, whatever a loud one has queued", "[sched]") {
  for (const SchedulePolicy policy : {SchedulePolicy::lpm,
                                      SchedulePolicy::fcfs,
                                      SchedulePolicy::random,
                                      SchedulePolicy::dfs_weight}) {
    SchedulerConfig config = base_config();
    config.policy = policy;
    config.max_running_requests = 1;
    Driver driver(config);
    for (int i = 0; i < 300; ++i) {
      GenerateRequest loud = make_request(100, 4, 1);
      loud.share_key = "loud";
      driver.submit(std::move(loud));
    }
    for (int i = 0; i < 10; ++i)
      driver.turn();
    GenerateRequest quiet = make_request(100, 4, 2);
    quiet.share_key = "quiet";
    const RequestId id = driver.submit(std::move(quiet));
    int num_turns = 0;
    while (driver.finishes.count(id) == 0 && num_turns < 100 && driver.turn())
      ++num_turns;
    CHECK(num_turns <= 9);  // what runs ends, then it runs
  }
}

TEST_CASE("Scheduler: keys get tokens by their weights", "[sched]") {
  SchedulerConfig config = base_config();
  config.max_running_requests = 2;
  config.enable_radix_cache = false;
  Driver driver(config);
  for (int i = 0; i < 200; ++i) {
    for (const bool is_heavy : {false, true}) {
      GenerateRequest request = make_request(20, 10, i);
      request.share_key = is_heavy ? "heavy" : "light";
      request.share_weight = is_heavy ? 3.0 : 1.0;
      driver.submit(std::move(request));
    }
  }
  for (int i = 0; i < 600; ++i)
    driver.turn();
  int heavy = 0;
  int light = 0;
  for (const auto& [id, count] : driver.num_tokens)
    (id % 2 == 0 ? heavy : light) += count;
  const double ratio = static_cast<double>(heavy) / light;
  CHECK(ratio > 2.7);
  CHECK(ratio < 3.3);
}

TEST_CASE("Scheduler: deadlines end waiting and running sequences", "[sched]") {
  SchedulerConfig config = base_config(2);
  config.max_running_requests = 1;
  Driver driver(config);
  const TimePoint start{};
  GenerateRequest running = make_request(100, 1000, 1);
  running.deadline = start + std::chrono::seconds(2);
  GenerateRequest waiting = make_request(100, 10, 2);
  waiting.deadline = start + std::chrono::seconds(1);
  const RequestId a = driver.submit(std::move(running));
  const RequestId b = driver.submit(std::move(waiting));
  driver.turn();
  driver.scheduler.advance_to(start + std::chrono::seconds(1));
  driver.collect();
  CHECK(driver.finishes.count(a) == 0);
  REQUIRE(driver.finishes.count(b) == 1);
  CHECK(driver.finishes.at(b) == FinishReason::deadline);
  CHECK(driver.errors.at(b).find("deadline") != std::string::npos);
  REQUIRE(driver.plan());
  driver.scheduler.advance_to(start + std::chrono::seconds(2));
  driver.collect();
  REQUIRE(driver.finishes.count(a) == 1);
  CHECK(driver.scheduler.stats().pages_leased > 0);  // steps in flight still write
  while (!driver.results.empty())
    driver.retire();
  CHECK(driver.scheduler.stats().pages_leased == 0);
  CHECK_FALSE(driver.scheduler.has_work());
}

TEST_CASE("StepTimeModel: learns both kinds of step", "[sched]") {
  StepTimeModel model;
  CHECK_FALSE(model.is_ready());
  const auto seconds_of = [](const StepWork& work) {
    return 0.01 + 1e-4 * work.num_decodes + 2e-5 * work.prefill_tokens + 1e-9 * work.prefill_pairs;
  };
  for (int32_t i = 0; i < 60; ++i) {
    StepWork work;
    work.num_decodes = 8 + i % 16;
    model.observe(work, seconds_of(work));
    work.add_chunk((i % 7) * 1000, (i % 7) * 1000 + 200 + i);
    model.observe(work, seconds_of(work));
  }
  REQUIRE(model.is_ready());
  CHECK(model.decode_seconds(100) == Approx(0.02).epsilon(0.01));
  for (const int32_t begin : {0, 5000, 20'000}) {
    const int32_t count = model.tokens_within(0.02, {}, begin, 100'000);
    StepWork work;
    work.add_chunk(begin, begin + count);
    CHECK(model.prefill_seconds(work) == Approx(0.02).epsilon(0.01));
    CHECK(seconds_of(work) - 0.01 == Approx(0.02).epsilon(0.15));
  }
  CHECK(model.tokens_within(0.02, {}, 0, 100) == 100);
}

/// A mixture of experts: 10 ms for reading them whatever the chunk, then 10 us a token.
double expert_seconds(const StepWork& work) {
  const double experts = work.prefill_tokens > 0 ? 0.010 : 0.0;
  return 0.005 + 1e-4 * work.num_decodes + experts + 1e-5 * work.prefill_tokens;
}

TEST_CASE("StepTimeModel: the first tokens of a chunk cost more than the others", "[sched]") {
  StepTimeModel model;
  StepWork quiet;
  quiet.num_decodes = 10;
  const auto observe = [&](int32_t tokens) {
    StepWork work = quiet;
    work.add_chunk(0, tokens);
    model.observe(work, expert_seconds(work));
  };
  model.observe(quiet, expert_seconds(quiet));
  for (int i = 0; i < 10; ++i) {
    observe(64);
    observe(300);
    observe(2000);
  }
  CHECK(model.tokens_within(0.020, {}, 0, 4096) == Approx(1000).epsilon(0.05));
  CHECK(model.tokens_within(0.005, {}, 0, 4096) < 64);
  // 2,048 tokens take 36 ms, 57 tokens a ms; half of that rate: 640 tokens in 22 ms.
  CHECK(model.efficient_tokens(10, 2048) == Approx(640).epsilon(0.1));
}

TEST_CASE("StepTimeModel: what a chunk costs more after a prefix, in either form", "[sched]") {
  constexpr int32_t kAbsorbed = 100;
  StepTimeModel model(kAbsorbed);
  StepWork quiet;
  quiet.num_decodes = 10;
  const auto seconds_of = [](const StepWork& work) {
    return 0.005 + 2e-5 * work.prefill_tokens + 1e-8 * work.prefill_pairs +
           5.1e-8 * work.absorbed_pairs;
  };
  model.observe(quiet, 0.005);
  for (int32_t i = 0; i < 100; ++i) {
    for (const int32_t count : {8 + i % 5, 130 + i % 50, 700 + i % 90}) {
      StepWork work = quiet;
      const int32_t begin = i * 37 % 3000;
      work.add_chunk(begin, begin + count, cheaper_form(begin, count, kAbsorbed));
      model.observe(work, seconds_of(work));
    }
  }
  // Absorbed, 20 tokens after 2,000 take 2.4 ms; projecting the prefix up takes 8 ms alone.
  CHECK(model.tokens_within(2.5e-3, {}, 2000, 4096) == Approx(20).margin(4));
  CHECK(model.tokens_within(20e-3, {}, 2000, 4096) == Approx(285).epsilon(0.1));
}

TEST_CASE("StepTimeModel: one slow step is not believed for ever", "[sched]") {
  StepTimeModel model;
  StepWork work;
  work.num_decodes = 10;
  model.observe(work, expert_seconds(work));
  work.add_chunk(0, 1500);
  model.observe(work, 10.0);
  CHECK(model.tokens_within(0.050, {}, 0, 2048) < 64);
  for (int i = 0; i < 300; ++i) {
    StepWork small;
    small.num_decodes = 10;
    small.add_chunk(0, 40 + i % 50);
    model.observe(small, expert_seconds(small));
  }
  CHECK(model.tokens_within(0.050, {}, 0, 2048) > 150);
}

/// Longest step relative to a quiet one while four long prompts come to 32 running streams.
double worst_stretch(const SchedulerConfig& config) {
  Driver driver(config);
  const auto seconds_of = [&] {
    double seconds = 0.010;
    for (const PlanRow& row : driver.last_plan.rows)
      seconds += row.form == AttentionForm::generated
                     ? 2e-4 * row.num_tokens
                     : 4e-5 * row.num_tokens +
                           2e-9 * (row.num_tokens + kPairsOfPrefixToken) * row.kv_begin;
    return seconds;
  };
  for (int i = 0; i < 32; ++i)
    driver.submit(make_request(100, 2000, i));
  double quiet = 0.0;
  for (int i = 0; i < 100; ++i) {
    REQUIRE(driver.plan());
    quiet = seconds_of();
    driver.retire(quiet);
  }
  std::vector<RequestId> late;
  for (int i = 0; i < 4; ++i)
    late.push_back(driver.submit(make_request(3200, 10, 100 + i)));
  double worst = 0.0;
  int num_turns = 0;
  while (driver.finishes.count(late.back()) == 0 && num_turns < 1000) {
    REQUIRE(driver.plan());
    worst = std::max(worst, seconds_of());
    driver.retire(seconds_of());
    ++num_turns;
  }
  CHECK(num_turns < 100);
  return worst / quiet;
}

TEST_CASE("Scheduler: long prompts stretch decode steps at most to the target", "[sched]") {
  SchedulerConfig config = base_config();
  config.num_pages = 2048;
  config.max_slots = 64;
  config.max_step_tokens = 4096;
  config.chunked_prefill_tokens = 2048;
  config.max_prefill_tokens = 16'384;
  CHECK(worst_stretch(config) <= 2.0);
  config.max_decode_stretch = 0.0;
  CHECK(worst_stretch(config) > 4.0);  // what the target prevents
  config.target_step_ms = 40.0;
  CHECK(worst_stretch(config) * 0.0164 <= 0.042);
}

TEST_CASE("Scheduler: nobody is retracted more than twice, and everybody finishes", "[sched]") {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    uint64_t state = seed;
    const auto draw = [&](int32_t below) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      return static_cast<int32_t>((state >> 33U) % static_cast<uint64_t>(below));
    };
    SchedulerConfig config = base_config(1 + draw(2));
    config.num_pages = 8 + draw(8);
    config.conservativeness = 0.0;
    config.enable_radix_cache = draw(2) == 0;
    config.policy = draw(2) == 0 ? SchedulePolicy::priority : SchedulePolicy::lpm;
    Driver driver(config);
    int num_submitted = 0;
    for (int i = 0; i < 20'000 && (num_submitted < 25 || driver.scheduler.has_work()); ++i) {
      if (num_submitted < 25 && draw(3) == 0) {
        GenerateRequest request = make_request(1 + draw(150), 1 + draw(350), draw(4));
        request.priority = draw(3);
        if (Scheduler::validate(config, request))
          driver.submit(std::move(request));
        ++num_submitted;
      }
      driver.turn();
    }
    CHECK(driver.finishes.size() == driver.last_id);
    CHECK(driver.scheduler.stats().max_retractions_of_one <= 2);
  }
}

}  // namespace
}  // namespace hadal
