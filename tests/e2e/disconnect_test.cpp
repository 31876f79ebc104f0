// Clients that leave, stall or talk too early: work of those who left ends, nobody else notices.
#include <chrono>
#include <thread>

#include "test_server.h"

using namespace hadal_test;

namespace {

constexpr NullEngineOptions kSlow{.step_us = 2000};

json long_body(bool is_stream, const json& extra = json::object()) {
  json body = completion_body(4000, 2, {{"stream", is_stream}});
  body.update(extra);
  return body;
}

bool has_work(TestServer& server, int32_t num_running = 1) {
  return eventually([&] { return server.engine().stats().num_running >= num_running; });
}

}  // namespace

TEST_CASE("e2e: a client that leaves frees its pages", "[e2e]") {
  TestServer server(kSlow);
  enum class Leave { close, reset, half_close };
  for (const Leave leave : {Leave::close, Leave::reset, Leave::half_close}) {
    for (const bool is_stream : {true, false}) {
      HttpClient client(server.port());
      REQUIRE(client.send(post_text("/v1/completions", long_body(is_stream, {{"n", 4}}).dump())));
      if (is_stream) {
        REQUIRE(client.receive_until("data: "));
      }
      REQUIRE(has_work(server, 4));
      if (leave == Leave::close) {
        client.close();
      } else if (leave == Leave::reset) {
        client.reset();
      } else {
        client.half_close();
      }
      INFO("way " << static_cast<int>(leave) << " stream " << is_stream);
      CHECK(eventually([&] { return server.is_idle(); }, 2));
    }
  }
}

TEST_CASE("e2e: leaving at any moment of the request is harmless", "[e2e]") {
  TestServer server;
  const std::string request = post_text("/v1/completions", completion_body(5, 1).dump());
  for (size_t size = 0; size <= request.size(); size += 9) {
    HttpClient client(server.port());
    REQUIRE(client.send(std::string_view(request).substr(0, size)));
    size % 2 == 0 ? client.close() : client.reset();
  }
  CHECK(eventually([&] { return server.is_idle(); }));
  HttpClient client(server.port());
  CHECK(client.post("/v1/completions", completion_body(5, 1).dump()).status == 200);
}

TEST_CASE("e2e: a pipelined request is not a disconnect", "[e2e]") {
  TestServer server({.step_us = 1000});
  HttpClient client(server.port());
  REQUIRE(
      client.send(post_text("/v1/completions", completion_body(40, 1, {{"stream", true}}).dump())));
  REQUIRE(client.receive_until("data: "));
  REQUIRE(client.send(post_text("/v1/completions", completion_body(3, 2).dump())));
  const auto first = client.receive();
  REQUIRE(first);
  CHECK(stream_text(*first) == expected_text(server.null_engine(), 40, 1));
  const auto second = client.receive();
  REQUIRE(second);
  CHECK(json::parse(second->body)["choices"][0]["text"] ==
        expected_text(server.null_engine(), 3, 2));
}

TEST_CASE("e2e: a slow reader gets everything and delays nobody", "[e2e]") {
  TestServer server({.num_pages = 4096, .max_context_tokens = 100'000});
  HttpClient slow(server.port(), 4096);
  constexpr size_t kTokens = 3'000;
  REQUIRE(slow.send(
      post_text("/v1/completions",
                completion_body(static_cast<int32_t>(kTokens), 1, {{"stream", true}}).dump())));
  REQUIRE(slow.receive_until("data: "));
  HttpClient other(server.port());
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const HttpAnswer answer = other.post("/v1/completions", completion_body(10, seed).dump());
    CHECK(answer.status == 200);
  }
  const auto answer = slow.receive(true, 30);
  REQUIRE(answer);
  CHECK(stream_text(*answer) == expected_text(server.null_engine(), kTokens, 1));
}

TEST_CASE("e2e: a reader that stalls is cut off", "[e2e]") {
  TestServer server({.num_pages = 4096, .max_context_tokens = 200'000},
                    [](hadal::ApiConfig& config) { config.limits.write_timeout_s = 0.3; });
  HttpClient client(server.port(), 4096);
  REQUIRE(client.send(
      post_text("/v1/completions", completion_body(150'000, 1, {{"stream", true}}).dump())));
  REQUIRE(has_work(server));
  CHECK(eventually([&] { return server.is_idle(); }, 15));
  // The engine may be done long before the socket's buffers are full; only then does the limit run.
  std::this_thread::sleep_for(std::chrono::seconds(2));
  const auto answer = client.receive();
  REQUIRE(answer);
  CHECK_FALSE(answer->is_complete);
}
