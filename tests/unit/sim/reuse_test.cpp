// What the radix cache and the policy lpm are for, on R1's 16 GPUs: reuse against its bounds, on
// seeded workloads and on the committed traces of bench/sched/traces. `hadal bench sched` prints
// the same.
#include <fstream>
#include <sstream>

#include <hadal/sim/report.h>
#include <hadal/sim/workload.h>

#include "catch.h"

namespace hadal::sim {
namespace {

struct Setup {
  int32_t num_pages = 0;
  SchedulePolicy policy = SchedulePolicy::lpm;
  EvictionPolicy eviction = EvictionPolicy::lru;
};

Report run(const Trace& trace, const Setup& setup) {
  SimConfig config;
  config.scheduler.num_pages = setup.num_pages;
  config.scheduler.max_slots = 256;
  config.scheduler.max_step_tokens = 16'384 + 257;
  config.scheduler.max_context_tokens = 163'840;
  config.scheduler.max_steps_in_flight = 2;
  config.scheduler.policy = setup.policy;
  config.scheduler.eviction = setup.eviction;
  config.queue = {100'000, 1'000'000'000, 0.0};
  const auto result = simulate(config, r1_group_model(), trace);
  REQUIRE(result);
  const Report report = make_report(trace, result.value(), Slo{}, setup.num_pages);
  CHECK(report.num_finished == static_cast<int64_t>(trace.requests.size()));
  return report;
}

TEST_CASE("Reuse: within 2 points of an infinite cache when the pool holds the working set",
          "[sim]") {
  for (const char* kind : {"sharegpt", "agents", "long-document", "fan-out"}) {
    INFO(kind);
    const auto trace = make_workload({kind, 1, 90.0, 0.0, 1.0});
    REQUIRE(trace);
    const Report report = run(trace.value(), {120'000});
    CHECK(report.num_evicted_pages == 0);
    CHECK(report.hit_rate > 0.5);
    CHECK(report.hit_rate >= report.bounds.rate(report.bounds.infinite) - 0.02);
    CHECK(report.hit_rate >= report.bounds.rate(report.bounds.whole_prompt));
  }
}

#ifndef HADAL_SANITIZED  // minutes there

Trace committed(const std::string& name) {
  const std::string path = std::string(HADAL_SOURCE_DIR) + "/bench/sched/traces/" + name + ".jsonl";
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  auto trace = read_trace(text.str(), name);
  REQUIRE(trace);
  return std::move(trace).value();
}

TEST_CASE("Reuse: chats, readers and documents, against an infinite cache and Belady's rule",
          "[sim]") {
  const std::string name = GENERATE("chats", "readers", "documents");
  const Trace trace = committed(name);
  const int32_t working_set = run(trace, {120'000}).bounds.num_pages;

  // Running requests need some room beside what is cached.
  const Report whole = run(trace, {working_set + working_set / 4});
  CHECK(whole.hit_rate > 0.8);
  CHECK(whole.hit_rate >= whole.bounds.rate(whole.bounds.infinite) - 0.02);
  CHECK(whole.hit_rate >= whole.bounds.rate(whole.bounds.whole_prompt));

  const Report lpm = run(trace, {working_set / 4});
  const Report fcfs = run(trace, {working_set / 4, SchedulePolicy::fcfs});
  INFO(name << ": lpm " << lpm.hit_rate << ", fcfs " << fcfs.hit_rate << ", Belady "
            << lpm.bounds.rate(lpm.bounds.belady));
  CHECK(lpm.num_evicted_pages > 0);
  CHECK(lpm.hit_rate <= lpm.bounds.rate(lpm.bounds.belady));
  CHECK(lpm.hit_rate >= lpm.bounds.rate(lpm.bounds.belady) - 0.10);
  // Where nobody waits both admit in order of arrival: a tie, to the last few pages.
  CHECK(lpm.hit_rate >= fcfs.hit_rate - 0.001);
  if (name == "documents") {  // where requests wait, and the policy has a choice
    CHECK(lpm.hit_rate > fcfs.hit_rate + 0.10);
    CHECK(lpm.ttft.p50 < fcfs.ttft.p50);
  }
}

TEST_CASE("Reuse: what least-recently-used cannot keep, apart", "[sim]") {
  // A circle larger than the pool leaves LRU nothing; single questions about documents that are
  // drawn independently tell it nothing about what comes, and counting uses is better.
  const Trace scan = committed("cyclic-scan");
  const Report circle = run(scan, {run(scan, {120'000}).bounds.num_pages / 4});
  CHECK(circle.hit_rate < 0.01);
  CHECK(circle.bounds.rate(circle.bounds.belady) > 0.25);
  const Trace light = committed("documents-light");
  const int32_t quarter = run(light, {120'000}).bounds.num_pages / 4;
  const Report lru = run(light, {quarter});
  const Report lfu = run(light, {quarter, SchedulePolicy::lpm, EvictionPolicy::lfu});
  CHECK(lru.hit_rate > 0.6);
  CHECK(lfu.hit_rate > lru.hit_rate + 0.04);
  CHECK(lfu.hit_rate <= lfu.bounds.rate(lfu.bounds.belady));
}

TEST_CASE("Reuse: the committed traces are what their seeds make", "[sim]") {
  const std::tuple<const char*, const char*, double, double> traces[] = {
      {"chats", "sharegpt", 2.0, 300.0},
      {"readers", "readers", 0.5, 600.0},
      {"documents", "long-document", 12.0, 60.0},
      {"documents-light", "long-document", 1.5, 600.0},
      {"cyclic-scan", "cyclic-scan", 1.5, 300.0}};
  for (const auto& [name, kind, requests_per_s, duration_s] : traces) {
    INFO(name);
    const auto made = make_workload({kind, 1, duration_s, requests_per_s, 1.0});
    REQUIRE(made);
    CHECK((write_trace(made.value()) == write_trace(committed(name))));
  }
}

#endif

}  // namespace
}  // namespace hadal::sim
