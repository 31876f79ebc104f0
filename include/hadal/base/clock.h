// Time as a value that tests can own: nothing below engine reads the wall clock.
#pragma once

#include <chrono>

namespace hadal {

using TimePoint = std::chrono::steady_clock::time_point;

struct Clock {
  virtual ~Clock() = default;
  virtual TimePoint now() const = 0;
};

/// The process-wide steady clock. Thread-safe.
const Clock& system_clock();

}  // namespace hadal
