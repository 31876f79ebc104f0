// The steady clock of this process.
#include <hadal/base/clock.h>

namespace hadal {

namespace {

struct SteadyClock final : Clock {
  TimePoint now() const override { return std::chrono::steady_clock::now(); }
};

}  // namespace

const Clock& system_clock() {
  static const SteadyClock clock;
  return clock;
}

}  // namespace hadal
