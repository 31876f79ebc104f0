// State of the engine: what callers' threads share with the engine thread (Inbox, under its mutex),
// and what the engine thread alone owns (everything else).
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include <hadal/engine/engine.h>
#include <hadal/sched/queue_gate.h>
#include <hadal/sched/scheduler.h>

#include "engine_meter.h"

namespace hadal {

enum class EnginePhase : uint8_t { created, running, draining, stopped };

struct Submission {
  RequestId id = 0;
  GenerateRequest request;
  std::shared_ptr<TokenSink> sink;
  TimePoint submitted;
};

struct FlushRequest {
  bool is_done = false;
  bool is_flushed = false;
};

/// Everything that more than one thread touches; guarded by `mutex`.
struct Inbox {
  explicit Inbox(const QueueLimits& limits) : gate(limits) {}

  mutable std::mutex mutex;
  std::condition_variable work;     ///< the engine thread sleeps here when idle
  std::condition_variable answers;  ///< drain_and_stop() and flush_cache() sleep here
  EnginePhase phase = EnginePhase::created;
  TimePoint deadline = TimePoint::max();
  RequestId next_id = 1;
  std::vector<Submission> submissions;
  QueueGate gate;  ///< of those that were accepted and have not run yet
  std::vector<RequestId> cancels;
  std::vector<FlushRequest*> flushes;
  SchedulerStats scheduler_stats;  ///< after the last step
  uint64_t last_step_id = 0;
  TimePoint last_step_time{};
  std::optional<std::string> fatal_error;
};

struct Engine::Impl {
  Impl(const EngineConfig& engine_config,
       std::unique_ptr<Runner> engine_runner,
       Metrics& engine_metrics,
       const Clock& engine_clock);

  struct Request {
    std::shared_ptr<TokenSink> sink;
    RequestTimes times;
    std::string share_key;
    double share_weight = 1.0;
    bool is_queued = true;  ///< counted by the inbox's gate

    QueuedRequest queued() const {
      return {share_key, share_weight, times.num_prompt_tokens, TimePoint::max()};
    }
  };

  // engine.cpp: callers' threads.
  Result<RequestId> submit(GenerateRequest request,
                           std::shared_ptr<TokenSink> sink,
                           QueueRefusal* refusal);
  Status enter_queue(const GenerateRequest& request, TimePoint now, QueueRefusal* refusal);
  void drain_and_stop(TimePoint deadline);

  // engine_loop.cpp: the engine thread (or, before start(), whoever stops the engine).
  void run();
  void wait_to_plan();
  bool take_inbox();
  void apply_inbox();
  void answer_flushes();
  Status run_step();
  Status retire_step();
  void publish();
  void publish_admissions(TimePoint now);
  void leave_queue(const Request& request, TimePoint now);
  void update_stats();
  void end_all(const std::string& error);
  void stop(const std::string& error);

  const EngineConfig config;
  const std::unique_ptr<Runner> runner;
  Metrics& metrics;
  const Clock& clock;
  const SchedulerConfig scheduler_config;
  Inbox inbox;

  // Engine thread only.
  Scheduler scheduler;
  EngineMeter meter;
  std::unordered_map<RequestId, Request> requests;
  std::deque<TimePoint> step_starts;
  TimePoint last_retire{};
  double host_seconds = 0.0;  ///< of a plan and its way to the device, the longest of late
  BatchPlan plan;             ///< its memory is used again every step
  std::vector<Submission> new_submissions;
  std::vector<RequestId> new_cancels;
  std::vector<FlushRequest*> new_flushes;
  std::vector<TokenEvent> events;
  std::vector<RequestId> admitted;

  std::mutex join_mutex;
  std::thread thread;
};

}  // namespace hadal
