// Raw prompts: tokens as they are, echo and logprobs as scoring tools read them.
#include <string>

#include "catch.h"
#include "job_fixture.h"

using namespace hadal;
using namespace hadal::api;
using namespace hadal_test;

TEST_CASE("completions: prompts get a BOS, ids are taken as they are", "[api]") {
  JobFixture fixture;
  auto job = fixture.completion({{"prompt", {"a", "<｜User｜>"}}, {"n", 2}});
  const std::vector<GenerateRequest> requests = job->take_requests();
  REQUIRE(requests.size() == 4);
  CHECK(requests[0].prompt == std::vector<TokenId>{TinyTokenizer::kBos, 'a'});
  CHECK(requests[1].prompt == requests[0].prompt);
  CHECK(requests[2].prompt == std::vector<TokenId>{TinyTokenizer::kBos, TinyTokenizer::kUser});
  CHECK(requests[0].max_new_tokens == 16);
  CHECK(job->prompt_tokens() == 4);
  auto ids = fixture.completion({{"prompt", {1, 2}}});
  CHECK(ids->take_requests().at(0).prompt == std::vector<TokenId>{1, 2});
  fixture.config.raw_prompts_may_hold_special_tokens = false;
  auto text = fixture.completion({{"prompt", "<｜User｜>"}});
  CHECK(text->take_requests().at(0).prompt.size() == 1 + std::string("<｜User｜>").size());
}

TEST_CASE("completions: thinking markers are text and nothing is put back", "[api]") {
  JobFixture fixture;
  auto job = fixture.completion({{"prompt", {TinyTokenizer::kThink, 10}}});
  job->on_event(0, token_event('x'));
  job->on_event(0, token_event(TinyTokenizer::kThinkEnd));
  job->on_event(0, finish_event(FinishReason::length));
  const json body = json::parse(job->response());
  CHECK(body["object"] == "text_completion");
  CHECK(body["choices"][0]["text"] == "x</think>");
  CHECK(body["choices"][0]["finish_reason"] == "length");
}

TEST_CASE("completions: echo with logprobs scores the prompt", "[api]") {
  JobFixture fixture;
  auto job = fixture.completion({{"prompt", {{'a', 'b', 'c'}, {'d', 'e'}}},
                                 {"echo", true},
                                 {"logprobs", 1},
                                 {"max_tokens", 1}});
  CHECK(job->take_requests().at(0).wants_prompt_logprobs);
  for (size_t choice = 0; choice < 2; ++choice) {
    TokenEvent event = token_event('!');
    event.logprob = TokenLogprob{'!', -3.0F};
    event.top_logprobs = {{'?', -0.25F}};
    event.prompt_logprobs = choice == 0 ? std::vector<TokenLogprob>{{'b', -1.0F}, {'c', -2.0F}}
                                        : std::vector<TokenLogprob>{{'e', -4.0F}};
    for (const TokenLogprob& entry : event.prompt_logprobs) {
      event.prompt_top_logprobs.push_back({entry});
    }
    event.finish = FinishReason::length;
    job->on_event(choice, event);
  }
  REQUIRE(job->is_done());
  const json body = json::parse(job->response());
  const json& first = body["choices"][0];
  CHECK(first["text"] == "abc!");
  CHECK(first["logprobs"]["tokens"] == json({"a", "b", "c", "!"}));
  CHECK(first["logprobs"]["token_logprobs"] == json({nullptr, -1.0, -2.0, -3.0}));
  CHECK(first["logprobs"]["text_offset"] == json({0, 1, 2, 3}));
  CHECK(first["logprobs"]["top_logprobs"][0].is_null());
  CHECK(first["logprobs"]["top_logprobs"][3] == json({{"?", -0.25}}));
  CHECK(body["choices"][1]["text"] == "de!");
  CHECK(body["usage"]["prompt_tokens"] == 5);
  CHECK(body["usage"]["completion_tokens"] == 2);
}

TEST_CASE("completions: a stream says the same as the whole", "[api]") {
  JobFixture fixture;
  const std::string prompt(30'000 / 10, 'p');
  for (const int32_t interval : {1, 4}) {
    fixture.config.stream_interval = interval;
    auto job = fixture.completion(
        {{"prompt", prompt}, {"echo", true}, {"stream", true}, {"stop", {"好x"}}});
    for (const unsigned char byte : std::string("one 好的 two 好xyz")) {
      job->on_event(0, token_event(byte));
    }
    REQUIRE(job->is_done());
    std::string text;
    const std::vector<json> events = stream_events(*job);
    for (const json& event : events) {
      text += event["choices"][0]["text"].get<std::string>();
      CHECK(event["object"] == "text_completion");
    }
    CHECK(text == prompt + "one 好的 two ");
    CHECK(events.back()["choices"][0]["finish_reason"] == "stop");
    CHECK(events.back()["choices"][0]["matched_stop"] == "好x");
  }
}

TEST_CASE("completions: text is split between characters", "[api]") {
  const std::string text = "a好b好";
  for (size_t bytes_max = 4; bytes_max < 10; ++bytes_max) {
    std::string back;
    for (const std::string_view piece : split_text(text, bytes_max)) {
      CHECK(piece.size() <= bytes_max);
      CHECK((static_cast<unsigned char>(piece[0]) & 0xC0U) != 0x80U);
      back += piece;
    }
    CHECK(back == text);
  }
  CHECK(split_text("", 4).size() == 1);
}
