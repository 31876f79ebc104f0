// Times of tests: seconds after an arbitrary start.
#pragma once

#include <chrono>

#include <hadal/base/clock.h>

namespace hadal_test {

inline hadal::TimePoint at(double seconds) {
  return hadal::TimePoint(std::chrono::hours(1)) +
         std::chrono::duration_cast<hadal::TimePoint::duration>(
             std::chrono::duration<double>(seconds));
}

}  // namespace hadal_test
