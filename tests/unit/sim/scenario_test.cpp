// The scheduler's promises under pressure, on short traces and R1's 16 GPUs: long prompts beside
// streams, ten times the load, a tenant that floods. `hadal bench sched` prints the same at length.
#include <hadal/sim/scenario.h>
#include <hadal/sim/workload.h>

#include "catch.h"

namespace hadal::sim {
namespace {

SimConfig group_config() {
  SimConfig config;
  config.scheduler.num_pages = 1'190'000 / 64;
  config.scheduler.max_slots = 256;
  config.scheduler.max_step_tokens = 16'384 + 257;
  config.scheduler.max_context_tokens = 163'840;
  config.scheduler.max_steps_in_flight = 2;
  return config;
}

/// A processor: the work of decodes and prefill adds up, 60 ms for 32 rows, 0.3 ms a prompt token.
StepModel processor_model() {
  StepModel model;
  model.mixing = StepModel::Mixing::add;
  model.decode.points = {{1.0, 0.014}, {32.0, 0.060}};
  model.prefill.points = {{0.0, 0.004}, {1000.0, 0.304}};
  model.context_s = 1e-7;
  model.pair_s = 2e-8;
  return model;
}

TEST_CASE("Scenario: four long prompts at most double the time between the tokens of 32 streams",
          "[sim]") {
  const SimConfig config = group_config();
  for (const StepModel& model : {r1_group_model(), processor_model()}) {
    LongPrompts scenario;
    scenario.stream_output_tokens = 1'200;
    const auto result = measure_long_prompts(config, model, scenario);
    REQUIRE(result);
    INFO(model.name << " quiet " << result.value().quiet_p99_s << " with prompts "
                    << result.value().disturbed_p99_s << " in " << result.value().window_s);
    CHECK(result.value().stretch() <= 2.0);
    CHECK(result.value().stretch() >= 1.3);  // the prompts are computed beside the streams
  }
}

TEST_CASE("Scenario: a tenant beside one that floods is served at once and never refused",
          "[sim]") {
  for (const double rate : {18.0, 40.0}) {
    const auto result = measure_two_tenants(group_config(), r1_group_model(), rate, 60.0);
    REQUIRE(result);
    const TwoTenantsResult& tenants = result.value();
    CHECK(tenants.quiet.num_rejected == 0);
    CHECK(tenants.quiet.num_finished == tenants.solo.num_finished);
    CHECK(tenants.quiet.ttft.p99 <= 2.0 * tenants.solo.ttft.p99);
  }
}

#ifndef HADAL_SANITIZED  // minutes there
TEST_CASE("Scenario: a tenant beside a hundred times its load waits half as long again at most",
          "[sim]") {
  // Long enough for a p99 of two hundred requests; the group serves 24 requests a second.
  const double rate = GENERATE(5.0, 15.0);
  const auto result = measure_two_tenants(group_config(), r1_group_model(), rate, 1'500.0);
  REQUIRE(result);
  const TwoTenantsResult& tenants = result.value();
  INFO(rate << "/s: alone " << tenants.solo.ttft.p99 << " s, beside " << tenants.quiet.ttft.p99);
  CHECK(tenants.quiet.num_rejected == 0);
  CHECK(tenants.loud.num_finished > 90 * tenants.quiet.num_finished);
  CHECK(tenants.stretch() <= 1.5);
}
#endif

TEST_CASE("Scenario: what the bound on decode steps costs under load", "[sim]") {
  const auto trace = make_workload({"two-tenants", 1, 40.0, 18.0, 1.0});
  REQUIRE(trace);
  double served[2] = {};
  double ttft[2] = {};
  for (const bool is_bounded : {false, true}) {
    SimConfig config = group_config();
    if (!is_bounded)
      config.scheduler.max_decode_stretch = 0.0;
    const auto result = simulate(config, r1_group_model(), trace.value());
    REQUIRE(result);
    const Report report = make_report(trace.value(), result.value(), Slo{}, 1);
    served[is_bounded ? 1 : 0] = report.goodput_per_s;
    ttft[is_bounded ? 1 : 0] = report.ttft.p50;
  }
  CHECK(served[1] >= 0.97 * served[0]);
  CHECK(ttft[1] <= 1.3 * ttft[0]);
}

#ifndef HADAL_SANITIZED  // minutes there
TEST_CASE("Scenario: ten times the load keeps four fifths of the goodput", "[sim]") {
  // Whoever may wait W for admission is promised the first token within W and a prompt's time.
  SimConfig config = group_config();
  config.queue.max_wait_seconds = GENERATE(1.0, QueueLimits{}.max_wait_seconds);
  const Slo slo{.ttft_s = config.queue.max_wait_seconds + 2.0};
  double goodput[2] = {};
  for (const bool is_overload : {false, true}) {
    const auto trace = make_workload({"group-hour", 1, 120.0, is_overload ? 48.0 : 4.8, 1.0});
    REQUIRE(trace);
    const auto result = simulate(config, r1_group_model(), trace.value());
    REQUIRE(result);
    const Report report = make_report(trace.value(), result.value(), slo, 1);
    goodput[is_overload ? 1 : 0] = report.goodput_per_s;
    CHECK((report.num_rejected > 0) == is_overload);
  }
  INFO("wait up to " << config.queue.max_wait_seconds << " s: " << goodput[0] << "/s, overloaded "
                     << goodput[1]);
  CHECK(goodput[1] >= 0.8 * goodput[0]);
}
#endif

}  // namespace
}  // namespace hadal::sim
