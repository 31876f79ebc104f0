// Ends and beginnings: probes while loading, drains that wait, drains that do not.
#include <thread>

#include "test_server.h"

using namespace hadal_test;

TEST_CASE("e2e: probes answer before there is a model", "[e2e]") {
  NullEngine engine;
  hadal::ApiServer server(TestServer::make_config({}), engine.registry());
  REQUIRE(static_cast<bool>(server.start()));
  CHECK(server.state() == hadal::ServerState::loading);
  CHECK(server.port() == 0);
  HttpClient admin(server.admin_port());
  CHECK(admin.get("/livez").status == 200);
  CHECK(admin.get("/readyz").status == 503);
  CHECK(admin.get("/startupz").status == 503);
  CHECK(admin.get("/health").status == 503);
  CHECK(admin.get("/metrics").status == 200);
  CHECK(admin.get("/v1/models").status == 404);
  CHECK(json::parse(admin.get("/readyz").body)["status"] == "loading");
  REQUIRE(static_cast<bool>(server.open(engine.served())));
  CHECK(admin.get("/readyz").status == 200);
  CHECK(admin.get("/startupz").status == 200);
  HttpClient client(server.port());
  CHECK(client.get("/health").status == 200);
  server.set_failed("a test");
  CHECK(server.state() == hadal::ServerState::failed);
  CHECK(admin.get("/livez").status == 503);
  CHECK(admin.get("/readyz").status == 503);
  CHECK(client.post("/v1/completions", completion_body(1, 1).dump()).status == 503);
  server.stop();
}

TEST_CASE("e2e: a port in use is an error that names it", "[e2e]") {
  TestServer first;
  NullEngine engine;
  hadal::ApiServer second(
      TestServer::make_config([&](hadal::ApiConfig& config) { config.port = first.port(); }),
      engine.registry());
  REQUIRE(static_cast<bool>(second.start()));
  const hadal::Status opened = second.open(engine.served());
  REQUIRE_FALSE(static_cast<bool>(opened));
  CHECK(opened.error().message.find(std::to_string(first.port())) != std::string::npos);
}

TEST_CASE("e2e: a drain finishes what runs", "[e2e]") {
  TestServer server({.step_us = 1000});
  HttpClient idle(server.port());
  CHECK(idle.get("/health").status == 200);
  HttpClient client(server.port());
  REQUIRE(client.send(
      post_text("/v1/completions", completion_body(150, 1, {{"stream", true}}).dump())));
  REQUIRE(client.receive_until("data: "));
  server.server().request_drain(seconds_from_now(test_seconds(20)));
  CHECK(server.server().state() == hadal::ServerState::draining);
  CHECK(HttpClient(server.server().admin_port()).get("/readyz").status == 503);
  CHECK(HttpClient(server.server().admin_port()).get("/livez").status == 200);
  CHECK(idle.wait_closed(5));
  CHECK(eventually([&] { return !HttpClient(server.port()).is_connected(); }));
  const auto answer = client.receive();
  REQUIRE(answer);
  CHECK(stream_text(*answer) == expected_text(server.null_engine(), 150, 1));
  CHECK(client.wait_closed(5));
  server.server().wait_drained();
  CHECK(eventually([&] { return server.is_idle(); }));
}

TEST_CASE("e2e: at the deadline every answer ends with an error", "[e2e]") {
  TestServer server({.step_us = 2000});
  HttpClient stream(server.port());
  HttpClient whole(server.port());
  REQUIRE(stream.send(
      post_text("/v1/completions", completion_body(4000, 1, {{"stream", true}}).dump())));
  REQUIRE(whole.send(post_text("/v1/completions", completion_body(4000, 2).dump())));
  REQUIRE(stream.receive_until("data: "));
  REQUIRE(eventually([&] { return server.engine().stats().num_running == 2; }));
  server.server().request_drain(seconds_from_now(600));
  server.server().request_drain(seconds_from_now(0.1));  // the second signal
  const auto streamed = stream.receive();
  REQUIRE(streamed);
  CHECK(streamed->is_complete);
  const std::vector<std::string> events = streamed->events();
  REQUIRE(events.size() >= 2);
  CHECK(events.back() == "[DONE]");
  CHECK(json::parse(events[events.size() - 2])["error"]["code"] == "draining");
  const auto refused = whole.receive();
  REQUIRE(refused);
  CHECK(refused->status == 503);
  CHECK(refused->fields.count("retry-after") == 1);
  server.server().wait_drained();
  CHECK(eventually([&] { return server.is_idle(); }));
}

TEST_CASE("e2e: the engine's end ends every stream", "[e2e]") {
  TestServer server({.step_us = 2000});
  HttpClient client(server.port());
  REQUIRE(client.send(
      post_text("/v1/completions", completion_body(4000, 1, {{"stream", true}}).dump())));
  REQUIRE(client.receive_until("data: "));
  server.engine().drain_and_stop(seconds_from_now(0.05));
  const auto answer = client.receive();
  REQUIRE(answer);
  const std::vector<std::string> events = answer->events();
  REQUIRE(events.size() >= 2);
  CHECK(events.back() == "[DONE]");
  CHECK(json::parse(events[events.size() - 2]).contains("error"));
  CHECK(client.post("/v1/completions", completion_body(1, 1).dump()).status == 503);
}

TEST_CASE("e2e: stop() cuts what is open", "[e2e]") {
  TestServer server({.step_us = 2000});
  HttpClient client(server.port());
  REQUIRE(client.send(
      post_text("/v1/completions", completion_body(4000, 1, {{"stream", true}}).dump())));
  REQUIRE(client.receive_until("data: "));
  server.server().stop();
  CHECK(client.wait_closed(5));
  CHECK(eventually([&] { return server.is_idle(); }));
}
