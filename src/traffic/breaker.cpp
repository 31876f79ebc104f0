// See breaker.h.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include <hadal/traffic/breaker.h>

namespace hadal {
namespace {

TimePoint later(TimePoint now, double seconds) {
  return now +
         std::chrono::duration_cast<TimePoint::duration>(std::chrono::duration<double>(seconds));
}

/// 0.8 to 1.2.
double jitter(uint64_t& random) {
  random = random * 6364136223846793005ULL + 1442695040888963407ULL;
  return 0.8 + 0.4 * static_cast<double>(random >> 40U) / static_cast<double>(1U << 24U);
}

}  // namespace

std::string_view breaker_state_name(BreakerState state) {
  constexpr std::array<std::string_view, 4> kNames = {"closed", "open", "half_open", "ramp"};
  return kNames[static_cast<size_t>(state)];
}

void Breaker::trip(TimePoint now) {
  const double cooldown =
      std::min(config_.cooldown_max_s, config_.cooldown_s * std::exp2(std::min(num_in_row_, 30)));
  ++num_in_row_;
  ++num_trips_;
  num_passes_ = 0;
  state_ = BreakerState::open;
  until_ = later(now, cooldown * jitter(random_));
}

void Breaker::advance(TimePoint now) {
  if (state_ == BreakerState::open && now >= until_)
    state_ = BreakerState::half_open;
  while (state_ == BreakerState::ramp && now >= until_) {
    if (++step_ < config_.ramp.size()) {
      until_ = later(until_, config_.ramp_step_s);
    } else {
      state_ = BreakerState::closed;
      num_in_row_ = 0;
    }
  }
}

void Breaker::on_canary(bool is_good, TimePoint now) {
  if (state_ != BreakerState::half_open)
    return;
  if (!is_good) {
    trip(now);
    return;
  }
  if (++num_passes_ < config_.passes)
    return;
  state_ = BreakerState::ramp;
  step_ = 0;
  until_ = later(now, config_.ramp.empty() ? 0.0 : config_.ramp_step_s);
}

double Breaker::admitted_fraction() const {
  switch (state_) {
    case BreakerState::closed:
      return 1.0;
    case BreakerState::ramp:
      return step_ < config_.ramp.size() ? config_.ramp[step_] : 1.0;
    case BreakerState::open:
    case BreakerState::half_open:
      break;
  }
  return 0.0;
}

double Breaker::retry_after_seconds(TimePoint now) const {
  if (state_ == BreakerState::half_open)
    return config_.canary_deadline_s;
  return std::max(0.0, std::chrono::duration<double>(until_ - now).count());
}

}  // namespace hadal
