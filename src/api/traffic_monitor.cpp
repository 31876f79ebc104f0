// See traffic_monitor.h.
#include "traffic_monitor.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>

#include <hadal/base/log.h>

namespace hadal::api {

namespace {

constexpr std::chrono::milliseconds kTurn{100};
constexpr double kReportSeconds = 10;  ///< between lines about refusals
constexpr double kStepFade = 0.1;
constexpr int32_t kCanaryTokens = 8;

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", seconds);
  return text;
}

}  // namespace

struct TrafficMonitor::CanarySink final : public TokenSink {
  void on_event(TokenEvent event) noexcept override {
    const std::lock_guard lock(mutex);
    if (event.token) {
      tokens.push_back(*event.token);
    }
    finish = event.finish;
  }

  std::mutex mutex;
  std::vector<TokenId> tokens;
  std::optional<FinishReason> finish;
};

TrafficMonitor::TrafficMonitor(ServerCore& core, std::function<void()> on_trip)
    : core_(core),
      on_trip_(std::move(on_trip)),
      thread_([this](const std::stop_token& stop) { run(stop); }) {}

void TrafficMonitor::run(const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  while (!wake.wait_for(lock, stop, kTurn, [&] { return stop.stop_requested(); })) {
    turn(system_clock().now());
  }
  if (canary_ != nullptr) {
    core_.model()->engine->cancel(canary_id_);
  }
}

void TrafficMonitor::turn(TimePoint now) {
  watch_progress();
  // While nobody is let in, what waits is the engine's failure and no load.
  core_.traffic().update(core_.traffic().is_open() ? PressureSample{} : core_.pressure());
  watch_canary(now);
  if (now - last_report_ > std::chrono::duration<double>(kReportSeconds)) {
    const std::string refusals = core_.traffic().take_refusals();
    if (!refusals.empty()) {
      log_warning("Refused of late, by gate: " + refusals);
      last_report_ = now;
    }
  }
}

/// Work, and no step that ends: the engine hangs.
void TrafficMonitor::watch_progress() {
  const EngineStats stats = core_.model()->engine->stats();
  const BreakerConfig& config = core_.config().traffic.breaker;
  if (stats.last_step_id > last_step_id_) {
    const double seconds =
        std::chrono::duration<double>(stats.last_step_time - last_step_time_).count() /
        static_cast<double>(stats.last_step_id - last_step_id_);
    // A gap in which nobody asked for a step, or in which one hung, says nothing about steps.
    if (was_busy_ && stats.num_running > 0 && seconds < config.hang_s) {
      step_seconds_ += kStepFade * (seconds - step_seconds_);
    }
    last_step_id_ = stats.last_step_id;
    last_step_time_ = stats.last_step_time;
  }
  was_busy_ = stats.num_running > 0;
  const double most = std::max(config.hang_s, config.hang_steps * step_seconds_);
  const double stalled = core_.stalled_seconds();
  if (config.hang_s > 0 && stalled > most && !core_.traffic().is_open()) {
    core_.traffic().trip("step " + std::to_string(stats.last_step_id + 1) + " has not ended for " +
                         seconds_text(stalled));
    on_trip_();
  }
}

void TrafficMonitor::start_canary(TimePoint now) {
  const ServedModel& model = *core_.model();
  const Canary& known = model.canary;
  GenerateRequest request;
  request.prompt = known.prompt;
  if (request.prompt.empty()) {
    request.prompt = {model.tokenizer->bos_id().value_or(0)};
  }
  request.sampling.temperature = 0;
  request.max_new_tokens =
      known.answer.empty() ? kCanaryTokens : static_cast<int32_t>(known.answer.size());
  request.ignore_stop_tokens = true;
  request.share_key = "canary";
  canary_ = std::make_shared<CanarySink>();
  canary_deadline_ =
      now + std::chrono::duration_cast<TimePoint::duration>(
                std::chrono::duration<double>(core_.config().traffic.breaker.canary_deadline_s));
  const Result<RequestId> id = model.engine->submit(std::move(request), canary_);
  if (!id) {
    log_warning("Canary: " + id.error().message);
    canary_ = nullptr;
    core_.traffic().on_canary(false);
    return;
  }
  canary_id_ = id.value();
}

void TrafficMonitor::watch_canary(TimePoint now) {
  if (canary_ == nullptr) {
    if (core_.traffic().breaker_state() == BreakerState::half_open) {
      start_canary(now);
    }
    return;
  }
  std::optional<FinishReason> finish;
  std::vector<TokenId> tokens;
  {
    const std::lock_guard lock(canary_->mutex);
    finish = canary_->finish;
    tokens = canary_->tokens;
  }
  if (!finish && now < canary_deadline_) {
    return;
  }
  const std::vector<TokenId>& answer = core_.model()->canary.answer;
  const bool has_ended = finish == FinishReason::length || finish == FinishReason::stop;
  const bool is_right = answer.empty() ? !tokens.empty() : tokens == answer;
  if (!finish) {
    core_.model()->engine->cancel(canary_id_);
  }
  log_info(std::string("Canary: ") + (!has_ended  ? "no answer"
                                      : !is_right ? "a wrong answer"
                                                  : "the right answer"));
  canary_ = nullptr;
  core_.traffic().on_canary(has_ended && is_right);
}

}  // namespace hadal::api
