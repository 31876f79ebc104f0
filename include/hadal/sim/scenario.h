// Promises of the scheduler as experiments: what `hadal bench sched` prints at full length and the
// tests hold on short traces.
#pragma once

#include <vector>

#include <hadal/sim/report.h>
#include <hadal/sim/simulator.h>
#include <hadal/sim/step_model.h>

namespace hadal::sim {

/// Streams decode; then long prompts come all at once.
struct LongPrompts {
  int32_t num_streams = 32;
  int32_t num_prompts = 4;
  int32_t prompt_tokens = 3'200;
  int32_t stream_prompt_tokens = 1'000;
  int32_t stream_output_tokens = 3'000;
};

/// Times between tokens from the arrival of the long prompts to the first token of the last one,
/// without and with them.
struct LongPromptsResult {
  double quiet_p99_s = 0.0;
  double quiet_max_s = 0.0;
  double disturbed_p99_s = 0.0;
  double disturbed_max_s = 0.0;
  double window_s = 0.0;  ///< until the last first token

  double stretch() const { return disturbed_p99_s / quiet_p99_s; }
};

Result<LongPromptsResult> measure_long_prompts(const SimConfig& config,
                                               const StepModel& model,
                                               const LongPrompts& scenario);

/// A tenant alone, and beside one that sends a hundred times as much (workload `two-tenants`).
struct TwoTenantsResult {
  TenantReport solo;
  TenantReport quiet;
  TenantReport loud;
  double fairness = 1.0;

  double stretch() const { return quiet.ttft.p99 / solo.ttft.p99; }
};

Result<TwoTenantsResult> measure_two_tenants(const SimConfig& config,
                                             const StepModel& model,
                                             double requests_per_s,
                                             double duration_s);

}  // namespace hadal::sim
