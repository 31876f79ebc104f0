// Thinking and tool calls told apart by token id; broken calls stay text; no half characters.
#include <random>

#include <hadal/text/output_parser.h>

#include "catch.h"
#include "tokenizer_fixture.h"

using hadal::AddedTokens;
using hadal::OutputDelta;
using hadal::OutputParser;
using hadal::ParsedToolCall;
using hadal::ReasoningFormat;
using hadal::TokenId;
using hadal::Tokenizer;

namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer kTokenizer = [] {
    auto spec = hadal_test::make_spec();
    hadal_test::add_token(&spec, "<eos>", true);
    for (const char* marker : {"<think>",
                               "</think>",
                               "<｜Assistant｜>",
                               "<｜tool▁calls▁begin｜>",
                               "<｜tool▁calls▁end｜>",
                               "<｜tool▁call▁begin｜>",
                               "<｜tool▁call▁end｜>",
                               "<｜tool▁sep｜>"})
      hadal_test::add_token(&spec, marker);
    return hadal_test::must_load(spec);
  }();
  return kTokenizer;
}

std::vector<TokenId> ids(const std::string& text) {
  return tokenizer().encode(text, AddedTokens::parse);
}

/// All of an answer, written down: reasoning in [], calls as {index name arguments}.
struct Answer {
  std::string reasoning;
  std::string content;
  std::string calls;
  int64_t reasoning_tokens = 0;

  void add(const OutputDelta& delta) {
    reasoning += delta.reasoning;
    content += delta.content;
    for (const ParsedToolCall& call : delta.tool_calls)
      calls += "{" + std::to_string(call.index) + " " + call.name + " " + call.arguments + "}";
  }
};

Answer parse(const std::string& prompt,
             const std::vector<TokenId>& generated,
             OutputParser::Options options) {
  OutputParser parser(tokenizer(), ids(prompt), options);
  Answer answer;
  for (const TokenId id : generated)
    answer.add(parser.push(id));
  answer.add(parser.finish());
  answer.reasoning_tokens = parser.reasoning_tokens();
  return answer;
}

Answer parse(const std::string& prompt,
             const std::string& generated,
             OutputParser::Options options = {}) {
  return parse(prompt, ids(generated), options);
}

const OutputParser::Options kSplit{.reasoning = ReasoningFormat::split};
const OutputParser::Options kTools{.parses_tool_calls = true};
const std::string kOpen = "<｜Assistant｜><think>\n";
const std::string kFirst =
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Köln\"}\n"
    "```<｜tool▁call▁end｜>";
const std::string kSecond =
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>";

}  // namespace

TEST_CASE("OutputParser: inline thinking gets back the tag that the prompt opened", "[text]") {
  CHECK(parse(kOpen, "so\n</think>\n\nYes").content == "<think>\nso\n</think>\n\nYes");
  CHECK(parse(kOpen, "so").content == "<think>\nso");
  CHECK(parse("<｜Assistant｜><think>", "so</think>a").content == "<think>so</think>a");
  CHECK(parse(kOpen, "").content.empty());
  CHECK(parse("<｜Assistant｜>", "<think>\nso</think>Yes").content == "<think>\nso</think>Yes");
  CHECK(parse("<｜Assistant｜></think>", "Yes").content == "Yes");
  // A thought of an earlier turn, a continued thought, and a sender who has the tag already.
  CHECK(parse("<think>x<eos><｜Assistant｜>", "Yes").content == "Yes");
  CHECK(parse(kOpen + "half a th", "ought</think>Yes").content == "ought</think>Yes");
  CHECK(parse(kOpen, "so</think>Yes", {.restores_think_open = false}).content == "so</think>Yes");
}

TEST_CASE("OutputParser: split thinking has no markers and no outer white space", "[text]") {
  const Answer answer = parse(kOpen, "\n so it \n is \n\n</think>\n\nYes \n", kSplit);
  CHECK(answer.reasoning == "so it \n is");
  CHECK(answer.content == "Yes \n");
  CHECK(answer.reasoning_tokens == static_cast<int64_t>(ids("\n so it \n is \n\n").size()));
  const Answer unfinished = parse(kOpen, "so on\n", kSplit);
  CHECK(unfinished.reasoning == "so on");
  CHECK(unfinished.content.empty());
  const Answer own = parse("<｜Assistant｜>", "<think>\nso</think>\nYes", kSplit);
  CHECK(own.reasoning == "so");
  CHECK(own.content == "Yes");
  const Answer none = parse(kOpen, "</think>\n\nYes", kSplit);
  CHECK(none.reasoning.empty());
  CHECK(none.content == "Yes");
  CHECK(none.reasoning_tokens == 0);
}

