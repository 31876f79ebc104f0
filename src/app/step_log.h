// The periodic "Decode batch" line of SGLang, which dashboards and people grep for.
#pragma once

#include <atomic>
#include <memory>

#include <hadal/base/clock.h>
#include <hadal/engine/engine.h>
#include <hadal/runtime/runner.h>

namespace hadal {

/// Counts sampled tokens and decode steps on the engine thread, writes the line on another.
class StepLog {
 public:
  /// A line at most every `interval` decode steps.
  explicit StepLog(int32_t interval) : interval_(interval) {}

  /// The same runner, counted. It refers to this object.
  std::unique_ptr<Runner> wrap(std::unique_ptr<Runner> runner);

  /// Writes a line when enough steps have passed since the last one.
  void report(const EngineStats& stats, TimePoint now);

 private:
  class CountingRunner;

  int64_t interval_;
  std::atomic<int64_t> num_tokens_{0};
  std::atomic<int64_t> num_decode_steps_{0};
  int64_t reported_tokens_ = 0;
  int64_t reported_steps_ = 0;
  TimePoint reported_at_{};
};

/// The line itself; throughput in tokens per second.
std::string decode_line(const EngineStats& stats, double throughput);

}  // namespace hadal
