// Answers over HTTP are what the runner generated: alone and together, whole and streamed.
#include <atomic>
#include <thread>
#include <vector>

#include "test_server.h"

using namespace hadal_test;

TEST_CASE("e2e: the article's request", "[e2e]") {
  TestServer server;
  HttpClient client(server.port());
  const std::string body =
      R"({"model":"/model","messages":[{"role":"user","content":"你是什么模型"}],)"
      R"("stream":false,"temperature":0.8})";
  REQUIRE(
      client.send("POST /v1/chat/completions HTTP/1.1\r\nHost: ip:80\r\nAccept: */*\r\n"
                  "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: " +
                  std::to_string(body.size()) + "\r\n\r\n" + body));
  const auto answer = client.receive();
  REQUIRE(answer);
  CHECK(answer->status == 200);
  CHECK(answer->fields.at("content-type") == "application/json");
  CHECK(answer->fields.count("x-request-id") == 1);
  const json reply = json::parse(answer->body);
  CHECK(reply["model"] == "/model");
  CHECK(reply["choices"][0]["message"]["role"] == "assistant");
  const auto content = reply["choices"][0]["message"]["content"].get<std::string>();
  // Draws have no seed here: one in some hundred answers ends with its first token and has no text.
  const bool has_text = reply["usage"]["completion_tokens"] > 1;
  CHECK(content.starts_with("<think>\n") == has_text);
  // BOS, user, six characters of three bytes, assistant, think, line break.
  CHECK(reply["usage"]["prompt_tokens"] == 2 + 18 + 3);
}

TEST_CASE("e2e: whole and streamed answers are the runner's tokens", "[e2e]") {
  TestServer server;
  HttpClient client(server.port());
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    const std::string expected = expected_text(server.null_engine(), 50, seed);
    const HttpAnswer whole = client.post("/v1/completions", completion_body(50, seed).dump());
    REQUIRE(whole.status == 200);
    const json reply = json::parse(whole.body);
    CHECK(reply["choices"][0]["text"] == expected);
    CHECK(reply["choices"][0]["finish_reason"] == "length");
    CHECK(reply["usage"]["completion_tokens"] == 50);
    const HttpAnswer streamed =
        client.post("/v1/completions", completion_body(50, seed, {{"stream", true}}).dump());
    CHECK(streamed.fields.at("content-type") == "text/event-stream; charset=utf-8");
    CHECK(stream_text(streamed) == expected);
  }
  CHECK(eventually([&] { return server.is_idle(); }));
}

TEST_CASE("e2e: several choices and prompts, streamed with usage", "[e2e]") {
  TestServer server;
  HttpClient client(server.port());
  const json body = completion_body(20,
                                    9,
                                    {{"n", 2},
                                     {"prompt", {"p", "q"}},
                                     {"stream", true},
                                     {"stream_options", {{"include_usage", true}}}});
  const HttpAnswer answer = client.post("/v1/completions", body.dump());
  const std::string expected = expected_text(server.null_engine(), 20, 9);
  CHECK(stream_text(answer, 0) == expected);
  CHECK(stream_text(answer, 2) == expected);  // the null runner looks at seed and position alone
  CHECK(stream_text(answer, 1) == stream_text(answer, 3));
  CHECK(stream_text(answer, 1) != expected);
  const std::vector<std::string> events = answer.events();
  const json usage = json::parse(events[events.size() - 2])["usage"];
  CHECK(usage["prompt_tokens"] == 4);
  CHECK(usage["completion_tokens"] == 80);
}

