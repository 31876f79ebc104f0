// A serving context over an engine that does not run: jobs are fed by hand.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "catch.h"
#include "generation_job.h"
#include "null_engine.h"

namespace hadal_test {

using nlohmann::json;

class JobFixture {
 public:
  JobFixture() : engine_(NullEngineOptions{.starts = false}), served_(engine_.served()) {
    config.served_model_name = "tiny";
  }

  hadal::api::ServingContext context() { return {config, served_, ids_}; }

  const hadal::Tokenizer& tokenizer() const { return engine_.tokenizer(); }

  std::unique_ptr<hadal::api::GenerationJob> chat(const json& body) {
    return must(hadal::api::make_chat_job(context(), body.dump()));
  }

  std::unique_ptr<hadal::api::GenerationJob> completion(const json& body) {
    return must(hadal::api::make_completion_job(context(), body.dump()));
  }

  hadal::ApiConfig config;

 private:
  static std::unique_ptr<hadal::api::GenerationJob> must(
      hadal::api::ApiResult<std::unique_ptr<hadal::api::GenerationJob>> job) {
    INFO((job ? "" : job.error().message));
    REQUIRE(static_cast<bool>(job));
    return std::move(job).value();
  }

  NullEngine engine_;
  hadal::ServedModel served_;
  hadal::api::IdSource ids_{7};
};

inline hadal::TokenEvent token_event(hadal::TokenId token) {
  hadal::TokenEvent event;
  event.token = token;
  return event;
}

inline hadal::TokenEvent finish_event(hadal::FinishReason reason) {
  hadal::TokenEvent event;
  event.finish = reason;
  return event;
}

/// Feeds one event per byte of `text` (the tiny tokenizer's ids are bytes).
inline void feed(hadal::api::GenerationJob& job, size_t choice, std::string_view text) {
  for (const char c : text) {
    job.on_event(choice, token_event(static_cast<unsigned char>(c)));
  }
}

/// The events of a stream, without the end mark; checks the framing.
inline std::vector<json> stream_events(hadal::api::GenerationJob& job) {
  job.end_stream();
  std::string text = job.take_stream();
  const std::string end = "data: [DONE]\n\n";
  REQUIRE(text.ends_with(end));
  text.resize(text.size() - end.size());
  std::vector<json> events;
  while (!text.empty()) {
    REQUIRE(text.starts_with("data: {"));
    const size_t stop = text.find("\n\n");
    REQUIRE(stop != std::string::npos);
    events.push_back(json::parse(text.substr(6, stop - 6)));
    text.erase(0, stop + 2);
  }
  return events;
}

/// All text of one choice in a chat's stream.
inline std::string joined(const std::vector<json>& events, size_t choice, const char* member) {
  std::string text;
  for (const json& event : events) {
    for (const json& entry : event["choices"]) {
      if (entry["index"] == choice && entry["delta"].contains(member)) {
        text += entry["delta"][member].get<std::string>();
      }
    }
  }
  return text;
}

}  // namespace hadal_test
