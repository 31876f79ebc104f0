// The circuit breaker around the engine: after a failure nobody is let in until the engine has
// proved, on questions of our own with known answers, that it works; then a few, then all.
//
//   closed --trip--> open --cool-down--> half open --canaries pass--> ramp --steps--> closed
//                     ^--------------canary fails-------'     '---trip---> open, waiting longer
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include <hadal/base/clock.h>

namespace hadal {

enum class BreakerState : uint8_t { closed, open, half_open, ramp };

/// "closed", "open", "half_open", "ramp".
std::string_view breaker_state_name(BreakerState state);

struct BreakerConfig {
  /// The engine hangs when there is work and no step has ended for this long, or for
  /// hang_steps times what a step usually takes if that is longer.
  double hang_s = 30.0;
  double hang_steps = 20.0;
  double cooldown_s = 1.0;  ///< the first; doubles with each failure in a row
  double cooldown_max_s = 30.0;
  double canary_deadline_s = 5.0;
  int32_t passes = 2;                           ///< canaries in a row that close it
  std::vector<double> ramp = {0.1, 0.25, 0.5};  ///< of the requests that may run at once
  double ramp_step_s = 2.0;
};

/// Arithmetic only; the caller serialises calls. Times never go back.
class Breaker {
 public:
  /// `seed` of the jitter of cool-downs.
  Breaker(const BreakerConfig& config, uint64_t seed) : config_(config), random_(seed) {}

  /// The engine has failed: open from now on, the longer the more often in a row.
  void trip(TimePoint now);
  /// Lets time pass: open becomes half open, the ramp goes on.
  void advance(TimePoint now);

  /// A canary is due; the caller tells how it ended.
  bool wants_canary() const { return state_ == BreakerState::half_open; }

  void on_canary(bool is_good, TimePoint now);

  BreakerState state() const { return state_; }

  /// The part of the requests that may run at once; 0 while nobody is let in.
  double admitted_fraction() const;
  /// When somebody who is refused may come again.
  double retry_after_seconds(TimePoint now) const;

  /// Since the start.
  int64_t num_trips() const { return num_trips_; }

 private:
  const BreakerConfig config_;
  uint64_t random_;
  BreakerState state_ = BreakerState::closed;
  TimePoint until_{};  ///< the end of the cool-down or of the ramp's step
  int32_t num_in_row_ = 0;
  int32_t num_passes_ = 0;
  size_t step_ = 0;  ///< of the ramp
  int64_t num_trips_ = 0;
};

}  // namespace hadal