TEST_CASE("OutputParser: markers that come where they do not belong stay text", "[text]") {
  CHECK(parse(kOpen, "a</think>b<think>c</think>d", kSplit).content == "b<think>c</think>d");
  CHECK(parse("", "a <think> b </think>", kSplit).content == "a <think> b </think>");
  // Text that merely spells a marker is not one.
  Answer spelled = parse(kOpen, tokenizer().encode("a</think>b", AddedTokens::as_text), kSplit);
  CHECK(spelled.reasoning == "a</think>b");
}

TEST_CASE("OutputParser: calls in the form of V3 and R1", "[text]") {
  const Answer answer = parse(
      "",
      "Let me look.<｜tool▁calls▁begin｜>" + kFirst + "\n" + kSecond + "<｜tool▁calls▁end｜><eos>",
      kTools);
  CHECK(answer.content == "Let me look.");
  CHECK(answer.calls == "{0 get_weather {\"city\": \"Köln\"}}{1 now {}}");
  // R1 may end without closing the block.
  const Answer open = parse("", "<｜tool▁calls▁begin｜>" + kFirst + "\n<eos>", kTools);
  CHECK(open.content.empty());
  CHECK(open.calls == "{0 get_weather {\"city\": \"Köln\"}}");
}

TEST_CASE("OutputParser: calls in the form of V3.1", "[text]") {
  const Answer answer = parse("",
                              "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}"
                              "<｜tool▁call▁end｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
                              "{\"a\": [1]}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
                              kTools);
  CHECK(answer.content.empty());
  CHECK(answer.calls == "{0 now {}}{1 function {\"a\": [1]}}");
}

TEST_CASE("OutputParser: a call ends thinking", "[text]") {
  const Answer answer = parse(kOpen,
                              "need it\n<｜tool▁calls▁begin｜>" + kSecond + "<｜tool▁calls▁end｜>",
                              {.reasoning = ReasoningFormat::split, .parses_tool_calls = true});
  CHECK(answer.reasoning == "need it");
  CHECK(answer.content.empty());
  CHECK(answer.calls == "{0 now {}}");
}

TEST_CASE("OutputParser: a broken call stays text, a good one beside it does not", "[text]") {
  const auto stays = [](const std::string& text) {
    const Answer answer = parse("", text, kTools);
    CHECK(answer.content == text);
    CHECK(answer.calls.empty());
  };
  const std::string begin = "<｜tool▁calls▁begin｜>";
  const std::string end = "<｜tool▁calls▁end｜>";
  stays("a" + begin + end);
  stays(begin);
  stays(begin + "\n \n");
  stays(begin + "no call" + end);
  stays(begin + kFirst.substr(0, 90));
  stays(begin + "<｜tool▁call▁begin｜>now{}<｜tool▁call▁end｜>" + end);
  stays(begin + "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{\"a\": }<｜tool▁call▁end｜>" + end);
  stays(begin + "<｜tool▁call▁begin｜>now<｜tool▁sep｜>[1]<｜tool▁call▁end｜>" + end);
  stays(begin + "<｜tool▁call▁begin｜><｜tool▁sep｜>{}<｜tool▁call▁end｜>" + end);
  stays(begin + "<｜tool▁call▁begin｜>two words<｜tool▁sep｜>{}<｜tool▁call▁end｜>" + end);
  stays(begin + "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}" + end);
  stays("<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>");
  const std::string bad = "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{<｜tool▁call▁end｜>";
  const Answer after = parse("", begin + bad + kFirst + end, kTools);
  CHECK(after.content == begin + bad);
  CHECK(after.calls == "{0 get_weather {\"city\": \"Köln\"}}");
  const Answer before = parse("", begin + kFirst + bad + end, kTools);
  CHECK(before.content == bad);
  CHECK(before.calls == "{0 get_weather {\"city\": \"Köln\"}}");
  const Answer restarted =
      parse("", begin + "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{" + kSecond + end, kTools);
  CHECK(restarted.content == begin + "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{");
  CHECK(restarted.calls == "{0 now {}}");
  const Answer followed = parse("", begin + kSecond + end + "Done.", kTools);
  CHECK(followed.content == "Done.");
}

