// The simulator against arithmetic: times of single requests, queues, turns, tenants, and reports.
#include <numeric>

#include <hadal/sim/report.h>
#include <hadal/sim/simulator.h>
#include <hadal/sim/workload.h>

#include "catch.h"

namespace hadal::sim {
namespace {

/// 10 ms a step whatever it carries, and 1 ms a token of prefill.
StepModel flat_model() {
  StepModel model;
  model.decode.points = {{0.0, 0.010}, {1000.0, 0.010}};
  model.prefill.points = {{0.0, 0.010}, {1000.0, 1.010}};
  return model;
}

SimConfig small_config() {
  SimConfig config;
  config.scheduler.num_pages = 64;
  config.scheduler.max_slots = 4;
  config.scheduler.max_running_requests = 4;
  config.scheduler.max_step_tokens = 600;
  config.scheduler.max_context_tokens = 2'000;
  config.scheduler.max_steps_in_flight = 1;
  config.host_step_s = 0.0;
  return config;
}

SimRequest ask(double arrival_s, uint64_t seed, int32_t tokens, int32_t output_tokens) {
  SimRequest request;
  request.arrival_s = arrival_s;
  request.prompt.push_back({seed, 0, tokens});
  request.output_seed = seed + 1'000'000;
  request.output_tokens = output_tokens;
  request.max_new_tokens = output_tokens;
  return request;
}

SimResult run(const SimConfig& config, std::vector<SimRequest> requests) {
  auto result = simulate(config, flat_model(), {"t", std::move(requests)});
  REQUIRE(result);
  return std::move(result).value();
}

TEST_CASE("Simulator: one request takes its prefill and its steps", "[sim]") {
  const SimResult result = run(small_config(), {ask(5.0, 1, 100, 11)});
  const RequestResult& request = result.requests[0];
  CHECK(request.outcome == Outcome::finished);
  CHECK(request.ttft_s() == Approx(0.110));
  CHECK(request.tpot_s() == Approx(0.010));
  CHECK(request.e2e_s() == Approx(0.210));
  CHECK(request.num_output_tokens == 11);
  CHECK(result.num_steps == 11);
  CHECK(result.end_s == Approx(5.21));
}

TEST_CASE("Simulator: an answer ends by its stop token", "[sim]") {
  SimRequest request = ask(0.0, 1, 10, 5);
  request.max_new_tokens = 50;
  const SimResult result = run(small_config(), {request});
  CHECK(result.requests[0].outcome == Outcome::finished);
  CHECK(result.requests[0].num_output_tokens == 5);
}

TEST_CASE("Simulator: planning ahead hides the host's time", "[sim]") {
  SimConfig config = small_config();
  config.host_step_s = 0.004;
  CHECK(run(config, {ask(0.0, 1, 10, 101)}).requests[0].tpot_s() == Approx(0.014));
  config.scheduler.max_steps_in_flight = 2;
  CHECK(run(config, {ask(0.0, 1, 10, 101)}).requests[0].tpot_s() == Approx(0.010).margin(0.0005));
}

TEST_CASE("Simulator: the next turn comes after the answer and finds it cached", "[sim]") {
  SimRequest second = ask(0.5, 1, 100, 3);
  second.after = 0;
  second.prompt.push_back({1'000'001, 0, 11});
  second.prompt.push_back({7, 0, 20});
  const SimResult result = run(small_config(), {ask(1.0, 1, 100, 11), second});
  CHECK(result.requests[1].arrival_s == Approx(result.requests[0].end_s + 0.5));
  CHECK(result.requests[1].num_prompt_tokens == 131);
  CHECK(result.requests[1].num_cached_tokens >= 110);
}

TEST_CASE("Simulator: what does not fit the queue or the context is rejected", "[sim]") {
  SimConfig config = small_config();
  config.scheduler.max_running_requests = 1;
  config.queue.max_requests = 2;
  std::vector<SimRequest> requests;
  for (int i = 0; i < 8; ++i)
    requests.push_back(ask(0.001 * i, static_cast<uint64_t>(i + 1), 50, 20));
  requests.push_back(ask(100.0, 50, 1'990, 20));
  const SimResult result = run(config, requests);
  const auto num_rejected =
      std::count_if(result.requests.begin(), result.requests.end(), [](const auto& request) {
        return request.outcome == Outcome::rejected;
      });
  CHECK(num_rejected == 6);
  CHECK(result.requests[8].outcome == Outcome::rejected);
  CHECK_FALSE(simulate(config, flat_model(), {"t", {ask(0.0, 1, 1'990, 20)}}));
}

TEST_CASE("Simulator: a request fails at its deadline, waiting or running", "[sim]") {
  SimConfig config = small_config();
  config.scheduler.max_running_requests = 1;
  config.request_timeout_s = 0.5;
  const SimResult result = run(config, {ask(0.0, 1, 10, 100), ask(0.1, 2, 10, 100)});
  CHECK(result.requests[0].outcome == Outcome::failed);
  CHECK(result.requests[0].e2e_s() == Approx(0.5).margin(0.03));
  CHECK(result.requests[1].outcome == Outcome::failed);
  CHECK(result.requests[1].e2e_s() == Approx(0.5).margin(0.03));
}

TEST_CASE("Simulator: the same trace gives the same answers", "[sim]") {
  const auto trace = make_workload({"agents", 5, 60.0, 0.0, 0.2});
  REQUIRE(trace);
  SimConfig config = small_config();
  config.scheduler.num_pages = 400;
  config.scheduler.max_context_tokens = 20'000;
  config.scheduler.max_steps_in_flight = 2;
  const auto a = simulate(config, flat_model(), trace.value());
  const auto b = simulate(config, flat_model(), trace.value());
  REQUIRE(a);
  const Report report_a = make_report(trace.value(), a.value(), Slo{}, 400);
  CHECK(to_json(report_a, Slo{}) ==
        to_json(make_report(trace.value(), b.value(), Slo{}, 400), Slo{}));
  CHECK(report_a.num_finished == static_cast<int64_t>(trace.value().requests.size()));
  CHECK(report_a.hit_rate <= report_a.bounds.rate(report_a.bounds.infinite) + 1e-9);
  CHECK(report_a.hit_rate > 0.5);
  const std::string svg = to_svg(a.value(), "a <title>", 400);
  CHECK(svg.starts_with("<svg "));
  CHECK(svg.ends_with("</svg>\n"));
  CHECK(svg.find("a &lt;title>") != std::string::npos);
  CHECK(svg.find("nan") == std::string::npos);
}

TEST_CASE("Report: percentiles are nearest ranks", "[sim]") {
  std::vector<double> values(100);
  std::iota(values.begin(), values.end(), 1.0);
  const Distribution d = distribution_of(values);
  CHECK(d.p50 == 50.0);
  CHECK(d.p90 == 90.0);
  CHECK(d.p99 == 99.0);
  CHECK(d.mean == Approx(50.5));
  CHECK(distribution_of({3.0}).p99 == 3.0);
  CHECK(distribution_of({}).p50 == 0.0);
}

TEST_CASE("Report: Jain's index", "[sim]") {
  CHECK(jain_index({2.0, 2.0, 2.0}) == Approx(1.0));
  CHECK(jain_index({1.0, 0.0, 0.0, 0.0}) == Approx(0.25));
  CHECK(jain_index({}) == 1.0);
}

TEST_CASE("Report: goodput counts what met both limits", "[sim]") {
  SimConfig config = small_config();
  config.scheduler.max_running_requests = 1;
  const Trace trace{"t", {ask(0.0, 1, 100, 11), ask(0.0, 2, 100, 11)}};
  const auto result = simulate(config, flat_model(), trace);
  REQUIRE(result);
  const Report report = make_report(trace, result.value(), Slo{0.2, 0.02}, 64);
  CHECK(report.attainment == Approx(0.5));  // the second waited for the first
  CHECK(report.goodput_per_s == Approx(1.0 / 0.42));
  CHECK(make_report(trace, result.value(), Slo{0.2, 0.005}, 64).attainment == 0.0);
}

}  // namespace
}  // namespace hadal::sim
