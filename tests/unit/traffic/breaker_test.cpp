// The breaker, and who is kept out after it: the time is the test's.
#include <hadal/traffic/breaker.h>
#include <hadal/traffic/quarantine.h>

#include "catch.h"
#include "traffic_time.h"

using namespace hadal;
using hadal_test::at;

TEST_CASE("breaker: open, canaries, ramp, closed", "[traffic]") {
  Breaker breaker({}, 1);
  CHECK(breaker.admitted_fraction() == 1.0);
  CHECK(breaker.retry_after_seconds(at(0)) == 0.0);
  breaker.on_canary(false, at(0));  // nobody asked
  CHECK(breaker.state() == BreakerState::closed);
  breaker.trip(at(0));
  CHECK(breaker.state() == BreakerState::open);
  CHECK(breaker.admitted_fraction() == 0.0);
  CHECK(breaker.retry_after_seconds(at(0)) >= 0.8);
  CHECK(breaker.retry_after_seconds(at(0)) <= 1.2);
  breaker.advance(at(0.7));
  CHECK_FALSE(breaker.wants_canary());
  breaker.advance(at(1.3));
  CHECK(breaker.state() == BreakerState::half_open);
  CHECK(breaker.admitted_fraction() == 0.0);
  breaker.on_canary(true, at(2));
  CHECK(breaker.wants_canary());  // one is not enough
  breaker.on_canary(true, at(3));
  CHECK(breaker.state() == BreakerState::ramp);
  const std::vector<std::pair<double, double>> ramp = {
      {3.1, 0.1}, {4.9, 0.1}, {5.1, 0.25}, {7.1, 0.5}, {8.9, 0.5}, {9.1, 1.0}};
  for (const auto& [time, fraction] : ramp) {
    breaker.advance(at(time));
    INFO(time);
    CHECK(breaker.admitted_fraction() == fraction);
  }
  CHECK(breaker.state() == BreakerState::closed);
  CHECK(breaker.num_trips() == 1);
}

TEST_CASE("breaker: it waits longer with each failure in a row, to a bound", "[traffic]") {
  Breaker breaker({}, 7);
  double time = 0;
  double expected = 1;
  for (int i = 0; i < 8; ++i) {
    breaker.trip(at(time));
    const double wait = breaker.retry_after_seconds(at(time));
    INFO(i);
    CHECK(wait >= 0.79 * expected);
    CHECK(wait <= 1.21 * expected);
    expected = std::min(30.0, 2 * expected);
    time += 40;
    breaker.advance(at(time));
    REQUIRE(breaker.wants_canary());
    if (i % 2 == 0)
      breaker.on_canary(false, at(time));  // trips by itself
    if (i % 2 == 0) {
      expected = std::min(30.0, 2 * expected);
      time += 40;
      breaker.advance(at(time));
    }
    breaker.on_canary(true, at(time));
    breaker.on_canary(true, at(time));
    REQUIRE(breaker.state() == BreakerState::ramp);  // and fails again before it is closed
  }
  breaker.advance(at(time + 100));
  REQUIRE(breaker.state() == BreakerState::closed);
  breaker.trip(at(time + 200));
  CHECK(breaker.retry_after_seconds(at(time + 200)) <= 1.2);  // a new row
}

TEST_CASE("quarantine: present twice is refused, answered in between is not", "[traffic]") {
  Quarantine quarantine({2, 600});
  CHECK(quarantine.is_empty());
  quarantine.on_failure("poison", at(0));
  quarantine.on_failure("bystander", at(0));
  CHECK(quarantine.refused_seconds("poison", at(1)) == 0.0);
  quarantine.on_success("bystander");
  quarantine.on_failure("poison", at(10));
  quarantine.on_failure("bystander", at(10));
  CHECK(quarantine.refused_seconds("poison", at(10)) == Approx(600));
  CHECK(quarantine.refused_seconds("poison", at(70)) == Approx(540));
  CHECK(quarantine.refused_seconds("bystander", at(10)) == 0.0);
  CHECK(quarantine.refused_seconds("stranger", at(10)) == 0.0);
  CHECK(quarantine.num_refused(at(10)) == 1);
  quarantine.on_success("poison");  // an old answer does not free it
  CHECK(quarantine.refused_seconds("poison", at(70)) > 0.0);
  CHECK(quarantine.refused_seconds("poison", at(611)) == 0.0);
  CHECK(quarantine.is_empty());
}

TEST_CASE("quarantine: it holds a bounded number, and none when it is off", "[traffic]") {
  Quarantine quarantine({1, 600});
  for (size_t i = 0; i < Quarantine::kKnownMax + 5; ++i)
    quarantine.on_failure(std::to_string(i), at(1e-3 * static_cast<double>(i)));
  CHECK(quarantine.num_refused(at(10)) == Quarantine::kKnownMax);
  CHECK(quarantine.refused_seconds("0", at(10)) == 0.0);
  CHECK(quarantine.refused_seconds("100", at(10)) > 0.0);
  Quarantine off({0, 600});
  off.on_failure("a", at(0));
  CHECK(off.is_empty());
}
