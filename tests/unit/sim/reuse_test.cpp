// What the radix cache and the policy lpm are for, on seeded workloads and R1's 16 GPUs: reuse
// against its bounds. `hadal bench sched` prints the same at full length.
#include <hadal/sim/report.h>
#include <hadal/sim/workload.h>

#include "catch.h"

namespace hadal::sim {
namespace {

Report run(std::string_view kind,
           double requests_per_s,
           int32_t num_pages,
           SchedulePolicy policy,
           EvictionPolicy eviction = EvictionPolicy::lru) {
  const auto trace = make_workload({kind, 1, 90.0, requests_per_s, 1.0});
  REQUIRE(trace);
  SimConfig config;
  config.scheduler.num_pages = num_pages;
  config.scheduler.max_slots = 256;
  config.scheduler.max_step_tokens = 16'384 + 257;
  config.scheduler.max_context_tokens = 163'840;
  config.scheduler.max_steps_in_flight = 2;
  config.scheduler.policy = policy;
  config.scheduler.eviction = eviction;
  config.queue = {100'000, 1'000'000'000, 0.0};
  const auto result = simulate(config, r1_group_model(), trace.value());
  REQUIRE(result);
  const Report report = make_report(trace.value(), result.value(), Slo{}, num_pages);
  CHECK(report.num_finished == static_cast<int64_t>(trace.value().requests.size()));
  return report;
}

TEST_CASE("Reuse: within 2 points of an infinite cache when the pool holds the working set",
          "[sim]") {
  for (const char* kind : {"sharegpt", "agents", "long-document", "fan-out"}) {
    INFO(kind);
    const Report report = run(kind, 0.0, 120'000, SchedulePolicy::lpm);
    CHECK(report.num_evicted_pages == 0);
    CHECK(report.hit_rate > 0.5);
    CHECK(report.hit_rate >= report.bounds.rate(report.bounds.infinite) - 0.02);
    CHECK(report.hit_rate >= report.bounds.rate(report.bounds.whole_prompt));
  }
}

#ifndef HADAL_SANITIZED  // minutes there
TEST_CASE(
    "Reuse: under load and at a quarter of the working set, lpm is within 10 points of Belady",
    "[sim]") {
  const double rate = 8.0;
  const int32_t working_set =
      run("long-document", rate, 120'000, SchedulePolicy::lpm).bounds.num_pages;
  const Report lpm = run("long-document", rate, working_set / 4, SchedulePolicy::lpm);
  const Report fcfs = run("long-document", rate, working_set / 4, SchedulePolicy::fcfs);
  CHECK(lpm.num_evicted_pages > 0);
  CHECK(lpm.hit_rate >= lpm.bounds.rate(lpm.bounds.belady) - 0.10);
  CHECK(lpm.hit_rate > fcfs.hit_rate + 0.05);
  CHECK(lpm.ttft.p50 < fcfs.ttft.p50);
}
#endif

}  // namespace
}  // namespace hadal::sim
