// A server on free ports over an engine on the null runner, and what tests ask it.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <thread>

#include <nlohmann/json.hpp>

#include <hadal/api/server.h>

#include "catch.h"
#include "http_client.h"
#include "null_engine.h"

namespace hadal_test {

using nlohmann::json;

/// Polls until `condition` holds; false after `seconds` (times three under sanitizers).
inline bool eventually(const std::function<bool()>& condition, double seconds = 10) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(test_seconds(seconds));
  while (std::chrono::steady_clock::now() < deadline) {
    if (condition()) {
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return condition();
}

inline hadal::TimePoint seconds_from_now(double seconds) {
  return hadal::system_clock().now() +
         std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

class TestServer {
 public:
  using Configure = std::function<void(hadal::ApiConfig&)>;

  explicit TestServer(const NullEngineOptions& options = {}, const Configure& configure = {})
      : engine_(options), server_(make_config(configure), engine_.registry()) {
    REQUIRE(static_cast<bool>(server_.start()));
    const hadal::Status opened = server_.open(engine_.served());
    INFO((opened ? "" : opened.error().message));
    REQUIRE(static_cast<bool>(opened));
  }

  ~TestServer() {
    server_.stop();
    engine_.engine().drain_and_stop(seconds_from_now(0));
  }

  hadal::ApiServer& server() { return server_; }

  hadal::Engine& engine() { return engine_.engine(); }

  const NullEngine& null_engine() const { return engine_; }

  uint16_t port() const { return server_.port(); }

  /// Nothing runs and no page is held but by the cache.
  bool is_idle() {
    const hadal::EngineStats stats = engine_.engine().stats();
    return stats.num_running == 0 && stats.num_queued == 0 && stats.pages_leased == 0 &&
           stats.pages_free + stats.pages_cached == stats.pages_total;
  }

  static hadal::ApiConfig make_config(const Configure& configure) {
    hadal::ApiConfig config;
    config.port = 0;
    config.admin_port = 0;
    config.served_model_name = "tiny";
    config.version = "test";
    if (configure) {
      configure(config);
    }
    return config;
  }

 private:
  NullEngine engine_;
  hadal::ApiServer server_;
};

/// A completion of `count` tokens that no stop token ends.
inline json completion_body(int32_t count, uint64_t seed, const json& extra = json::object()) {
  json body = {{"prompt", "p"}, {"max_tokens", count}, {"seed", seed}, {"ignore_eos", true}};
  body.update(extra);
  return body;
}

/// Its text: BOS and one byte stand before the answer.
inline std::string expected_text(const NullEngine& engine, size_t count, uint64_t seed) {
  return engine.text_of(engine.tokens_after(2, seed, count));
}

/// The text of a completion's stream; checks that it has one finish and one end mark.
inline std::string stream_text(const HttpAnswer& answer, size_t choice = 0) {
  REQUIRE(answer.status == 200);
  REQUIRE(answer.is_complete);
  std::vector<std::string> events = answer.events();
  REQUIRE_FALSE(events.empty());
  CHECK(events.back() == "[DONE]");
  events.pop_back();
  std::string text;
  int num_finish = 0;
  for (const std::string& event : events) {
    const json chunk = json::parse(event);
    REQUIRE(chunk.contains("choices"));
    for (const json& entry : chunk["choices"]) {
      if (entry["index"] == choice) {
        text += entry["text"].get<std::string>();
        num_finish += entry["finish_reason"].is_null() ? 0 : 1;
      }
    }
  }
  CHECK(num_finish == 1);
  return text;
}

}  // namespace hadal_test
