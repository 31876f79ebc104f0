// Keys with limits, and refusals that say which gate refused and when to come again.
#include <memory>
#include <vector>

#include "test_server.h"

using namespace hadal_test;
using hadal::ApiKey;
using hadal::TrafficClass;

namespace {

std::vector<std::string> bearer(const std::string& secret, const std::string& more = {}) {
  std::vector<std::string> fields = {"Authorization: Bearer " + secret};
  if (!more.empty()) {
    fields.push_back(more);
  }
  return fields;
}

bool has_series(TestServer& server, const std::string& line) {
  const std::string text = HttpClient(server.port()).get("/metrics").body;
  return text.find(line) != std::string::npos;
}

int retry_after(const HttpAnswer& answer) {
  REQUIRE(answer.fields.count("retry-after") == 1);
  REQUIRE(answer.fields.count("retry-after-ms") == 1);
  return std::stoi(answer.fields.at("retry-after"));
}

}  // namespace

TEST_CASE("e2e: keys have limits of their own, and 401 is not 429", "[e2e]") {
  TestServer server({}, [](hadal::ApiConfig& config) {
    config.api_key = "plain-secret";
    config.keys = {{"two", "secret-two", 1.0, TrafficClass::normal, {2, 0, 0}},
                   {"few", "secret-few", 1.0, TrafficClass::normal, {0, 40, 0}},
                   {"free", "secret-free", 2.0, TrafficClass::interactive, {}}};
  });
  const std::string body = completion_body(4, 1).dump();
  HttpClient client(server.port());
  const HttpAnswer wrong = client.post("/v1/completions", body, bearer("secret-no"));
  CHECK(wrong.status == 401);
  CHECK(wrong.fields.at("x-hadal-gate") == "G2_identity");
  HttpClient two(server.port());
  const HttpAnswer first = two.post("/v1/completions", body, bearer("secret-two"));
  CHECK(first.status == 200);
  CHECK(first.fields.at("x-ratelimit-limit-requests") == "2");
  CHECK(first.fields.at("x-ratelimit-remaining-requests") == "1");
  CHECK(two.post("/v1/completions", body, bearer("secret-two")).status == 200);
  const HttpAnswer third = two.post("/v1/completions", body, bearer("secret-two"));
  CHECK(third.status == 429);
  CHECK(third.fields.at("x-hadal-gate") == "G2_identity");
  CHECK(json::parse(third.body)["error"]["code"] == "rate_limit_exceeded");
  CHECK(json::parse(third.body)["error"]["type"] == "rate_limit_error");
  CHECK(retry_after(third) >= 20);  // 30 s for one of two a minute, with jitter
  CHECK(retry_after(third) <= 37);
  CHECK(two.get("/v1/models", bearer("secret-two")).status == 200);  // the same connection

  const std::string longer = completion_body(60, 1).dump();
  CHECK(HttpClient(server.port()).post("/v1/completions", longer, bearer("secret-few")).status ==
        200);  // its prompt fits; what it generated is owed
  const HttpAnswer owing =
      HttpClient(server.port()).post("/v1/completions", body, bearer("secret-few"));
  CHECK(owing.status == 429);
  CHECK(owing.fields.at("x-ratelimit-remaining-tokens") == "0");
  for (const char* open : {"secret-free", "plain-secret"}) {
    for (int i = 0; i < 3; ++i) {
      CHECK(HttpClient(server.port()).post("/v1/completions", body, bearer(open)).status == 200);
    }
  }
  CHECK(has_series(server, "hadal_key_requests_total{model_name=\"tiny\",key=\"two\"} 2"));
  CHECK(has_series(server, "hadal_key_refused_total{model_name=\"tiny\",key=\"two\"} 1"));
  CHECK(has_series(server, "hadal_key_tokens_total{model_name=\"tiny\",key=\"few\"} 62"));
  CHECK(has_series(server, "hadal_rejections_total{model_name=\"tiny\",gate=\"G2_identity\"} 3"));

  server.server().set_keys({{"new", "secret-new", 1.0, TrafficClass::normal, {}}});
  CHECK(HttpClient(server.port()).post("/v1/completions", body, bearer("secret-free")).status ==
        401);
  CHECK(HttpClient(server.port()).post("/v1/completions", body, bearer("secret-new")).status ==
        200);
  CHECK(HttpClient(server.port()).post("/v1/completions", body, bearer("plain-secret")).status ==
        200);
}

