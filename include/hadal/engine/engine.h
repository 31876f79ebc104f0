// The engine: takes requests, runs the step loop on its own thread, and hands every token to the
// request's sink.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <hadal/base/clock.h>
#include <hadal/base/result.h>
#include <hadal/plan/batch_plan.h>
#include <hadal/runtime/runner.h>
#include <hadal/sched/queue_gate.h>
#include <hadal/sched/request.h>

namespace hadal {

struct Metrics;

struct EngineConfig {
  int32_t max_running_requests = 256;
  int32_t max_queued_requests = 1024;
  int64_t max_queued_tokens = 4'000'000;
  double max_queue_wait_s = 10.0;  ///< under lasting overload; 0 = any
  int32_t chunked_prefill_tokens =
      2048;  ///< prefill tokens of one step, all sequences; <= 0 = prompts run whole
  int32_t max_prefill_tokens = 16384;  ///< the same, and for prompts that run whole
  double target_step_ms = 0.0;         ///< of steps that decode; 0 = by max_decode_stretch
  double max_decode_stretch = 1.8;  ///< prefill may stretch a decode step to this multiple; 0 = any
  double request_timeout_s = 0.0;   ///< from submission to the last token; 0 = none
  SchedulePolicy policy = SchedulePolicy::lpm;
  bool enable_radix_cache = true;
  EvictionPolicy eviction = EvictionPolicy::lru;
  uint64_t policy_seed = 0;
  /// How much future output is reserved when a request is admitted; larger = fewer retractions.
  double schedule_conservativeness = 1.0;
};

/// Numbers for /get_server_info, tests and the idle invariant; a snapshot.
struct EngineStats {
  int32_t num_running = 0;
  int32_t num_queued = 0;
  int32_t pages_total = 0;
  int32_t pages_free = 0;
  int32_t pages_cached = 0;  ///< held by the radix tree alone
  int32_t pages_leased = 0;  ///< held by running sequences, shared ones counted once
  int64_t num_retractions = 0;
  int64_t cached_tokens_total = 0;
  double queue_wait_s = 0.0;        ///< how long the whole queue takes to be admitted
  double queue_wait_limit_s = 0.0;  ///< beyond which requests are refused; 0 = never
  double queue_fill = 0.0;          ///< of its places in requests or tokens, the fuller
  uint64_t last_step_id = 0;
  TimePoint last_step_time{};
};

/// All methods are thread-safe; sinks are called from the engine thread.
class Engine {
 public:
  /// The engine owns the runner; metrics and clock are borrowed for its lifetime.
  Engine(const EngineConfig& config,
         std::unique_ptr<Runner> runner,
         Metrics& metrics,
         const Clock& clock = system_clock());
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();

  /// resource_exhausted when the queue is full or its wait too long (HTTP 503, or 504 for a
  /// deadline that would pass; `refusal` says which), unavailable when draining or failed (503),
  /// invalid_argument when the request can never run (too long; says both numbers).
  Result<RequestId> submit(GenerateRequest request,
                           std::shared_ptr<TokenSink> sink,
                           QueueRefusal* refusal = nullptr);
  /// Why submit() would refuse a request like this now, before anybody has tokenised it; counts
  /// nothing in.
  std::optional<QueueRefusal> ask(const QueuedRequest& request);
  /// Unknown or finished ids are ignored. The sink gets finish = cancelled; pages are free when the
  /// step in flight retires.
  void cancel(RequestId id) noexcept;

  void start();
  /// No new work; running and queued requests finish until `deadline`, what is left ends with
  /// finish = error ("draining").
  void drain_and_stop(TimePoint deadline);

  /// Drops all unleased cached pages (`/flush_cache`); false when requests are running.
  bool flush_cache();
  EngineStats stats() const;
  const RunnerLimits& limits() const;
  /// Set once a step failed for the whole group; the message of the fatal error.
  std::optional<std::string> fatal_error() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hadal
