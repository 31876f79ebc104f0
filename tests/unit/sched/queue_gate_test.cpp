// The bounds of the queue: counts, the wait under lasting overload, and each key's own part.
#include <chrono>
#include <deque>

#include <hadal/sched/queue_gate.h>

#include "catch.h"

namespace hadal {
namespace {

TimePoint at(double seconds) {
  return TimePoint{} +
         std::chrono::duration_cast<TimePoint::duration>(std::chrono::duration<double>(seconds));
}

QueuedRequest ask(std::string_view key, int32_t tokens = 100) {
  return {key, 1.0, tokens, TimePoint::max()};
}

TEST_CASE("QueueGate: counts requests and tokens", "[sched]") {
  QueueGate gate({3, 250, 0.0});
  REQUIRE(gate.try_enter(ask("a", 200), at(0)));
  const Status too_many_tokens = gate.try_enter(ask("a", 51), at(0));
  REQUIRE_FALSE(too_many_tokens);
  CHECK(too_many_tokens.error().code == ErrorCode::resource_exhausted);
  REQUIRE(gate.try_enter(ask("a", 20), at(0)));
  REQUIRE(gate.try_enter(ask("a", 20), at(0)));
  CHECK_FALSE(gate.try_enter(ask("a", 1), at(0)));
  CHECK(gate.num_requests() == 3);
  CHECK(gate.num_tokens() == 240);
  gate.on_left(ask("a", 200), at(1));
  gate.on_admitted(ask("a", 20), at(1));
  gate.on_admitted(ask("a", 20), at(1));
  CHECK(gate.num_requests() == 0);
  CHECK(gate.num_tokens() == 0);
  CHECK(gate.try_enter(ask("a", 1000), at(2)));  // longer than the limit, but alone
}

TEST_CASE("QueueGate: a full queue has a place for a key that has none in it", "[sched]") {
  QueueGate gate({3, 1'000'000, 0.0});
  for (int i = 0; i < 3; ++i)
    REQUIRE(gate.try_enter(ask("loud"), at(0)));
  CHECK_FALSE(gate.try_enter(ask("loud"), at(0)));
  CHECK(gate.try_enter(ask("quiet"), at(0)));
  CHECK_FALSE(gate.try_enter(ask("quiet"), at(0)));
  CHECK(gate.try_enter(ask("other"), at(0)));
  CHECK(gate.try_enter(ask("fourth"), at(0)));
  CHECK_FALSE(gate.try_enter(ask("fifth"), at(0)));  // twice the limit
}

/// Serves `rate` requests a second, in order, while `load` times as many come for `seconds`.
struct Played {
  double worst_wait_s = 0.0;  ///< of those that came in the last half
  int num_refused = 0;
  int num_served = 0;
};

Played play(QueueGate& gate, double rate, double load, double begin_s, double seconds) {
  Played played;
  std::deque<double> queue;
  const double step = 1.0 / (rate * load);
  double next_service = begin_s + 1.0 / rate;
  for (double t = begin_s; t < begin_s + seconds || !queue.empty(); t += step) {
    for (; next_service <= t; next_service += 1.0 / rate) {
      if (queue.empty())
        continue;
      gate.on_admitted(ask("k"), at(next_service));
      if (queue.front() > begin_s + seconds / 2)
        played.worst_wait_s = std::max(played.worst_wait_s, next_service - queue.front());
      queue.pop_front();
      ++played.num_served;
    }
    if (t >= begin_s + seconds)
      continue;
    if (gate.try_enter(ask("k"), at(t)))
      queue.push_back(t);
    else
      ++played.num_refused;
  }
  return played;
}

TEST_CASE("QueueGate: lasting overload keeps the queue as long as the wait, and no idle server",
          "[sched]") {
  QueueGate gate({10'000, 1'000'000'000, 1.0});
  CHECK(play(gate, 20.0, 0.9, 0.0, 30.0).num_refused == 0);
  const Played over = play(gate, 20.0, 10.0, 100.0, 60.0);
  CHECK(over.worst_wait_s < 1.5);
  CHECK(over.worst_wait_s > 0.3);
  CHECK(over.num_served > 0.97 * 20.0 * 60.0);
  CHECK(gate.is_shedding());
  // It is over: nothing is refused, and later a burst is welcome again.
  CHECK(play(gate, 20.0, 0.5, 200.0, 30.0).num_refused == 0);
  CHECK_FALSE(gate.is_shedding());
  for (int i = 0; i < 1000; ++i)
    CHECK(gate.try_enter(ask("k"), at(300.0)));
}

TEST_CASE("QueueGate: what would start after its deadline is refused at once", "[sched]") {
  QueueGate gate({10'000, 1'000'000'000, 0.0});
  play(gate, 10.0, 1.2, 0.0, 10.0);
  for (int i = 0; i < 100; ++i)
    REQUIRE(gate.try_enter(ask("k"), at(20.0)));
  QueuedRequest hasty = ask("k");
  hasty.deadline = at(22.0);
  CHECK_FALSE(gate.try_enter(hasty, at(20.0)));
  hasty.deadline = at(120.0);
  CHECK(gate.try_enter(hasty, at(20.0)));
}

TEST_CASE("QueueGate: who floods the queue waits for itself", "[sched]") {
  QueueGate gate({10'000, 1'000'000'000, 1.0});
  play(gate, 10.0, 5.0, 0.0, 20.0);
  int num_loud = 0;
  while (gate.try_enter(ask("k"), at(23.0)) && num_loud < 1000)
    ++num_loud;
  CHECK(num_loud < 30);
  for (int i = 0; i < 4; ++i)
    CHECK(gate.try_enter(ask("quiet"), at(23.0)));
  CHECK_FALSE(gate.try_enter(ask("k"), at(23.0)));
}

}  // namespace
}  // namespace hadal