TEST_CASE("OutputParser: without tools the markers are text", "[text]") {
  const std::string text = "<｜tool▁calls▁begin｜>" + kFirst + "<｜tool▁calls▁end｜>";
  CHECK(parse("", text).content == text);
}

TEST_CASE("OutputParser: characters leave whole, in whatever tokens they came", "[text]") {
  const std::string text =
      "日本 é</think>\n\n\xF0\x9F\x98\x80 <｜tool▁calls▁begin｜>" + kFirst + "<｜tool▁calls▁end｜>";
  OutputParser parser(
      tokenizer(), ids(kOpen), {.reasoning = ReasoningFormat::split, .parses_tool_calls = true});
  Answer answer;
  for (const TokenId id : ids(text)) {
    const OutputDelta delta = parser.push(id);
    for (const std::string& part : {delta.reasoning, delta.content}) {
      const bool ends_inside = !part.empty() && static_cast<unsigned char>(part.back()) >= 0xC0;
      const bool begins_inside =
          !part.empty() && (static_cast<unsigned char>(part[0]) & 0xC0U) == 0x80U;
      CHECK_FALSE((ends_inside || begins_inside));
    }
    answer.add(delta);
  }
  answer.add(parser.finish());
  CHECK(answer.reasoning == "日本 é");
  CHECK(answer.content == "\xF0\x9F\x98\x80 ");
  CHECK(answer.calls == "{0 get_weather {\"city\": \"Köln\"}}");
  // Cut inside a character: at the end, at a marker, and inside a call that never ends.
  const auto with_half = [](const std::string& before, const std::string& after) {
    std::vector<TokenId> generated = ids(before);
    generated.push_back(0xE6);  // the first byte of a character of three
    for (const TokenId id : ids(after))
      generated.push_back(id);
    return generated;
  };
  CHECK(parse("", with_half("a", ""), {}).content == "a\uFFFD");
  const Answer at_marker = parse(kOpen, with_half("a", "</think>b"), kSplit);
  CHECK(at_marker.reasoning == "a\uFFFD");
  CHECK(at_marker.content == "b");
  const std::string open_call = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{";
  CHECK(parse("", with_half(open_call, ""), kTools).content == open_call + "\uFFFD");
  const Answer in_call = parse("", with_half(open_call + "\"", "\"}<｜tool▁call▁end｜>"), kTools);
  CHECK(in_call.content == open_call + "\"\uFFFD\"}<｜tool▁call▁end｜>");
}

TEST_CASE("OutputParser: random streams equal themselves however the tokens fall", "[text]") {
  std::mt19937 random(5);
  const std::vector<std::string> pieces = {"hello",
                                           "aaaa",
                                           "\n",
                                           " ",
                                           "日",
                                           "{}",
                                           "now",
                                           "function",
                                           "\n```json\n{}\n```",
                                           "<think>",
                                           "</think>",
                                           "<｜tool▁calls▁begin｜>",
                                           "<｜tool▁calls▁end｜>",
                                           "<｜tool▁call▁begin｜>",
                                           "<｜tool▁call▁end｜>",
                                           "<｜tool▁sep｜>",
                                           kFirst};
  for (int round = 0; round < 3000; ++round) {
    const OutputParser::Options options{
        .reasoning = random() % 2 ? ReasoningFormat::split : ReasoningFormat::inline_tags,
        .parses_tool_calls = random() % 4 != 0};
    std::vector<TokenId> merged;
    std::vector<TokenId> bytes;  // the same text in single-byte tokens
    for (size_t n = random() % 16; n > 0; --n) {
      for (const TokenId id : ids(pieces[random() % pieces.size()])) {
        merged.push_back(id);
        const std::string text(tokenizer().bytes(id));
        if (tokenizer().added_token(text)) {
          bytes.push_back(id);
          continue;
        }
        for (const char c : text) {
          const auto one = tokenizer().encode(std::string(1, c), AddedTokens::as_text);
          if (static_cast<unsigned char>(c) < 0x80 && one.size() == 1)
            bytes.push_back(one[0]);
          else
            bytes.push_back(static_cast<TokenId>(static_cast<unsigned char>(c)));
        }
      }
    }
    const std::string prompt = random() % 2 ? kOpen : "<｜Assistant｜>";
    const Answer a = parse(prompt, merged, options);
    const Answer b = parse(prompt, bytes, options);
    REQUIRE(a.reasoning == b.reasoning);
    REQUIRE(a.content == b.content);
    REQUIRE(a.calls == b.calls);
  }
}