TEST_CASE("e2e: a key's concurrency is given back however a request ends", "[e2e]") {
  TestServer server({.step_us = 2000}, [](hadal::ApiConfig& config) {
    config.keys = {{"one", "secret-one", 1.0, TrafficClass::normal, {0, 0, 1}}};
  });
  const std::string small = completion_body(1, 1).dump();
  for (const bool is_stream : {false, true}) {
    auto first = std::make_unique<HttpClient>(server.port());
    REQUIRE(first->send(post_text("/v1/completions",
                                  completion_body(3000, 1, {{"stream", is_stream}}).dump(),
                                  bearer("secret-one"))));
    REQUIRE(eventually([&] { return server.engine().stats().num_running == 1; }));
    const HttpAnswer second =
        HttpClient(server.port()).post("/v1/completions", small, bearer("secret-one"));
    CHECK(second.status == 429);
    CHECK(json::parse(second.body)["error"]["code"] == "concurrency_limit_exceeded");
    first.reset();
    CHECK(eventually([&] {
      return HttpClient(server.port())
                 .post("/v1/completions", small, bearer("secret-one"))
                 .status == 200;
    }));
  }
  // Refused for its own fault, it has not come at all.
  CHECK(HttpClient(server.port())
            .post("/v1/completions", "{\"prompt\": 3}", bearer("secret-one"))
            .status == 400);
  CHECK(HttpClient(server.port()).post("/v1/completions", small, bearer("secret-one")).status ==
        200);
}

TEST_CASE("e2e: what a head asks for in vain is refused before the body is read", "[e2e]") {
  TestServer server({.step_us = 2000, .max_slots = 1, .max_queued_requests = 1});
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int i = 0; i < 2; ++i) {
    clients.push_back(std::make_unique<HttpClient>(server.port()));
    REQUIRE(clients.back()->send(post_text("/v1/completions", completion_body(3000, 1).dump())));
    REQUIRE(eventually([&] {
      const hadal::EngineStats stats = server.engine().stats();
      return stats.num_running == 1 && stats.num_queued == i;
    }));
  }
  HttpClient large(server.port());
  REQUIRE(
      large.send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"));
  const auto refused = large.receive();  // not a byte of the body was sent
  REQUIRE(refused);
  CHECK(refused->status == 503);
  CHECK(refused->fields.at("x-hadal-gate") == "G4_queue");
  CHECK(retry_after(*refused) >= 1);
  CHECK(json::parse(refused->body)["error"]["type"] == "server_error");
  HttpClient small(server.port());
  for (int i = 0; i < 3; ++i) {  // a small one keeps its connection
    CHECK(small.post("/v1/completions", completion_body(1, 1).dump()).status == 503);
  }
  CHECK(has_series(server, "hadal_rejections_total{model_name=\"tiny\",gate=\"G4_queue\"} 4"));
  CHECK(small.get("/health").status == 200);
}

TEST_CASE("e2e: a request may name its time and lower its class", "[e2e]") {
  TestServer server({.step_us = 5000});
  HttpClient client(server.port());
  const HttpAnswer late =
      client.post("/v1/completions", completion_body(3000, 1).dump(), {"X-Request-Timeout-Ms: 60"});
  CHECK(late.status == 504);
  CHECK(json::parse(late.body)["error"]["code"] == "deadline_exceeded");
  const std::string body = completion_body(1, 1).dump();
  CHECK(client.post("/v1/completions", body, {"x-hadal-class: batch"}).status == 200);
  const HttpAnswer bad = client.post("/v1/completions", body, {"x-hadal-class: vip"});
  CHECK(bad.status == 400);
  CHECK(bad.fields.at("x-hadal-gate") == "G3_shape");
  CHECK(client.post("/v1/completions", body, {"X-Request-Timeout-Ms: soon"}).status == 400);
  CHECK(eventually([&] { return server.is_idle(); }));
}
