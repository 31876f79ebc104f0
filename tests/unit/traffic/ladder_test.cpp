// The ladder of degradation: up at once, down one by one; no flapping under a load that stays.
#include <hadal/traffic/ladder.h>

#include "catch.h"
#include "traffic_time.h"

using namespace hadal;
using hadal_test::at;

namespace {

/// Updates every 100 ms for `seconds`; returns how often the level changed.
int hold(Ladder& ladder, double& time, double pressure, double seconds) {
  int num_changes = 0;
  for (const double end = time + seconds; time < end; time += 0.1) {
    const int32_t before = ladder.level();
    ladder.update(pressure, at(time));
    num_changes += ladder.level() != before ? 1 : 0;
  }
  return num_changes;
}

}  // namespace

TEST_CASE("ladder: levels come in order and go one by one", "[traffic]") {
  Ladder ladder({});
  double time = 0;
  int32_t expected = 0;
  for (const double pressure : {0.5, 0.72, 0.82, 0.90, 0.95, 1.5}) {
    hold(ladder, time, pressure, 10);
    INFO(pressure);
    CHECK(ladder.level() == expected++);
  }
  CHECK(hold(ladder, time, 0.0, 4.5) == 0);  // calm, but not for long enough
  for (double last = -10; ladder.level() > 0; ++expected) {
    const int32_t before = ladder.level();
    REQUIRE(time < 200);
    while (ladder.level() == before)
      hold(ladder, time, 0.0, 0.1);
    CHECK(ladder.level() == before - 1);
    CHECK(time - last > 4.9);
    last = time;
  }
  CHECK(expected == 11);
  CHECK(hold(ladder, time, 0.0, 60) == 0);
}

TEST_CASE("ladder: no flapping around a step", "[traffic]") {
  Ladder ladder({});
  double time = 0;
  int num_changes = 0;
  for (int i = 0; i < 60; ++i) {  // a minute of noise around the second step
    num_changes += hold(ladder, time, 0.84, 0.5);
    num_changes += hold(ladder, time, 0.74, 0.5);
  }
  CHECK(num_changes <= 2);
  CHECK(ladder.level() == 2);
}

TEST_CASE("ladder: a spike shorter than its memory moves nothing", "[traffic]") {
  Ladder ladder({});
  double time = 0;
  hold(ladder, time, 0.3, 10);
  CHECK(hold(ladder, time, 1.0, 0.2) == 0);
  CHECK(hold(ladder, time, 0.3, 10) == 0);
  LadderConfig off;
  off.is_enabled = false;
  Ladder none(off);
  CHECK(hold(none, time, 2.0, 10) == 0);
  CHECK(none.pressure() == Approx(2.0).margin(0.01));  // it is still shown
}

TEST_CASE("pressure: a busy server stays below the steps that shorten answers", "[traffic]") {
  const LadderConfig config;
  // Admission holds the queue at its bound, every page is in use, the front is full.
  const double busy = pressure_of({1.0, 1.0, 1.0, 1.0, 1.0, 1.0});
  CHECK(busy >= config.enter[1]);
  CHECK(busy < config.enter[2]);
  CHECK(pressure_of({30.0, 0, 0, 0, 0, 0}) < config.enter[2]);  // long requests, one slot
  CHECK(pressure_of({0, 1.1, 0, 0, 0, 0}) >= config.enter[2]);
  CHECK(pressure_of({0, 1.2, 0, 0, 0, 0}) >= config.enter[4]);  // very many keys
  CHECK(pressure_of({0, 0, 0, 0, 0, 1.0}) >= config.enter[0]);
  CHECK(pressure_of({0, 0, 0, 0, 0, 9.0}) < config.enter[1]);
  CHECK(pressure_of({}) == 0.0);
}
