// See token_bucket.h.
#include <algorithm>
#include <chrono>

#include <hadal/traffic/token_bucket.h>

namespace hadal {

void TokenBucket::refill(TimePoint now) {
  const double passed = std::chrono::duration<double>(now - last_).count();
  if (passed > 0.0) {
    level_ = std::min(per_minute_, level_ + passed * per_minute_ / 60.0);
    last_ = now;
  }
}

void TokenBucket::set_limit(double per_minute, TimePoint now) {
  refill(now);
  level_ += per_minute - per_minute_;
  per_minute_ = per_minute;
}

bool TokenBucket::has(double amount, TimePoint now) {
  refill(now);
  return !is_limited() || level_ >= std::min(amount, per_minute_);
}

void TokenBucket::take(double amount, TimePoint now) {
  refill(now);
  if (is_limited())
    level_ = std::min(per_minute_, level_ - amount);
}

double TokenBucket::seconds_until(double amount, TimePoint now) {
  if (has(amount, now))
    return 0.0;
  return (std::min(amount, per_minute_) - level_) / per_minute_ * 60.0;
}

double TokenBucket::left(TimePoint now) {
  refill(now);
  return std::max(0.0, level_);
}

}  // namespace hadal
