// The file of `--traffic-config`: what it changes, what wins over it, and what it may not say.
#include "traffic_file.h"

#include "catch.h"

using namespace hadal;

namespace {

Config config_of(const FlagValues& flags = {}) {
  FlagValues all = flags;
  all["runner"] = {"null:100"};
  auto config = build_config(all, {}, Environment{});
  REQUIRE(config);
  return std::move(config).value();
}

std::string error_of(std::string_view text) {
  Config config = config_of();
  const Status status = apply_traffic_text(text, "t.json", config);
  return status ? "" : status.error().message;
}

}  // namespace

TEST_CASE("traffic file: the defaults need none", "[app]") {
  Config config = config_of();
  REQUIRE(apply_traffic_file(config));
  CHECK(config.api.traffic.breaker.hang_s == 10);  // no model: a step takes no seconds
  CHECK(config.engine.max_queued_requests == 1024);
  CHECK(config.api.limits.body_bytes_max == 8 << 20);
  config.traffic_file = "/nowhere/t.json";
  CHECK_FALSE(apply_traffic_file(config));
}

TEST_CASE("traffic file: every section reaches what it is about", "[app]") {
  Config config = config_of();
  REQUIRE(apply_traffic_text(R"({
      "accept": {"connections": 100, "idle_s": 20},
      "bytes": {"head": 4096, "head_fields": 20, "head_s": 3, "body": 5000, "body_s": 4,
                "all_bodies": 60000},
      "anonymous": {"requests_per_minute": 60, "concurrency": 4},
      "queue": {"requests": 7, "tokens": 900, "wait_s": 2.5},
      "text": {"waiting": 3, "threads": 2},
      "ladder": {"enabled": false, "enter": [0.1, 0.2, 0.3, 0.4, 0.5], "leave_below": 0.05,
                 "leave_after_s": 1, "memory_s": 2, "default_max_tokens": 64},
      "breaker": {"hang_s": 3, "hang_steps": 5, "cooldown_s": 0.5, "cooldown_max_s": 9,
                  "canary_deadline_s": 2, "passes": 3, "ramp": [0.5], "ramp_step_s": 1},
      "quarantine": {"failures": 3, "seconds": 60}})",
                             "t.json",
                             config));
  CHECK(config.api.limits.connections_max == 100);
  CHECK(config.api.limits.idle_timeout_s == 20);
  CHECK(config.api.limits.header_bytes_max == 4096);
  CHECK(config.api.limits.header_fields_max == 20);
  CHECK(config.api.limits.header_timeout_s == 3);
  CHECK(config.api.limits.body_bytes_max == 5000);
  CHECK(config.api.limits.body_timeout_s == 4);
  CHECK(config.api.limits.buffered_body_bytes_max == 60000);
  CHECK(config.api.traffic.anonymous.limits.requests_per_minute == 60);
  CHECK(config.api.traffic.anonymous.limits.concurrency == 4);
  CHECK(config.engine.max_queued_requests == 7);
  CHECK(config.engine.max_queued_tokens == 900);
  CHECK(config.engine.max_queue_wait_s == 2.5);
  CHECK(config.api.limits.text_jobs_max == 3);
  CHECK(config.api.text_threads == 2);
  const TrafficConfig& traffic = config.api.traffic;
  CHECK_FALSE(traffic.ladder.is_enabled);
  CHECK(traffic.ladder.enter[4] == 0.5);
  CHECK(traffic.ladder.leave_below == 0.05);
  CHECK(traffic.ladder.leave_after_s == 1);
  CHECK(traffic.ladder.memory_s == 2);
  CHECK(traffic.ladder.default_max_tokens == 64);
  CHECK(traffic.breaker.hang_s == 3);
  CHECK(traffic.breaker.hang_steps == 5);
  CHECK(traffic.breaker.cooldown_s == 0.5);
  CHECK(traffic.breaker.cooldown_max_s == 9);
  CHECK(traffic.breaker.canary_deadline_s == 2);
  CHECK(traffic.breaker.passes == 3);
  CHECK(traffic.breaker.ramp == std::vector<double>{0.5});
  CHECK(traffic.breaker.ramp_step_s == 1);
  CHECK(traffic.quarantine.failures == 3);
  CHECK(traffic.quarantine.seconds == 60);
}

TEST_CASE("traffic file: flags win", "[app]") {
  Config config = config_of({{"max-queued-requests", {"9"}},
                             {"max-queue-wait-ms", {"4000"}},
                             {"max-connections", {"50"}}});
  REQUIRE(apply_traffic_text(
      R"({"accept": {"connections": 7}, "queue": {"requests": 8, "tokens": 77, "wait_s": 1}})",
      "t.json",
      config));
  CHECK(config.engine.max_queued_requests == 9);
  CHECK(config.engine.max_queue_wait_s == 4.0);
  CHECK(config.engine.max_queued_tokens == 77);
  CHECK(config.api.limits.connections_max == 50);
}

TEST_CASE("traffic file: what is wrong is named, and changes nothing", "[app]") {
  CHECK(error_of("[]").find("t.json: expected one JSON object") == 0);
  CHECK(error_of(R"({"queues": {}})") == "t.json: unknown member 'queues'");
  CHECK(error_of(R"({"queue": {"request": 3}})") == "t.json: queue: unknown member 'request'");
  CHECK(error_of(R"({"queue": {"requests": 0}})").find("t.json: queue: requests: expected") == 0);
  CHECK(error_of(R"({"queue": 3})") == "t.json: queue: expected an object");
  CHECK(error_of(R"({"ladder": {"enabled": 1}})").find("enabled: expected true") !=
        std::string::npos);
  CHECK(error_of(R"({"ladder": {"enter": [0.5]}})").find("expected 5 numbers") !=
        std::string::npos);
  CHECK(error_of(R"({"ladder": {"enter": [0.5, 0.4, 0.6, 0.7, 0.8]}})").find("rising") !=
        std::string::npos);
  CHECK(error_of(R"({"breaker": {"ramp": 1}})").find("ramp: expected a list") != std::string::npos);
  Config config = config_of();
  CHECK_FALSE(apply_traffic_text(
      R"({"queue": {"requests": 3}, "breaker": {"hang_s": -1}})", "t.json", config));
  CHECK(config.engine.max_queued_requests == 1024);
}
