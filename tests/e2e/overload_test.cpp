// More than fits: full queues, full connection tables, requests that can never run.
#include <memory>
#include <vector>

#include "test_server.h"

using namespace hadal_test;

TEST_CASE("e2e: a full queue is 503 and passes", "[e2e]") {
  TestServer server({.step_us = 2000, .max_slots = 2, .max_queued_requests = 2});
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int i = 0; i < 2; ++i) {
    clients.push_back(std::make_unique<HttpClient>(server.port()));
    REQUIRE(clients.back()->send(post_text("/v1/completions", completion_body(3000, 1).dump())));
  }
  REQUIRE(eventually([&] { return server.engine().stats().num_running == 2; }));
  for (int i = 0; i < 2; ++i) {
    clients.push_back(std::make_unique<HttpClient>(server.port()));
    REQUIRE(clients.back()->send(post_text("/v1/completions", completion_body(3000, 1).dump())));
  }
  REQUIRE(eventually([&] { return server.engine().stats().num_queued == 2; }));
  HttpClient client(server.port());
  const HttpAnswer refused = client.post("/v1/completions", completion_body(1, 1).dump());
  CHECK(refused.status == 503);
  CHECK(refused.fields.count("retry-after") == 1);
  CHECK(json::parse(refused.body)["error"]["code"] == "queue_full");
  CHECK(client.get("/health").status == 200);  // busy is not ill
  clients.clear();
  REQUIRE(eventually([&] { return server.is_idle(); }));
  CHECK(client.post("/v1/completions", completion_body(1, 1).dump()).status == 200);
}

TEST_CASE("e2e: when one of n choices is refused, none runs on", "[e2e]") {
  TestServer server({.step_us = 2000, .max_slots = 2, .max_queued_requests = 3});
  HttpClient client(server.port());
  const HttpAnswer refused =
      client.post("/v1/completions", completion_body(3000, 1, {{"n", 20}}).dump());
  CHECK(refused.status == 503);
  CHECK(eventually([&] { return server.is_idle(); }, 2));
}

TEST_CASE("e2e: connections beyond the limit are closed", "[e2e]") {
  TestServer server({}, [](hadal::ApiConfig& config) { config.limits.connections_max = 3; });
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<HttpClient>(server.port()));
    CHECK(clients.back()->get("/health").status == 200);
  }
  HttpClient extra(server.port());
  CHECK(extra.wait_closed(5));
  clients.pop_back();
  CHECK(eventually([&] { return HttpClient(server.port()).get("/health").status == 200; }));
  CHECK(HttpClient(server.server().admin_port()).get("/livez").status == 200);
}

TEST_CASE("e2e: more pages than the pool has are refused at once", "[e2e]") {
  TestServer server({.num_pages = 8, .max_context_tokens = 4096});
  HttpClient client(server.port());
  const HttpAnswer refused = client.post("/v1/completions", completion_body(1000, 1).dump());
  CHECK(refused.status == 400);
  CHECK(json::parse(refused.body)["error"]["code"] == "context_length_exceeded");
  CHECK(client.post("/v1/completions", completion_body(100, 1).dump()).status == 200);
}
