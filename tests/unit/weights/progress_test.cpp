// Speed and time left follow from a clock that the test owns; reports are rare and end with the
// end.
#include <hadal/weights/weight_store.h>

#include "catch.h"

namespace hadal {
namespace {

struct ManualClock final : Clock {
  TimePoint time{};

  TimePoint now() const override { return time; }
};

TEST_CASE("LoadMeter: reports speed, time left and the end", "[weights]") {
  ManualClock clock;
  std::vector<LoadProgress> seen;
  LoadMeter meter(
      4'000'000'000, [&](const LoadProgress& p) { seen.push_back(p); }, clock);
  meter.add(10);
  CHECK(seen.empty());
  clock.time += std::chrono::seconds(1);
  meter.add(999'999'990);
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].gigabytes_per_second() == Approx(1.0));
  CHECK(seen[0].eta_seconds() == Approx(3.0));
  CHECK(progress_text(seen[0]) == "1.00 of 4.00 GB (25 %), 1.00 GB/s, 3 s left");
  meter.add(3'000'000'000);
  REQUIRE(seen.size() == 2);
  CHECK(seen[1].eta_seconds() == 0.0);
}

}  // namespace
}  // namespace hadal
