// What all connections of a server share. Atomics and values that are set once: no lock is held
// across anything that waits.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

#include <hadal/api/server.h>

#include "serving_context.h"
#include "traffic_control.h"

namespace hadal::api {

class ServerCore {
 public:
  ServerCore(ApiConfig config, const MetricsPage& metrics)
      : config_(std::move(config)),
        metrics_(metrics),
        ids_(config_.random_seed),
        traffic_(config_) {}

  const ApiConfig& config() const { return config_; }

  const MetricsPage& metrics() const { return metrics_; }

  IdSource& ids() { return ids_; }

  TrafficControl& traffic() { return traffic_; }

  /// Before the serving port opens; once.
  void set_model(const ServedModel& model);

  /// nullptr while loading.
  const ServedModel* model() const { return has_model_.load() ? &model_ : nullptr; }

  /// Only when there is a model.
  ServingContext context() {
    const int32_t most = traffic_.level() >= 3 ? config_.traffic.ladder.default_max_tokens : 0;
    return {config_, model_, ids_, most};
  }

  void set_state(ServerState state) { state_.store(state); }

  ServerState state() const { return state_.load(); }

  void set_failed(const std::string& why);
  /// Why the process cannot serve any more; nullopt while it can.
  std::optional<std::string> failure() const;
  /// How long requests have waited without the end of a step; 0 while nobody waits.
  double stalled_seconds() const;
  /// Longer than config().step_timeout_s.
  bool is_stuck() const;
  bool is_ready() const;

  /// Requests between submit and their last event.
  void begin_work();
  void end_work();

  /// False when the bodies of all connections would exceed the limit together.
  bool reserve_body_bytes(int64_t bytes);

  void release_body_bytes(int64_t bytes) { body_bytes_.fetch_sub(bytes); }

  bool reserve_text_job();

  void release_text_job() { num_text_jobs_.fetch_sub(1); }

  void begin_connection() { num_connections_.fetch_add(1); }

  void end_connection() { num_connections_.fetch_sub(1); }

  /// What the serving port and the engine run short of.
  PressureSample pressure() const;

 private:
  const ApiConfig config_;
  const MetricsPage& metrics_;
  IdSource ids_;
  TrafficControl traffic_;
  ServedModel model_;
  std::atomic<bool> has_model_{false};
  std::atomic<ServerState> state_{ServerState::loading};
  mutable std::mutex failure_mutex_;
  std::optional<std::string> failure_;
  std::atomic<int64_t> num_working_{0};
  std::atomic<TimePoint::rep> work_since_{0};
  std::atomic<int64_t> body_bytes_{0};
  std::atomic<int32_t> num_text_jobs_{0};
  std::atomic<int32_t> num_connections_{0};
};

}  // namespace hadal::api
