// A clock that tests move by hand.
#pragma once

#include <atomic>
#include <chrono>

#include <hadal/base/clock.h>

namespace hadal {

class FakeClock final : public Clock {
 public:
  TimePoint now() const override { return TimePoint(std::chrono::nanoseconds(now_ns_.load())); }

  void advance(std::chrono::nanoseconds by) { now_ns_ += by.count(); }

 private:
  std::atomic<int64_t> now_ns_{1'000'000'000};
};

}  // namespace hadal
