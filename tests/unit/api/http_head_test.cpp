// Framing: what would let one connection mean two things is refused.
#include "http_head.h"

#include <string>

#include "catch.h"

using namespace hadal;
using namespace hadal::api;

namespace {

int status_of(const std::string& lines, const std::string& line = "POST /x HTTP/1.1") {
  const ApiResult<RequestHead> head =
      parse_request_head(line + "\r\nHost: a\r\n" + lines + "\r\n", HttpLimits{});
  return head ? 200 : head.error().status;
}

int bare_status_of(const std::string& raw) {
  const ApiResult<RequestHead> head = parse_request_head(raw, HttpLimits{});
  return head ? 200 : head.error().status;
}

}  // namespace

TEST_CASE("http_head: body lengths", "[api]") {
  CHECK(status_of("Content-Length: 5\r\n") == 200);
  CHECK(status_of("Transfer-Encoding: chunked\r\n") == 200);
  CHECK(status_of("Transfer-Encoding:\tChunked\r\n") == 200);
  CHECK(status_of("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") == 400);
  CHECK(status_of("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n") == 400);
  CHECK(status_of("Transfer-Encoding: gzip\r\nContent-Length: 5\r\n") == 400);
  CHECK(status_of("Transfer-Encoding: xchunked\r\n") == 501);
  CHECK(status_of("Transfer-Encoding: chunked, identity\r\n") == 501);
  CHECK(status_of("Transfer-Encoding: chunked,chunked\r\n") == 501);
  CHECK(status_of("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n") == 400);
  CHECK(status_of("Transfer-Encoding: chunked\r\n", "POST /x HTTP/1.0") == 400);
  CHECK(status_of("transfer_encoding: chunked\r\n") == 200);  // an unknown field
  CHECK(status_of("Content-Length: 2\r\nContent-Length: 2\r\n") == 400);
  for (const char* bad : {"2, 2", "+2", "-1", "0x2", "2 x", "", "2_"}) {
    INFO(bad);
    CHECK(status_of("Content-Length: " + std::string(bad) + "\r\n") == 400);
  }
  for (const char* large : {"8388609", "18446744073709551615", "18446744073709551616"}) {
    CHECK(status_of("Content-Length: " + std::string(large) + "\r\n") == 413);
  }
}

TEST_CASE("http_head: lines and names", "[api]") {
  CHECK(status_of("A: b\nC: d\r\n") == 400);
  CHECK(status_of("A: b\rc\r\n") == 400);
  CHECK(status_of(std::string("A: b\0c\r\n", 8)) == 400);
  CHECK(status_of("A: b\r\n c\r\n") == 400);
  CHECK(status_of("A : b\r\n") == 400);
  CHECK(status_of(": b\r\n") == 400);
  CHECK(status_of("A(: b\r\n") == 400);
  CHECK(status_of("nothing\r\n") == 400);
  CHECK(status_of("Host: b\r\n") == 400);
  CHECK(bare_status_of("GET / HTTP/1.1\r\n\r\n") == 400);
  CHECK(bare_status_of("GET / HTTP/1.0\r\n\r\n") == 200);
  for (const char* host : {"localhost/v1/models?", "a#", "evil@a", "a b"}) {
    INFO(host);
    CHECK(bare_status_of("GET / HTTP/1.1\r\nHost: " + std::string(host) + "\r\n\r\n") == 400);
  }
  CHECK(bare_status_of("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n") == 200);
  std::string many;
  for (int i = 0; i < 100; ++i) {
    many += "a: b\r\n";
  }
  CHECK(status_of(many) == 431);
  CHECK(status_of("Expect: 100-continue\r\n") == 200);
  CHECK(status_of("Expect: 200-ok\r\n") == 417);
  CHECK(status_of("Content-Encoding: gzip\r\n") == 415);
  CHECK(status_of("Content-Type: text/plain\r\n") == 200);
}

