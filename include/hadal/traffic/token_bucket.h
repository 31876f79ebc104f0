// An allowance that refills evenly: so much a minute, a minute's worth at once.
#pragma once

#include <hadal/base/clock.h>

namespace hadal {

/// Arithmetic only; the caller serialises calls. Times never go back.
class TokenBucket {
 public:
  /// Full. `per_minute` 0 = no limit.
  explicit TokenBucket(double per_minute = 0.0) : per_minute_(per_minute), level_(per_minute) {}

  /// What was used stays used.
  void set_limit(double per_minute, TimePoint now);
  /// Whether `amount` may be taken; a full bucket gives any amount, else what is larger than the
  /// bucket could never be had.
  bool has(double amount, TimePoint now);

  /// May leave a debt; a negative amount gives back.
  void take(double amount, TimePoint now);
  /// Until has(amount); 0 = now.
  double seconds_until(double amount, TimePoint now);
  /// What is left, at least 0.
  double left(TimePoint now);

  double limit() const { return per_minute_; }

  bool is_limited() const { return per_minute_ > 0.0; }

 private:
  void refill(TimePoint now);

  double per_minute_;
  double level_;  ///< negative = debt
  TimePoint last_{};
};

}  // namespace hadal
