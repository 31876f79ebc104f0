// Reading streamed answers however their bytes are cut, and the numbers made from them.
#include "serve_load.h"

#include <cstdio>

#include "catch.h"

using namespace hadal;

namespace {

std::string chunk(const std::string& data) {
  char size[16];
  std::snprintf(size, sizeof size, "%zx\r\n", data.size());
  return size + data + "\r\n";
}

const std::string& stream_text() {
  static const std::string text =
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" +
      chunk("data: {\"choices\":[{\"text\":\"a\"}]}\n\n: ping\n\ndata: {\"choices\":[{\"te") +
      chunk("xt\":\"b\"}]}\n\n") +
      chunk(
          "data: {\"choices\":[{\"delta\":{\"content\":\"c\"}}]}\n\n"
          "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\n") +
      chunk("data: [DONE]\n\n") + "0\r\n\r\n";
  return text;
}

ServeOutcome good(double due_s, double first_s, double end_s, int64_t tokens) {
  ServeOutcome outcome;
  outcome.status = 200;
  outcome.is_complete = true;
  outcome.due_s = due_s;
  outcome.first_token_s = first_s;
  outcome.end_s = end_s;
  outcome.prompt_tokens = 10;
  outcome.completion_tokens = tokens;
  return outcome;
}

}  // namespace

TEST_CASE("serve load: a stream is read the same however it is cut", "[app]") {
  for (size_t step : {size_t{1}, size_t{2}, size_t{7}, size_t{64}, stream_text().size()}) {
    StreamReader reader;
    bool is_open = true;
    double now_s = 0;
    for (size_t at = 0; at < stream_text().size() && is_open; at += step)
      is_open = reader.feed(stream_text().substr(at, step), now_s += 0.5);
    INFO(step);
    CHECK_FALSE(is_open);
    const ServeOutcome& outcome = reader.outcome();
    CHECK(outcome.error.empty());
    CHECK(outcome.is_complete);
    CHECK(outcome.status == 200);
    CHECK(outcome.gaps_s.size() == 2);
    CHECK(outcome.prompt_tokens == 7);
    CHECK(outcome.completion_tokens == 3);
    CHECK(outcome.first_token_s > 0);
    CHECK(outcome.end_s >= outcome.first_token_s);
  }
}

TEST_CASE("serve load: refusals and broken answers are no completions", "[app]") {
  StreamReader refused;
  CHECK_FALSE(refused.feed(
      "HTTP/1.1 503 Busy\r\nx-hadal-gate: G4_queue\r\nContent-Length: 2\r\n\r\n{}", 1));
  CHECK(refused.outcome().status == 503);
  CHECK(refused.outcome().gate == "G4_queue");
  CHECK_FALSE(refused.outcome().is_complete);
  StreamReader cut;
  CHECK(cut.feed(stream_text().substr(0, 150), 1));
  cut.end(2);
  CHECK_FALSE(cut.outcome().is_complete);
  CHECK(cut.outcome().error == "the stream ended early");
  StreamReader failed;
  CHECK_FALSE(failed.feed(
      "HTTP/1.1 200 OK\r\n\r\ndata: {\"error\":{\"code\":\"x\"}}\n\ndata: [DONE]\n\n", 1));
  CHECK_FALSE(failed.outcome().is_complete);
  CHECK_FALSE(StreamReader().feed("SSH-2.0\r\n\r\n", 1));
  CHECK_FALSE(
      StreamReader().feed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 1));
  CHECK_FALSE(StreamReader().feed(std::string(100'000, 'x'), 1));
}

TEST_CASE("serve load: the names of SGLang and vLLM, and what goodput counts", "[app]") {
  std::vector<ServeOutcome> outcomes = {
      good(0, 0.1, 1.1, 11), good(1, 0.2, 1.2, 11), good(2, 0.3, 8.0, 11)};
  outcomes[0].gaps_s = {0.1, 0.1};
  ServeOutcome refused;
  refused.status = 503;
  refused.due_s = 3;
  refused.end_s = 0.004;
  outcomes.push_back(refused);
  const auto report = summarize(outcomes, {250, 150});
  CHECK(report.at("duration") == Approx(10));
  CHECK(report.at("completed") == 3);
  CHECK(report.at("failed") == 1);
  CHECK(report.at("refused") == 1);
  CHECK(report.at("total_output_tokens") == 33);
  CHECK(report.at("output_throughput") == Approx(3.3));
  CHECK(report.at("request_throughput") == Approx(0.3));
  CHECK(report.at("request_goodput") == Approx(0.2));  // the third is slow in both
  CHECK(report.at("mean_ttft_ms") == Approx(200));
  CHECK(report.at("median_ttft_ms") == Approx(200));
  CHECK(report.at("p99_ttft_ms") == Approx(298));
  CHECK(report.at("median_tpot_ms") == Approx(100));
  CHECK(report.at("mean_itl_ms") == Approx(100));
  CHECK(report.at("p99_refusal_ms") == Approx(4));
  for (const char* name : {"mean_e2e_latency_ms",
                           "median_e2el_ms",
                           "std_ttft_ms",
                           "p99_itl_ms",
                           "total_input_tokens",
                           "total_token_throughput",
                           "concurrency"})
    CHECK(report.contains(name));
  CHECK(summarize({}, {}).at("completed") == 0);
}

TEST_CASE("serve load: a URL that is none is refused", "[app]") {
  for (const char* url :
       {"", "localhost:1", "https://a", "http://", "http://a:0", "http://a:70000"}) {
    ServeLoad load;
    load.base_url = url;
    const auto outcomes = drive_load(load);
    INFO(url);
    REQUIRE_FALSE(outcomes);
    CHECK(outcomes.error().code == ErrorCode::invalid_argument);
  }
}