TEST_CASE("http_head: request lines", "[api]") {
  for (const char* bad : {"GET /\xff HTTP/1.1",
                          "GET /a b HTTP/1.1",
                          "GET /%zz HTTP/1.1",
                          "GET /%00 HTTP/1.1",
                          "GET http://a/ HTTP/1.1",
                          "GET a:80 HTTP/1.1",
                          "OPTIONS * HTTP/1.1",
                          "get / HTTP/1.1",
                          "GET  / HTTP/1.1",
                          "GET /",
                          " GET / HTTP/1.1"}) {
    INFO(bad);
    CHECK(status_of("", bad) == 400);
  }
  CHECK(status_of("", "GET / HTTP/1.2") == 505);
  CHECK(status_of("", "PRI * HTTP/2.0") == 505);
  CHECK(status_of("", "GET /" + std::string(9000, 'a') + " HTTP/1.1") == 414);
}

TEST_CASE("http_head: keep-alive", "[api]") {
  const auto keeps = [](const std::string& version, const std::string& lines) {
    auto head = parse_request_head("GET / " + version + "\r\nHost: a\r\n" + lines + "\r\n", {});
    REQUIRE(static_cast<bool>(head));
    return head.value().keeps_alive;
  };
  CHECK(keeps("HTTP/1.1", ""));
  CHECK_FALSE(keeps("HTTP/1.1", "Connection: Close\r\n"));
  CHECK_FALSE(keeps("HTTP/1.0", ""));
  CHECK(keeps("HTTP/1.0", "Connection: keep-alive\r\n"));
}

TEST_CASE("http_head: a doubled field is not found", "[api]") {
  auto head =
      parse_request_head("GET /a?b=c HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nX-A: 2\r\nY: z\r\n\r\n", {});
  REQUIRE(static_cast<bool>(head));
  CHECK(head.value().path == "/a");
  CHECK(head.value().query == "b=c");
  CHECK(head.value().find("x-a") == nullptr);
  REQUIRE(head.value().find("y") != nullptr);
  CHECK(*head.value().find("y") == "z");
}

TEST_CASE("http_head: chunked bodies, fed in any pieces", "[api]") {
  const std::string wire = "5\r\nhello\r\n1\r\n \r\n00A\r\n0123456789\r\n0\r\n\r\nGET /";
  for (size_t piece = 1; piece <= wire.size(); ++piece) {
    ChunkedBody body(100);
    std::string input;
    for (size_t at = 0; at < wire.size() && !body.is_done(); at += piece) {
      input += wire.substr(at, piece);
      const auto error = body.feed(input);
      REQUIRE_FALSE(error);
    }
    REQUIRE(body.is_done());
    CHECK(body.take() == "hello 0123456789");
    CHECK(std::string("GET /").starts_with(input));
  }
}

TEST_CASE("http_head: bad chunks", "[api]") {
  const auto status = [](std::string wire, int64_t bytes_max = 100) {
    ChunkedBody body(bytes_max);
    const auto error = body.feed(wire);
    return error ? error->status : 200;
  };
  for (const char* bad : {"2;\n\r\nab",
                          "2;ext\r\nab\r\n",
                          "2\n{}\n0\n\n",
                          "-2\r\n",
                          "0x2\r\n",
                          " 2\r\n",
                          "\r\n",
                          "11111111111111111\r\n",
                          "000000000000000000000000000000\r\n",
                          "2\r\nabc\r\n",
                          "0\r\nAuthorization: x\r\n\r\n"}) {
    INFO(bad);
    CHECK(status(bad) == 400);
  }
  CHECK(status("ffffffff\r\n") == 413);
  CHECK(status("65\r\n") == 413);
  CHECK(status("64\r\n") == 200);
  std::string many;
  for (int i = 0; i < 70'000; ++i) {
    many += "1\r\na\r\n";
  }
  CHECK(status(many, 1 << 20) == 413);
}

TEST_CASE("http_head: percent escapes", "[api]") {
  CHECK(percent_decode("a%2Fb%20") == "a/b ");
  CHECK_FALSE(percent_decode("%"));
  CHECK_FALSE(percent_decode("%2"));
  CHECK_FALSE(percent_decode("%+1"));
  CHECK_FALSE(percent_decode("%00"));
}
