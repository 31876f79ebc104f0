// Who somebody is, and what is left for them; the time is the test's.
#include <algorithm>

#include <hadal/traffic/gate.h>
#include <hadal/traffic/key_ring.h>

#include "catch.h"
#include "traffic_time.h"

using namespace hadal;
using hadal_test::at;

namespace {

ApiKey key_of(const std::string& name, const std::string& secret, const ApiKeyLimits& limits = {}) {
  return {name, secret, 1.0, TrafficClass::normal, limits};
}

std::shared_ptr<Tenant> identify(const KeyRing& ring, const std::string& value) {
  return ring.identify(&value);
}

}  // namespace

TEST_CASE("token bucket: a minute's worth at once, then its rate", "[traffic]") {
  TokenBucket bucket(60);
  REQUIRE(bucket.has(60, at(0)));
  bucket.take(60, at(0));
  CHECK_FALSE(bucket.has(1, at(0.5)));
  CHECK(bucket.seconds_until(1, at(0.5)) == Approx(0.5));
  CHECK(bucket.has(1, at(1.0)));
  CHECK(bucket.left(at(30)) == Approx(30));
  CHECK(bucket.left(at(1000)) == Approx(60));
  SECTION("more than it holds is given when it is full, and leaves a debt") {
    CHECK(bucket.has(100, at(1000)));
    bucket.take(100, at(1000));
    CHECK(bucket.left(at(1000)) == 0.0);
    CHECK(bucket.seconds_until(1, at(1000)) == Approx(41));
    CHECK(bucket.seconds_until(100, at(1000)) == Approx(100));
  }
  SECTION("a new limit keeps what was used") {
    bucket.take(50, at(1000));
    bucket.set_limit(100, at(1000));
    CHECK(bucket.left(at(1000)) == Approx(50));
    bucket.set_limit(20, at(1000));
    CHECK(bucket.left(at(1000)) == 0.0);
  }
  SECTION("0 is no limit") {
    TokenBucket open(0);
    open.take(1e9, at(0));
    CHECK(open.has(1e9, at(0)));
    CHECK(open.seconds_until(1e9, at(0)) == 0.0);
  }
}

TEST_CASE("key ring: only a whole key opens, and without keys everybody may come", "[traffic]") {
  KeyRing ring(key_of("anonymous", ""));
  CHECK(ring.identify(nullptr)->name() == "anonymous");
  ring.set_keys({key_of("a", "secret-a"), key_of("b", "secret-b")}, at(0));
  CHECK(identify(ring, "Bearer secret-a")->name() == "a");
  CHECK(identify(ring, "bearer secret-b")->name() == "b");
  CHECK(ring.identify(nullptr) == nullptr);
  for (const char* bad : {"",
                          "Bearer",
                          "Bearer ",
                          "Basic secret-a",
                          "Bearer secret-a ",
                          "Bearer Secret-a",
                          "secret-a",
                          "Bearer secret-",
                          "Bearer a"}) {
    INFO(bad);
    CHECK(identify(ring, bad) == nullptr);
  }
}

TEST_CASE("key ring: requests, tokens and concurrency are told apart", "[traffic]") {
  KeyRing ring(key_of("anonymous", ""));
  ring.set_keys({key_of("r", "secret-r", {2, 0, 0}),
                 key_of("t", "secret-t", {0, 600, 0}),
                 key_of("c", "secret-c", {0, 0, 1})},
                at(0));
  const auto requests = identify(ring, "Bearer secret-r");
  REQUIRE_FALSE(requests->try_begin(1, at(0)));
  REQUIRE_FALSE(requests->try_begin(1, at(0)));
  const auto third = requests->try_begin(1, at(0));
  REQUIRE(third);
  CHECK(third->what == "2 requests a minute");
  CHECK(third->retry_after_s == Approx(30));
  CHECK_FALSE(requests->try_begin(1, at(30)));

  const auto tokens = identify(ring, "Bearer secret-t");
  REQUIRE_FALSE(tokens->try_begin(100, at(0)));
  tokens->end(100, 650, at(0));  // it used more than it seemed to
  const auto next = tokens->try_begin(10, at(0));
  REQUIRE(next);
  CHECK(next->what == "600 tokens a minute");
  CHECK(next->retry_after_s == Approx(6));  // 50 of debt and 10, at 10 a second
  CHECK_FALSE(tokens->try_begin(10, at(6)));

  const auto one = identify(ring, "Bearer secret-c");
  REQUIRE_FALSE(one->try_begin(1, at(0)));
  const auto second = one->try_begin(1, at(0));
  REQUIRE(second);
  CHECK(second->code == "concurrency_limit_exceeded");
  one->end(1, 1, at(0));
  CHECK_FALSE(one->try_begin(1, at(0)));
}

