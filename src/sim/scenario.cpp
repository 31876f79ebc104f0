// See scenario.h.
#include <algorithm>

#include <hadal/sim/scenario.h>
#include <hadal/sim/workload.h>

namespace hadal::sim {
namespace {

SimRequest make_stream(uint64_t seed, double arrival_s, int32_t prompt, int32_t output) {
  SimRequest request;
  request.arrival_s = arrival_s;
  request.prompt.push_back({seed, 0, prompt});
  request.output_seed = seed + 1'000'000;
  request.output_tokens = output;
  request.max_new_tokens = output;
  return request;
}

}  // namespace

Result<LongPromptsResult> measure_long_prompts(const SimConfig& config,
                                               const StepModel& model,
                                               const LongPrompts& scenario) {
  Trace trace;
  trace.name = "long-prompts";
  for (int32_t i = 0; i < scenario.num_streams; ++i)
    trace.requests.push_back(make_stream(static_cast<uint64_t>(i) + 1,
                                         0.0,
                                         scenario.stream_prompt_tokens,
                                         scenario.stream_output_tokens));
  const Trace quiet = trace;
  auto streams = simulate(config, model, quiet);
  if (!streams)
    return streams.error();
  // All streams have started, and a third of the way is left to be measured.
  double started_s = 0.0;
  double ended_s = streams.value().end_s;
  for (const RequestResult& request : streams.value().requests) {
    started_s = std::max(started_s, request.first_token_s);
    ended_s = std::min(ended_s, request.end_s);
  }
  const double come_s = started_s + (ended_s - started_s) / 3.0;
  for (int32_t i = 0; i < scenario.num_prompts; ++i)
    trace.requests.push_back(
        make_stream(500'000 + static_cast<uint64_t>(i), come_s, scenario.prompt_tokens, 4));
  auto both = simulate(config, model, trace);
  if (!both)
    return both.error();
  LongPromptsResult out;
  for (const RequestResult& request : both.value().requests)
    out.window_s = std::max(out.window_s, request.first_token_s - come_s);
  if (come_s + out.window_s > ended_s)
    return Error{ErrorCode::invalid_argument,
                 "the streams end before the last long prompt has been computed"};
  SimConfig windowed = config;
  windowed.gaps_from_s = come_s;
  windowed.gaps_until_s = come_s + out.window_s;
  streams = simulate(windowed, model, quiet);
  both = simulate(windowed, model, trace);
  out.quiet_p99_s = streams.value().gaps.quantile(0.99);
  out.quiet_max_s = streams.value().gaps.quantile(1.0);
  out.disturbed_p99_s = both.value().gaps.quantile(0.99);
  out.disturbed_max_s = both.value().gaps.quantile(1.0);
  return out;
}

Result<TwoTenantsResult> measure_two_tenants(const SimConfig& config,
                                             const StepModel& model,
                                             double requests_per_s,
                                             double duration_s) {
  WorkloadConfig workload;
  workload.kind = "two-tenants";
  workload.requests_per_s = requests_per_s;
  workload.duration_s = duration_s;
  auto both = make_workload(workload);
  if (!both)
    return both.error();
  Trace alone = both.value();
  std::erase_if(alone.requests,
                [](const SimRequest& request) { return request.tenant != "quiet"; });
  TwoTenantsResult out;
  for (const Trace* trace : {&alone, &both.value()}) {
    auto run = simulate(config, model, *trace);
    if (!run)
      return run.error();
    const Report report = make_report(*trace, run.value(), Slo{}, config.scheduler.num_pages);
    for (const TenantReport& tenant : report.tenants) {
      if (tenant.tenant == "quiet")
        (trace == &alone ? out.solo : out.quiet) = tenant;
      else
        out.loud = tenant;
    }
    out.fairness = report.fairness;
  }
  return out;
}

}  // namespace hadal::sim
