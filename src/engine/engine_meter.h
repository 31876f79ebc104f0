// Turns what happens to requests into metrics. It owns the times of each request, nothing else.
#pragma once

#include <array>
#include <cstdint>

#include <hadal/base/clock.h>
#include <hadal/metrics/metrics.h>
#include <hadal/runtime/graph_config.h>
#include <hadal/sched/request.h>
#include <hadal/sched/scheduler.h>

namespace hadal {

/// When what happened to one request.
struct RequestTimes {
  TimePoint submitted;
  TimePoint last_token;
  int32_t num_prompt_tokens = 0;
  bool has_event = false;
  bool has_token = false;
};

/// Sums of the last 60 seconds in one-second buckets.
class MinuteSums {
 public:
  struct Sums {
    int64_t prompt_tokens = 0;
    int64_t cached_tokens = 0;
    int64_t generated_tokens = 0;
  };

  /// The bucket of now; older ones fall out.
  Sums& at(TimePoint now);
  Sums minute() const;

  /// Tokens generated in the last whole second before now.
  int64_t generated_last_second() const;

 private:
  static constexpr int64_t kSeconds = 60;
  std::array<Sums, static_cast<size_t>(kSeconds)> buckets_{};
  int64_t second_ = 0;
};

/// Engine thread only.
class EngineMeter {
 public:
  /// `page_bytes` of one rank.
  EngineMeter(Metrics& metrics, int64_t page_bytes)
      : metrics_(metrics), page_bytes_(static_cast<double>(page_bytes)) {}

  void on_admission(const RequestTimes& times, TimePoint now);
  void on_event(const TokenEvent& event, RequestTimes& times, TimePoint now);

  /// `counts` as the runner has them after this step.
  void on_step(double seconds, const StepCounts& counts);

  /// Sets the gauges; `num_queued` counts requests that the scheduler has not seen yet, too.
  void on_stats(const SchedulerStats& stats, int32_t num_queued, TimePoint now);

  /// Rates do not stay at their last value while the engine sleeps.
  void on_idle() { metrics_.generation_throughput.set(0.0); }

 private:
  Metrics& metrics_;
  MinuteSums sums_;
  const double page_bytes_;
  SchedulerStats last_;
  StepCounts last_counts_;
};

}  // namespace hadal
