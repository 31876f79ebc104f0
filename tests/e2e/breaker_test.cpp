// The engine hangs and comes back: who is told what, who asks whether it works, and how clients are
// let in again.
#include <memory>
#include <vector>

#include "test_server.h"

using namespace hadal_test;

namespace {

constexpr double kHangSeconds = 0.3;

void make_quick(hadal::ApiConfig& config) {
  hadal::BreakerConfig& breaker = config.traffic.breaker;
  breaker.hang_s = test_seconds(kHangSeconds);
  breaker.cooldown_s = 0.05;
  breaker.canary_deadline_s = test_seconds(0.2);
  breaker.ramp_step_s = 0.25;
}

/// The value of a metric without labels of its own.
double metric(TestServer& server, const std::string& name) {
  const std::string text = HttpClient(server.port()).get("/metrics").body;
  const std::string begin = "\n" + name + "{model_name=\"tiny\"} ";
  const size_t at = text.find(begin);
  REQUIRE(at != std::string::npos);
  return std::stod(text.substr(at + begin.size()));
}

json readyz(TestServer& server, int expected_status) {
  const HttpAnswer answer = HttpClient(server.server().admin_port()).get("/readyz");
  CHECK(answer.status == expected_status);
  return json::parse(answer.body);
}

HttpAnswer ask(TestServer& server, uint64_t seed, const std::vector<std::string>& fields = {}) {
  return HttpClient(server.port()).post("/v1/completions", completion_body(2, seed).dump(), fields);
}

}  // namespace

TEST_CASE("e2e: a hang opens the breaker, canaries close it, clients come back by and by",
          "[e2e]") {
  std::atomic<bool> hangs{false};
  TestServer server({.step_us = 1000, .max_slots = 10, .hangs = &hangs}, make_quick);
  CHECK(ask(server, 1).status == 200);
  CHECK(readyz(server, 200)["breaker"] == "closed");

  HttpClient waiting(server.port());
  HttpClient streaming(server.port());
  REQUIRE(streaming.send(
      post_text("/v1/completions", completion_body(3000, 2, {{"stream", true}}).dump())));
  REQUIRE(streaming.receive_until("data: "));
  hangs.store(true);
  const auto begin = std::chrono::steady_clock::now();
  REQUIRE(waiting.send(post_text("/v1/completions", completion_body(3000, 3).dump())));
  const auto told = waiting.receive();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  REQUIRE(told);
  CHECK(told->status == 503);
  CHECK(json::parse(told->body)["error"]["code"] == "engine_unavailable");
  CHECK(told->fields.at("x-hadal-gate") == "breaker");
  CHECK(told->fields.count("retry-after") == 1);
  CHECK(took.count() >= 0.5 * test_seconds(kHangSeconds));
  CHECK(took.count() < test_seconds(kHangSeconds) + test_seconds(1));
  CHECK(streaming.receive_until("engine_unavailable"));
  CHECK(streaming.receive_until("[DONE]"));

  CHECK(readyz(server, 503)["status"] == "engine_unavailable");
  CHECK(HttpClient(server.server().admin_port()).get("/livez").status == 200);
  const double finished = metric(server, "hadal_requests_finished_total");
  const double accepted = metric(server, "hadal_requests_total");
  const HttpAnswer refused = ask(server, 4);
  CHECK(refused.status == 503);
  CHECK(refused.fields.at("x-hadal-gate") == "breaker");
  CHECK(refused.fields.count("x-hadal-breaker") == 1);
  // Canaries fail while it hangs, so it opens again and again.
  REQUIRE(eventually([&] { return metric(server, "hadal_requests_total") >= accepted + 2; }));
  CHECK(metric(server, "hadal_breaker_trips_total") == 1);  // failures, not canaries
  CHECK(readyz(server, 503)["breaker"] != "closed");

  hangs.store(false);
  REQUIRE(eventually([&] { return metric(server, "hadal_breaker_state") == 3; }));
  CHECK(readyz(server, 200)["breaker"] == "ramp");
  CHECK(metric(server, "hadal_breaker_admitted") <= 0.5);
  REQUIRE(eventually([&] { return metric(server, "hadal_breaker_state") == 0; }));
  CHECK(readyz(server, 200)["status"] == "ready");
  CHECK(eventually([&] { return server.is_idle(); }));
  // Nobody's request was the probe: what the engine finished since it hung are canaries alone.
  CHECK(metric(server, "hadal_requests_finished_total") == finished + 2);
  const HttpAnswer again = ask(server, 1);
  CHECK(again.status == 200);
  CHECK(again.fields.count("x-hadal-breaker") == 0);
}

