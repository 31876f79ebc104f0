// Stop strings over token boundaries, in thinking and in the answer; tool calls end where asked.
#include "text_stream.h"

#include <string>

#include "catch.h"
#include "tiny_tokenizer.h"

using namespace hadal;
using namespace hadal::api;
using namespace hadal_test;

namespace {

struct Fed {
  std::string reasoning;
  std::string content;
  std::vector<ParsedToolCall> calls;
  std::optional<int32_t> matched;
  size_t num_pushed = 0;
};

Fed feed(const Tokenizer& tokenizer,
         const std::vector<TokenId>& prompt,
         const std::string& text,
         const TextStream::Options& options) {
  TextStream stream(tokenizer, prompt, options);
  TextDelta all;
  Fed fed;
  for (const TokenId id : tokenizer.encode(text, AddedTokens::parse)) {
    if (stream.is_ended()) {
      break;
    }
    all.append(stream.push(id));
    ++fed.num_pushed;
  }
  if (!stream.is_ended()) {
    all.append(stream.finish());
  }
  fed.reasoning = all.reasoning;
  fed.content = all.content;
  fed.calls = all.tool_calls;
  fed.matched = stream.matched_stop();
  return fed;
}

const std::string kCall =
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>";

}  // namespace

TEST_CASE("text_stream: stop strings cross tokens and are not sent", "[api]") {
  const Tokenizer tokenizer = make_tiny_tokenizer();
  TextStream::Options options;
  options.stops = {"STOP", "ST", "好的"};
  const Fed fed = feed(tokenizer, {}, "abcSxSTOPdef", options);
  CHECK(fed.content == "abcSx");
  CHECK(fed.matched == 1);
  CHECK(fed.num_pushed == 7);
  options.stops = {"STOP", "好的"};
  CHECK(feed(tokenizer, {}, "a好STO好的b", options).content == "a好STO");
  CHECK(feed(tokenizer, {}, "a好STO", options).content == "a好STO");
  options.keeps_stop = true;
  CHECK(feed(tokenizer, {}, "abSTOPc", options).content == "abSTOP");
}

TEST_CASE("text_stream: thinking inline and split", "[api]") {
  const Tokenizer tokenizer = make_tiny_tokenizer();
  const std::vector<TokenId> prompt = {TinyTokenizer::kAssistant, TinyTokenizer::kThink, '\n'};
  TextStream::Options options;
  CHECK(feed(tokenizer, prompt, "hm</think>\n\nyes", options).content ==
        "<think>\nhm</think>\n\nyes");
  options.parser.reasoning = ReasoningFormat::split;
  const Fed split = feed(tokenizer, prompt, "hm\n</think>\n\nyes", options);
  CHECK(split.reasoning == "hm");
  CHECK(split.content == "yes");
  options.stops = {"END", "m</think>y"};
  const Fed stopped = feed(tokenizer, prompt, "thE", options);
  CHECK(stopped.reasoning == "thE");
  const Fed in_thinking = feed(tokenizer, prompt, "thENDx</think>y", options);
  CHECK(in_thinking.reasoning == "th");
  CHECK(in_thinking.content.empty());
  CHECK(in_thinking.matched == 0);
  const Fed held = feed(tokenizer, prompt, "thE</think>ENx", options);
  CHECK(held.reasoning == "thE");
  CHECK(held.content == "ENx");
}

TEST_CASE("text_stream: tool calls", "[api]") {
  const Tokenizer tokenizer = make_tiny_tokenizer();
  const std::string text =
      "ok<｜tool▁calls▁begin｜>" + kCall + "\n" + kCall + "<｜tool▁calls▁end｜>";
  TextStream::Options options;
  CHECK(feed(tokenizer, {}, text, options).content == text);
  options.parser.parses_tool_calls = true;
  const Fed both = feed(tokenizer, {}, text, options);
  CHECK(both.content == "ok");
  REQUIRE(both.calls.size() == 2);
  CHECK(both.calls[1].name == "f");
  CHECK(both.calls[1].arguments == "{\"a\": 1}");
  options.has_single_tool_call = true;
  options.stops = {"kk"};
  const Fed one = feed(tokenizer, {}, text, options);
  CHECK(one.calls.size() == 1);
  CHECK(one.content == "ok");
  CHECK_FALSE(one.matched);
}