TEST_CASE("key ring: what was refused elsewhere costs nothing", "[traffic]") {
  KeyRing ring(key_of("anonymous", ""));
  ring.set_keys({key_of("a", "secret-a", {1, 100, 1})}, at(0));
  const auto tenant = identify(ring, "Bearer secret-a");
  for (int i = 0; i < 5; ++i) {
    REQUIRE_FALSE(tenant->try_begin(50, at(0)));
    tenant->undo(50, at(0));
  }
  const AllowanceView view = tenant->allowance(at(0));
  CHECK(view.requests_left == Approx(1));
  CHECK(view.tokens_left == Approx(100));
  CHECK(tenant->num_running() == 0);
}

TEST_CASE("key ring: a reload changes limits and forgets no use", "[traffic]") {
  KeyRing ring(key_of("anonymous", ""));
  ring.set_keys({key_of("a", "secret-a", {10, 0, 2}), key_of("b", "secret-b")}, at(0));
  const auto tenant = identify(ring, "Bearer secret-a");
  for (int i = 0; i < 2; ++i)
    REQUIRE_FALSE(tenant->try_begin(1, at(0)));
  ApiKey changed = key_of("a", "secret-new", {5, 0, 2});
  changed.weight = 3;
  changed.traffic_class = TrafficClass::batch;
  ring.set_keys({changed}, at(0));
  CHECK(identify(ring, "Bearer secret-a") == nullptr);
  CHECK(identify(ring, "Bearer secret-b") == nullptr);
  CHECK(identify(ring, "Bearer secret-new") == tenant);
  CHECK(tenant->weight() == 3);
  CHECK(tenant->traffic_class() == TrafficClass::batch);
  CHECK(tenant->num_running() == 2);
  CHECK(tenant->try_begin(1, at(0)));  // two run already
  tenant->end(1, 1, at(0));
  CHECK(tenant->allowance(at(0)).requests_left == Approx(3));
}

TEST_CASE("key ring: who does not wait as told waits longer", "[traffic]") {
  KeyRing ring(key_of("anonymous", ""));
  ring.set_keys({key_of("a", "secret-a", {1, 0, 0})}, at(0));
  const auto tenant = identify(ring, "Bearer secret-a");
  REQUIRE_FALSE(tenant->try_begin(1, at(0)));
  double longest = 0;
  double last_plain = 0;
  for (int i = 0; i < 100; ++i) {  // ten a second
    const double time = 0.1 * i;
    longest = std::max(longest, tenant->try_begin(1, at(time))->retry_after_s);
    last_plain = 60 - time;
  }
  CHECK(longest == Approx(60));  // never more than a minute for the storm alone
  CHECK(last_plain < 51);
  const auto later = tenant->try_begin(1, at(40));
  REQUIRE(later);
  CHECK(later->retry_after_s == Approx(20));  // a client that waited is told the truth
}

TEST_CASE("classes: names, and less weight for what can wait", "[traffic]") {
  TrafficClass parsed = TrafficClass::normal;
  for (const TrafficClass each :
       {TrafficClass::interactive, TrafficClass::normal, TrafficClass::batch}) {
    REQUIRE(parse_class(class_name(each), parsed));
    CHECK(parsed == each);
  }
  CHECK_FALSE(parse_class("urgent", parsed));
  CHECK(class_weight(TrafficClass::interactive) > class_weight(TrafficClass::normal));
  CHECK(class_weight(TrafficClass::normal) > class_weight(TrafficClass::batch));
  CHECK(gate_name(Gate::drain) == "drain");
  CHECK(gate_name(Gate::none).empty());
}