TEST_CASE("e2e: a stop string ends the answer and the work", "[e2e]") {
  TestServer server({.step_us = 300});
  HttpClient client(server.port());
  const std::string full = expected_text(server.null_engine(), 200, 4);
  // A stop of plain ASCII that occurs late enough to cross tokens (each token is one byte).
  std::string stop;
  for (size_t i = 20; i + 2 < full.size() && stop.empty(); ++i) {
    const std::string candidate = full.substr(i, 2);
    const bool is_ascii =
        candidate[0] > 0x20 && candidate[0] < 0x7F && candidate[1] > 0x20 && candidate[1] < 0x7F;
    if (is_ascii && full.find(candidate) == i) {
      stop = candidate;
    }
  }
  REQUIRE_FALSE(stop.empty());
  const std::string expected = full.substr(0, full.find(stop));
  for (const bool is_stream : {false, true}) {
    const json body = completion_body(3000, 4, {{"stop", stop}, {"stream", is_stream}});
    const HttpAnswer answer = client.post("/v1/completions", body.dump());
    REQUIRE(answer.status == 200);
    if (is_stream) {
      CHECK(stream_text(answer) == expected);
    } else {
      const json choice = json::parse(answer.body)["choices"][0];
      CHECK(choice["text"] == expected);
      CHECK(choice["finish_reason"] == "stop");
      CHECK(choice["matched_stop"] == stop);
    }
    CHECK(eventually([&] { return server.is_idle(); }, 1));
  }
}

TEST_CASE("e2e: cached tokens are reported", "[e2e]") {
  TestServer server;
  HttpClient client(server.port());
  const json body = completion_body(4, 3, {{"prompt", std::string(300, 'c')}});
  const json cold = json::parse(client.post("/v1/completions", body.dump()).body);
  const json warm = json::parse(client.post("/v1/completions", body.dump()).body);
  CHECK(cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0);
  CHECK(warm["usage"]["prompt_tokens_details"]["cached_tokens"].get<int>() >= 256);
  CHECK(warm["choices"][0]["text"] == cold["choices"][0]["text"]);
}

TEST_CASE("e2e: long prompts are tokenised beside short requests", "[e2e]") {
  TestServer server({.num_pages = 2048, .max_context_tokens = 100'000});
  HttpClient client(server.port());
  const json body = completion_body(3, 5, {{"prompt", std::string(80'000, 'x')}});
  const HttpAnswer answer = client.post("/v1/completions", body.dump());
  REQUIRE(answer.status == 200);
  CHECK(json::parse(answer.body)["usage"]["prompt_tokens"] == 80'001);
  const std::vector<int> ids(60'000, 7);
  const HttpAnswer by_ids =
      client.post("/v1/completions", completion_body(2, 5, {{"prompt", ids}}).dump());
  REQUIRE(by_ids.status == 200);
  CHECK(json::parse(by_ids.body)["usage"]["prompt_tokens"] == 60'000);
}

TEST_CASE("e2e: 64 clients at once, each gets its own answer", "[e2e]") {
  TestServer server({.step_us = 100, .num_pages = 512});
  constexpr size_t kClients = 64;
  std::atomic<int> num_right{0};
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kClients; ++i) {
    threads.emplace_back([&, i] {
      HttpClient client(server.port());
      for (uint64_t round = 0; round < 2; ++round) {
        const uint64_t seed = 1000 + i * 2 + round;
        const size_t count = 10 + i % 7;
        const bool is_stream = (i + round) % 2 == 0;
        const HttpAnswer answer = client.post(
            "/v1/completions",
            completion_body(static_cast<int32_t>(count), seed, {{"stream", is_stream}}).dump());
        std::string text;
        if (!is_stream && answer.status == 200) {
          text = json::parse(answer.body)["choices"][0]["text"];
        } else if (answer.status == 200) {
          for (const std::string& event : answer.events()) {
            const json chunk = event == "[DONE]" ? json::object() : json::parse(event);
            text += chunk.contains("choices") ? chunk["choices"][0]["text"].get<std::string>() : "";
          }
        }
        num_right += text == expected_text(server.null_engine(), count, seed) ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  CHECK(num_right == 2 * kClients);
  CHECK(eventually([&] { return server.is_idle(); }));
}
