// The production scheduler on a modelled device under a fake clock: what a trace would have met.
//
// The loop is the engine's: with two steps in flight the host plans one step while the device works
// on the other, arrivals are seen when a step is planned, and a request beyond the queue's bounds
// is refused. Same trace, same answers, on any machine.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <hadal/sched/queue_gate.h>
#include <hadal/sched/scheduler.h>
#include <hadal/sim/step_model.h>
#include <hadal/sim/trace.h>

namespace hadal::sim {

/// Times between a sequence's tokens, counted in classes 1 % apart.
class GapCounts {
 public:
  void add(double seconds);

  int64_t count() const { return count_; }

  /// Nearest rank, the upper end of its class; 0 without gaps.
  double quantile(double share) const;

  double mean() const { return count_ > 0 ? sum_ / static_cast<double>(count_) : 0.0; }

 private:
  static constexpr size_t kClasses = 2000;  ///< from 1 us, by factors of 1.01
  std::array<int64_t, kClasses> counts_{};
  int64_t count_ = 0;
  double sum_ = 0.0;
};

struct SimConfig {
  SchedulerConfig scheduler;  ///< vocab_size and absorbed_chunk_tokens are set by the simulator
  QueueLimits queue;
  double host_step_s = 100e-6;     ///< of planning and committing one step
  double request_timeout_s = 0.0;  ///< from arrival to the last token; 0 = none
  /// Gaps between tokens count that end in this time.
  double gaps_from_s = 0.0;
  double gaps_until_s = std::numeric_limits<double>::max();
};

enum class Outcome : uint8_t { finished, rejected, failed, never_arrived };

struct RequestResult {
  Outcome outcome = Outcome::never_arrived;
  double arrival_s = 0.0;
  double admitted_s = 0.0;
  double first_token_s = 0.0;
  double end_s = 0.0;
  double last_token_s = 0.0;
  int32_t num_prompt_tokens = 0;
  int32_t num_cached_tokens = 0;
  int32_t num_output_tokens = 0;

  double ttft_s() const { return first_token_s - arrival_s; }

  double e2e_s() const { return end_s - arrival_s; }

  /// Mean time between tokens; 0 for one token.
  double tpot_s() const {
    return num_output_tokens > 1 ? (end_s - first_token_s) / (num_output_tokens - 1) : 0.0;
  }
};

/// State at a whole second.
struct Sample {
  double time_s = 0.0;
  int32_t num_running = 0;
  int32_t num_waiting = 0;
  int32_t pages_leased = 0;
  int32_t pages_cached = 0;
};

/// What one tenant got, in seconds in which at least two had requests waiting.
struct TenantService {
  std::string tenant;
  double weighted_tokens = 0.0;  ///< uncached prompt tokens + 4 per output token
};

struct SimResult {
  std::vector<RequestResult> requests;  ///< as in the trace
  std::vector<Sample> samples;
  std::vector<TenantService> contended;
  GapCounts gaps;
  SchedulerStats scheduler;
  int64_t num_steps = 0;
  double device_busy_s = 0.0;
  double end_s = 0.0;
};

/// invalid_argument when no request of the trace fits the configuration's limits on lengths; single
/// requests that don't are `rejected`.
Result<SimResult> simulate(const SimConfig& config, const StepModel& model, const Trace& trace);

}  // namespace hadal::sim
