// The connection itself: keep-alive, pipelining, chunks, limits, and bytes that are not HTTP.
#include "test_server.h"

using namespace hadal_test;

namespace {

std::string chunked_text(const std::string& body, size_t piece) {
  std::string text =
      "POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  char size[16];
  for (size_t at = 0; at < body.size(); at += piece) {
    const std::string part = body.substr(at, piece);
    std::snprintf(size, sizeof(size), "%zx\r\n", part.size());
    text += size + part + "\r\n";
  }
  return text + "0\r\n\r\n";
}

/// The status of the answer to `text`, 0 for none; the server must close the connection.
int status_of(TestServer& server, const std::string& text) {
  HttpClient client(server.port());
  client.send(text);
  const auto answer = client.receive();
  CHECK(client.wait_closed(10));
  return answer ? answer->status : 0;
}

}  // namespace

TEST_CASE("e2e: pipelined requests are answered in order", "[e2e]") {
  TestServer server;
  HttpClient client(server.port());
  std::string text;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    text += post_text("/v1/completions", completion_body(4, seed).dump());
  }
  text += "BROKEN\r\n\r\n" + post_text("/v1/completions", completion_body(4, 1).dump());
  REQUIRE(client.send(text));
  for (uint64_t seed = 0; seed < 10; ++seed) {
    const auto answer = client.receive();
    REQUIRE(answer);
    CHECK(json::parse(answer->body)["choices"][0]["text"] ==
          expected_text(server.null_engine(), 4, seed));
  }
  const auto last = client.receive();
  REQUIRE(last);
  CHECK(last->status == 400);
  CHECK(last->fields.at("connection") == "close");
  CHECK(client.wait_closed(5));
}

TEST_CASE("e2e: chunked bodies and 100-continue", "[e2e]") {
  TestServer server;
  HttpClient client(server.port());
  const std::string body = completion_body(4, 3).dump();
  for (const size_t piece : {1, 7, 1000}) {
    REQUIRE(client.send(chunked_text(body, piece)));
    const auto answer = client.receive();
    REQUIRE(answer);
    CHECK(answer->status == 200);
  }
  REQUIRE(
      client.send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
                  "Content-Length: " +
                  std::to_string(body.size()) + "\r\n\r\n"));
  const auto interim = client.receive();
  REQUIRE(interim);
  CHECK(interim->status == 100);
  REQUIRE(client.send(body));
  const auto answer = client.receive();
  REQUIRE(answer);
  CHECK(answer->status == 200);
}

TEST_CASE("e2e: bodies that are too large are refused before they are read", "[e2e]") {
  TestServer server({}, [](hadal::ApiConfig& config) { config.limits.body_bytes_max = 100'000; });
  HttpClient declared(server.port());
  REQUIRE(
      declared.send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100001\r\n\r\n"));
  const auto early = declared.receive();
  REQUIRE(early);
  CHECK(early->status == 413);
  CHECK(early->is_complete);
  HttpClient sender(server.port());
  sender.send(post_text("/v1/completions", std::string(300'000, ' ')));
  const auto answer = sender.receive();
  REQUIRE(answer);
  CHECK(answer->status == 413);
  HttpClient chunked(server.port());
  chunked.send(chunked_text(std::string(150'000, ' '), 1000));
  const auto refused = chunked.receive();
  REQUIRE(refused);
  CHECK(refused->status == 413);
}

TEST_CASE("e2e: heads that are too long or not HTTP", "[e2e]") {
  TestServer server;
  CHECK(status_of(server,
                  "GET / HTTP/1.1\r\nHost: a\r\nX: " + std::string(20'000, 'x') + "\r\n\r\n") ==
        431);
  CHECK(status_of(server, "GET /" + std::string(65'000, 'x') + " HTTP/1.1\r\nHost: a\r\n\r\n") ==
        414);
  CHECK(status_of(server, "\x16\x03\x01\x02") == 400);
  CHECK(status_of(server, "SSH-2.0-x\r\n\r\n") == 400);
  CHECK(status_of(server, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == 505);
  CHECK(status_of(server,
                  "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
                  "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /get_server_info HTTP/1.1\r\n") ==
        400);
}

TEST_CASE("e2e: requests that do not arrive in time", "[e2e]") {
  TestServer server({}, [](hadal::ApiConfig& config) {
    config.limits.header_timeout_s = 0.3;
    config.limits.body_timeout_s = 0.3;
    config.limits.idle_timeout_s = 0.3;
  });
  CHECK(status_of(server, "GET / HTTP/1.1\r\nHost: a\r\n") == 408);
  CHECK(status_of(server, "") == 0);  // idle connections are closed silently
}

TEST_CASE("e2e: bodies that do not arrive in time", "[e2e]") {
  TestServer server({}, [](hadal::ApiConfig& config) { config.limits.body_timeout_s = 0.3; });
  CHECK(status_of(server, "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{") ==
        408);
}

TEST_CASE("e2e: HTTP/1.0 streams end with the connection", "[e2e]") {
  TestServer server;
  HttpClient client(server.port());
  const std::string body = completion_body(20, 6, {{"stream", true}}).dump();
  REQUIRE(client.send("POST /v1/completions HTTP/1.0\r\nContent-Length: " +
                      std::to_string(body.size()) + "\r\n\r\n" + body));
  const auto answer = client.receive();
  REQUIRE(answer);
  CHECK(answer->fields.count("transfer-encoding") == 0);
  CHECK(stream_text(*answer) == expected_text(server.null_engine(), 20, 6));
}
