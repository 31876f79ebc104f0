// A decode step is one that samples for at least one row.
#include "step_log.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include <hadal/base/log.h>
#include <hadal/runtime/wrapped_runner.h>

namespace hadal {

class StepLog::CountingRunner final : public WrappedRunner {
 public:
  CountingRunner(std::unique_ptr<Runner> runner, StepLog& log)
      : WrappedRunner(std::move(runner)), log_(log) {}

  Result<StepResult> wait() override {
    auto result = WrappedRunner::wait();
    if (result) {
      const auto& rows = result.value().rows;
      const int64_t sampled = std::count_if(
          rows.begin(), rows.end(), [](const RowResult& row) { return row.token >= 0; });
      log_.num_tokens_.fetch_add(sampled, std::memory_order_relaxed);
      log_.num_decode_steps_.fetch_add(sampled > 0 ? 1 : 0, std::memory_order_relaxed);
    }
    return result;
  }

 private:
  StepLog& log_;
};

std::unique_ptr<Runner> StepLog::wrap(std::unique_ptr<Runner> runner) {
  return std::make_unique<CountingRunner>(std::move(runner), *this);
}

void StepLog::report(const EngineStats& stats, TimePoint now) {
  const int64_t steps = num_decode_steps_.load(std::memory_order_relaxed);
  const int64_t tokens = num_tokens_.load(std::memory_order_relaxed);
  if (stats.num_running == 0 || reported_at_ == TimePoint{}) {
    reported_steps_ = steps;  // idle time is not part of any throughput
    reported_tokens_ = tokens;
    reported_at_ = now;
    return;
  }
  if (steps - reported_steps_ < interval_) {
    return;
  }
  const double seconds = std::chrono::duration<double>(now - reported_at_).count();
  log_info(decode_line(stats, static_cast<double>(tokens - reported_tokens_) / seconds));
  reported_steps_ = steps;
  reported_tokens_ = tokens;
  reported_at_ = now;
}

std::string decode_line(const EngineStats& stats, double throughput) {
  const double usage = stats.pages_total > 0 ? static_cast<double>(stats.pages_leased) /
                                                   static_cast<double>(stats.pages_total)
                                             : 0;
  std::array<char, 200> line{};
  std::snprintf(line.data(),
                line.size(),
                "Decode batch. #running-req: %d, #token: %lld, token usage: %.2f, "
                "gen throughput (token/s): %.2f, #queue-req: %d",
                stats.num_running,
                static_cast<long long>(stats.pages_leased) * kPageTokens,
                usage,
                throughput,
                stats.num_queued);
  return line.data();
}

}  // namespace hadal
