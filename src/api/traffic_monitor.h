// Watches the engine's progress and the server's pressure, ten times a second, on a thread of its
// own: whatever serving threads and engine do, somebody notices.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "server_core.h"

namespace hadal::api {

class TrafficMonitor {
 public:
  /// `core` has its model. `on_trip` is called on the monitor's thread when the engine has failed
  /// those that it works for.
  TrafficMonitor(ServerCore& core, std::function<void()> on_trip);

 private:
  struct CanarySink;

  void run(const std::stop_token& stop);
  void turn(TimePoint now);
  void watch_progress();
  void watch_canary(TimePoint now);
  void start_canary(TimePoint now);

  ServerCore& core_;
  std::function<void()> on_trip_;
  uint64_t last_step_id_ = 0;
  TimePoint last_step_time_{};
  bool was_busy_ = false;
  double step_seconds_ = 0;  ///< what steps take, fading
  std::shared_ptr<CanarySink> canary_;
  RequestId canary_id_ = 0;
  TimePoint canary_deadline_{};
  TimePoint last_report_{};
  std::jthread thread_;  ///< last: it uses all of the above
};

}  // namespace hadal::api
