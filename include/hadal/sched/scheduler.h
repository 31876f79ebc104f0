// The scheduler: decides what each step computes, for which sequences and on which pages.
//
// plan_next() and commit() alternate; up to SchedulerConfig::max_steps_in_flight plans may be out
// before the first is committed. It reads no clock (the caller tells the time and how long steps
// took), no randomness but its seed, and no model: the same calls give the same plans, so that
// every failure replays.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <hadal/base/clock.h>
#include <hadal/base/result.h>
#include <hadal/plan/batch_plan.h>
#include <hadal/sched/request.h>

namespace hadal {

struct SchedulerConfig {
  int32_t num_pages = 0;
  int32_t max_slots = 0;
  int32_t max_step_tokens = 0;  ///< at least 2
  int32_t max_step_logits = 0;  ///< 0 = max_step_tokens
  int32_t max_context_tokens = 0;
  int32_t vocab_size = 0;
  int32_t max_steps_in_flight = 1;
  int32_t max_running_requests = 256;
  int32_t chunked_prefill_tokens = 2048;  ///< prefill of one step; <= 0 = prompts run whole
  int32_t max_prefill_tokens = 16384;  ///< prefill of one step; a whole prompt alone may exceed it
  int32_t absorbed_chunk_tokens = 0;   ///< see cheaper_form()
  /// Steps that decode carry only as much prefill as lets them end within this time; 0 = by
  /// max_decode_stretch.
  double target_step_ms = 0.0;
  /// Prefill may stretch a step that decodes to this multiple of its time without prefill; 0 = any.
  /// Both need step times, see commit().
  double max_decode_stretch = 1.8;
  SchedulePolicy policy = SchedulePolicy::lpm;
  bool enable_radix_cache = true;
  EvictionPolicy eviction = EvictionPolicy::lru;
  int32_t num_host_pages = 0;  ///< of the host tier: where evicted pages are kept; 0 = nowhere
  /// Pages that one step brings back from the host tier at most, while something else runs.
  int32_t max_pages_back_per_step = 32;
  /// Drafts (RowResult::drafts) of one sequence that a step verifies at most; 0 = drafts are
  /// dropped. A sequence whose drafts are in flight gets its next row when they have been verified.
  int32_t max_draft_tokens = 0;
  uint64_t policy_seed = 0;
  double conservativeness = 1.0;
};

struct SchedulerStats {
  int32_t num_running = 0;
  int32_t num_waiting = 0;         ///< retracted ones included
  int64_t num_waiting_tokens = 0;  ///< prompt tokens of the waiting ones
  int32_t pages_total = 0;
  int32_t pages_free = 0;
  int32_t pages_cached = 0;
  int32_t pages_leased = 0;
  int64_t num_retractions = 0;
  int32_t max_retractions_of_one = 0;  ///< at most 2
  int64_t num_evicted_pages = 0;
  double evicted_age_seconds = 0.0;  ///< time since their last use of those pages, summed
  double oldest_age_seconds = 0.0;   ///< the same of the page that is evicted next
  int32_t host_pages_total = 0;
  int32_t host_pages_used = 0;
  int64_t num_pages_to_host = 0;
  int64_t num_pages_brought_back = 0;
  int64_t num_cached_tokens = 0;  ///< prompt tokens served from the cache, all sequences so far
  int64_t num_prompt_tokens = 0;  ///< prompt tokens of all sequences admitted so far
};

/// One thread only (the engine's).
class Scheduler {
 public:
  explicit Scheduler(const SchedulerConfig& config);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;
  /// Every step must be committed or abandoned first.
  ~Scheduler();

  /// invalid_argument when the request can never run; says what is wrong, the limit and the value.
  static Status validate(const SchedulerConfig& config, const GenerateRequest& request);

  /// `id` is larger than all before; `request` passed validate(). Ages are compared by id.
  void submit(RequestId id, GenerateRequest request);
  /// Ends a sequence now with finish = cancelled, or error when `error` is not empty. Its pages are
  /// free when the last submitted step with it retires. Unknown and finished ids are ignored.
  void cancel(RequestId id, std::string error = {});

  /// The time for all that follows; never goes back. Sequences whose deadline has come end now, as
  /// if by cancel(), with finish = deadline.
  void advance_to(TimePoint now);

  /// The next step, or nothing when there is no work or the step in flight must retire first; then
  /// nothing has changed.
  std::optional<BatchPlan> plan_next();
  /// The same into `plan`, whose memory is reused: in steady decode nothing is allocated. False =
  /// nothing; `plan` is then empty.
  bool plan_next(BatchPlan& plan);
  /// With one plan out: how long after the start of its step the next should be made, so that what
  /// arrives until then is in it and the device still finds it in time. 0 = now, as without step
  /// times (see commit()). `host_seconds` is what a plan takes from plan_next() to the device.
  double plan_delay_seconds(double host_seconds);
  /// Takes the result of the oldest plan that is out. `step_seconds` is how long the device worked
  /// on it alone, 0 = unknown; prefill budgets are learned from it.
  void commit(const StepResult& result, double step_seconds = 0.0);
  /// Forgets all plans that are out (the runner failed) and ends every sequence with `error`.
  void abandon(const std::string& error);

  /// Moves the events since the last call to the end of `out`, in order.
  void take_events(std::vector<TokenEvent>& out);

  /// Moves the ids that were admitted for the first time since the last call to the end of `out`.
  void take_admitted(std::vector<RequestId>& out);

  bool has_work() const;  ///< running or waiting sequences, or a step in flight
  int32_t num_in_flight() const;
  /// Drops all unleased cached pages, the host tier's too; returns how many of the device.
  int32_t flush_cache();
  SchedulerStats stats() const;
  /// Aborts with the name of the broken rule (reliability model: P1-P6, R1-R10, S4, S5, S8, L5).
  /// O(pages).
  void check_invariants() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hadal