TEST_CASE("e2e: a request that was there at two failures is not tried again", "[e2e]") {
  std::atomic<bool> hangs{false};
  TestServer server({.step_us = 1000, .hangs = &hangs}, [](hadal::ApiConfig& config) {
    make_quick(config);
    config.traffic.breaker.ramp.clear();
  });
  const auto fail_with = [&](uint64_t seed) {
    hangs.store(true);
    const HttpAnswer answer = ask(server, seed);
    hangs.store(false);
    CHECK(answer.status == 503);
    REQUIRE(eventually([&] { return metric(server, "hadal_breaker_state") == 0; }));
  };
  fail_with(1);
  fail_with(2);
  CHECK(ask(server, 1).status == 200);  // once is no proof, and now it is cleared
  fail_with(1);
  CHECK(metric(server, "hadal_quarantined_requests") == 0);
  fail_with(2);
  const HttpAnswer refused = ask(server, 2);
  CHECK(refused.status == 400);
  CHECK(refused.fields.at("x-hadal-gate") == "quarantine");
  CHECK(json::parse(refused.body)["error"]["code"] == "quarantined");
  CHECK(ask(server, 1).status == 200);
  CHECK(ask(server, 3).status == 200);
  CHECK(metric(server, "hadal_quarantined_requests") == 1);
}

TEST_CASE("e2e: a canary with a wrong answer keeps the breaker open", "[e2e]") {
  std::atomic<bool> hangs{false};
  hadal::ApiConfig config = TestServer::make_config(make_quick);
  NullEngine null_engine({.step_us = 1000, .hangs = &hangs});
  hadal::ServedModel served = null_engine.served();
  served.canary = {{TinyTokenizer::kBos}, {1, 2, 3}};  // the null runner's would be others
  hadal::ApiServer server(config, null_engine.registry());
  REQUIRE(static_cast<bool>(server.start()));
  REQUIRE(static_cast<bool>(server.open(served)));
  hangs.store(true);
  const std::string body = completion_body(2, 1).dump();
  CHECK(HttpClient(server.port()).post("/v1/completions", body).status == 503);
  hangs.store(false);
  const auto trips = [&] {
    const std::string text = HttpClient(server.port()).get("/metrics").body;
    return text.find("hadal_requests_total{model_name=\"tiny\"} 3") != std::string::npos;
  };
  REQUIRE(eventually(trips));  // the client's, and two canaries that both failed
  CHECK(HttpClient(server.admin_port()).get("/readyz").status == 503);
  server.stop();
  null_engine.engine().drain_and_stop(seconds_from_now(0));
}

TEST_CASE("e2e: a lasting overload climbs the ladder, and probes stay good", "[e2e]") {
  TestServer server({.step_us = 3000, .max_slots = 1, .max_queued_requests = 4},
                    [](hadal::ApiConfig& config) {
                      config.traffic.ladder.memory_s = 0.05;
                      config.traffic.ladder.leave_after_s = 0.3;
                    });
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int i = 0; i < 5; ++i) {
    clients.push_back(std::make_unique<HttpClient>(server.port()));
    REQUIRE(clients.back()->send(post_text("/v1/completions", completion_body(3000, 1).dump())));
    REQUIRE(eventually([&] { return server.engine().stats().num_running == 1; }));
  }
  REQUIRE(eventually([&] { return metric(server, "hadal_traffic_level") == 2; }));
  CHECK(readyz(server, 200)["level"] == 2);
  CHECK(HttpClient(server.port()).get("/health").status == 200);
  const HttpAnswer batch = ask(server, 1, {"x-hadal-class: batch"});
  CHECK(batch.status == 503);
  CHECK(batch.fields.at("x-hadal-gate") == "ladder");
  CHECK(batch.fields.at("x-degraded") == "2");
  clients.clear();
  REQUIRE(eventually([&] { return metric(server, "hadal_traffic_level") == 0; }));
  CHECK(ask(server, 1, {"x-hadal-class: batch"}).status == 200);
}
