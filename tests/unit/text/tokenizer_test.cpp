// The tokenizer on a small byte-level vocabulary built here: merges, added tokens, prompts with
// request data, splits, ill-formed input, long runs and refusals.
#include <algorithm>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <hadal/text/tokenizer.h>

#include "catch.h"
#include "tokenizer_fixture.h"

using hadal::AddedTokens;
using hadal::PromptText;
using hadal::TokenDecoder;
using hadal::TokenId;
using hadal::Tokenizer;
using hadal_test::json;
using hadal_test::make_spec;
using hadal_test::must_load;

namespace {

#ifdef HADAL_SANITIZED
constexpr size_t kLongBytes = size_t{1} << 18;
#else
constexpr size_t kLongBytes = size_t{1} << 20;
#endif

/// Of this process, so that a busy machine does not fail a test.
double cpu_seconds() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

std::vector<std::string> pieces(const Tokenizer& tokenizer,
                                std::string_view text,
                                AddedTokens added = AddedTokens::parse) {
  std::vector<std::string> out;
  for (const TokenId id : tokenizer.encode(text, added))
    out.emplace_back(tokenizer.bytes(id));
  return out;
}

std::string error_of(const json& spec) {
  const auto tokenizer = Tokenizer::from_tokenizer_json(spec.dump());
  return tokenizer ? "" : tokenizer.error().message;
}

using Pieces = std::vector<std::string>;

}  // namespace

TEST_CASE("Tokenizer: merges apply by rank, leftmost first", "[text]") {
  const Tokenizer tokenizer = must_load(make_spec());
  CHECK(pieces(tokenizer, "hello") == Pieces{"hello"});
  CHECK(pieces(tokenizer, "aaa") == Pieces{"aa", "a"});
  CHECK(pieces(tokenizer, "aaaa") == Pieces{"aaaa"});
  CHECK(pieces(tokenizer, "xyz") == Pieces{"x", "y", "z"});
  CHECK(pieces(tokenizer, "").empty());
}

TEST_CASE("Tokenizer: merges may be pairs, and ignore_merges prefers whole pieces", "[text]") {
  json spec = make_spec();
  const json original = spec;
  for (json& merge : spec["model"]["merges"]) {
    const std::string text = merge;
    const size_t space = text.find(' ');
    merge = {text.substr(0, space), text.substr(space + 1)};
  }
  CHECK(pieces(must_load(spec), "hello") == Pieces{"hello"});
  spec = original;
  const int id = static_cast<int>(spec["model"]["vocab"].size());
  spec["model"]["vocab"]["xyz"] = id;  // no merge leads to it
  CHECK(pieces(must_load(spec), "xyz") == Pieces{"x", "y", "z"});
  spec["model"]["ignore_merges"] = true;
  CHECK(pieces(must_load(spec), "xyz") == Pieces{"xyz"});
  CHECK(pieces(must_load(spec), "hello") == Pieces{"hello"});
}

TEST_CASE("Tokenizer: the long path gives what the short one gives", "[text]") {
  const Tokenizer tokenizer = must_load(make_spec());
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    // "x" merges with nothing, so cutting there leaves the tokens alone.
    std::string text;
    std::vector<TokenId> parts;
    while (text.size() < 200) {
      std::string word;
      for (size_t n = random() % 40; n > 0; --n)
        word += "aahello"[random() % 7];
      word += 'x';
      text += word;
      const auto ids = tokenizer.encode(word, AddedTokens::as_text);
      parts.insert(parts.end(), ids.begin(), ids.end());
    }
    REQUIRE(tokenizer.encode(text, AddedTokens::as_text) == parts);
  }
}

TEST_CASE("Tokenizer: added tokens are cut out leftmost and longest", "[text]") {
  json spec = make_spec();
  hadal_test::add_token(&spec, "<a>");
  hadal_test::add_token(&spec, "<a>b");
  hadal_test::add_token(&spec, "<s>", true);
  const Tokenizer tokenizer = must_load(spec);
  CHECK(pieces(tokenizer, "x<a>bc") == Pieces{"x", "<a>b", "c"});
  CHECK(pieces(tokenizer, "<a><a>") == Pieces{"<a>", "<a>"});
  CHECK(pieces(tokenizer, "<<a>") == Pieces{"<", "<a>"});
  CHECK(pieces(tokenizer, "<a>", AddedTokens::as_text) == Pieces{"<", "a", ">"});
  CHECK(tokenizer.added_token("<s>").has_value());
  CHECK(tokenizer.is_special(*tokenizer.added_token("<s>")));
  CHECK_FALSE(tokenizer.is_special(*tokenizer.added_token("<a>")));
  CHECK_FALSE(tokenizer.added_token("hello").has_value());
  CHECK(tokenizer.vocab_size() == *tokenizer.added_token("<s>") + 1);
  CHECK(tokenizer.bytes(-1).empty());
  CHECK(tokenizer.bytes(tokenizer.vocab_size()).empty());
}

TEST_CASE("Tokenizer: raw added tokens win over normalised ones, and strips swallow space",
          "[text]") {
  json spec = make_spec();
  hadal_test::add_token(&spec, "ab<x>");
  hadal_test::add_token(&spec, "<x>");
  spec["added_tokens"][0]["normalized"] = true;
  spec["added_tokens"][1]["lstrip"] = true;
  spec["added_tokens"][1]["rstrip"] = true;
  const Tokenizer tokenizer = must_load(spec);
  CHECK(pieces(tokenizer, "ab<x>") == Pieces{"a", "b", "<x>"});
  CHECK(pieces(tokenizer, "a \n<x>\xE3\x80\x80 b") == Pieces{"a", "<x>", "b"});
}

TEST_CASE("Tokenizer: request data never becomes an added token", "[text]") {
  json spec = make_spec();
  hadal_test::add_token(&spec, "<a>");
  const Tokenizer tokenizer = must_load(spec);
  const TokenId added = *tokenizer.added_token("<a>");
  const auto has_added = [&](const PromptText& prompt) {
    const auto ids = tokenizer.encode(prompt);
    return std::count(ids.begin(), ids.end(), added);
  };
  CHECK(has_added({"<a>x<a>", {}}) == 2);
  CHECK(has_added({"<a>x<a>", {{3, 7}}}) == 1);
  CHECK(has_added({"<a>x<a>", {{0, 7}}}) == 0);
  for (int64_t byte = 0; byte < 3; ++byte)
    CHECK(has_added({"<a>", {{byte, byte + 1}}}) == 0);
  CHECK(has_added({"<a>", {{1, 1}}}) == 1);
  CHECK(has_added({"<<a>", {{0, 1}}}) == 1);
  // Ill-formed bytes grow to three; the ranges must follow.
  CHECK(has_added({"\xFF\xFF<a>", {{2, 5}}}) == 0);
  CHECK(has_added({"\xFF\xFF<a>", {{0, 2}}}) == 1);
  const PromptText all{"<a>hello<a>", {{0, 11}}};
  CHECK(tokenizer.encode(all) == tokenizer.encode(all.text, AddedTokens::as_text));
}

TEST_CASE("Tokenizer: ill-formed bytes encode as U+FFFD", "[text]") {
  const Tokenizer tokenizer = must_load(make_spec());
  const auto mode = AddedTokens::parse;
  CHECK(tokenizer.encode("a\xFFz", mode) == tokenizer.encode("a\xEF\xBF\xBDz", mode));
  CHECK(tokenizer.encode("\xED\xA0\x80", mode).size() == 9);
}

TEST_CASE("Tokenizer: a mebibyte of any one class takes linear time", "[text]") {
  json spec = make_spec();
  hadal_test::set_deepseek_split(&spec);
  const Tokenizer tokenizer = must_load(spec);
  for (const std::string unit : {"a",
                                 "7",
                                 " ",
                                 "\n",
                                 "\r",
                                 "\t",
                                 "\xF0\x9F\x98\x80",
                                 "\xE5\xAD\x97",
                                 "!",
                                 "\xCC\x81",
                                 "\xE2\x80\x8D",
                                 "\xFF",
                                 "<",
                                 " \n",
                                 "a ",
                                 "\xE0\xB8\x81"}) {
    std::string text;
    while (text.size() < kLongBytes)
      text += unit;
    for (const std::string tail : {"z", " "}) {
      const double start = cpu_seconds();
      const auto ids = tokenizer.encode(text + tail, AddedTokens::parse);
      const double seconds = cpu_seconds() - start;
      INFO("unit of " << unit.size() << " bytes, first " << int{unit[0]});
      CHECK(seconds < 10.0);  // quadratic time would be minutes
      TokenDecoder decoder(tokenizer);
      std::string decoded;
      for (const TokenId id : ids)
        decoded += decoder.push(id);
      decoded += decoder.flush();
      if (unit != "\xFF")
        REQUIRE(decoded == text + tail);
    }
  }
}

TEST_CASE("Tokenizer: what is not supported is refused by name", "[text]") {
  const auto refused = [](const std::function<void(json*)>& change, const std::string& field) {
    json spec = make_spec();
    change(&spec);
    const std::string message = error_of(spec);
    INFO(message);
    CHECK(message.find(field) != std::string::npos);
  };
  refused([](json* s) { (*s)["model"]["type"] = "Unigram"; }, "model.type");
  refused([](json* s) { (*s)["model"]["byte_fallback"] = true; }, "model.byte_fallback");
  refused([](json* s) { (*s)["model"]["unk_token"] = "<unk>"; }, "model.unk_token");
  refused([](json* s) { (*s)["model"]["dropout"] = 0.1; }, "model.dropout");
  refused([](json* s) { (*s)["model"].erase("vocab"); }, "model.vocab");
  refused([](json* s) { (*s)["model"]["vocab"]["zz"] = -1; }, "model.vocab.zz");
  refused([](json* s) { (*s)["model"]["vocab"]["zz"] = 1.5; }, "model.vocab.zz");
  refused([](json* s) { (*s)["model"]["vocab"]["zz"] = 5; }, "used twice");
  refused([](json* s) { (*s)["model"]["merges"].push_back("a b c"); }, "model.merges[");
  refused([](json* s) { (*s)["model"]["merges"].push_back("q zz"); }, "model.merges[");
  refused([](json* s) { (*s)["normalizer"] = {{"type", "NFC"}}; }, "normalizer.type");
  refused([](json* s) { (*s)["pre_tokenizer"] = {{"type", "Metaspace"}}; }, "Metaspace");
  refused([](json* s) { (*s)["pre_tokenizer"] = nullptr; }, "pre_tokenizer");
  refused([](json* s) { (*s)["pre_tokenizer"]["add_prefix_space"] = true; }, "add_prefix_space");
  refused([](json* s) { (*s)["decoder"] = {{"type", "WordPiece"}}; }, "decoder.type");
  refused(
      [](json* s) {
        hadal_test::add_token(s, "<a>");
        (*s)["added_tokens"][0]["single_word"] = true;
      },
      "added_tokens[0].single_word");
  refused(
      [](json* s) {
        hadal_test::add_token(s, "<a>");
        (*s)["added_tokens"][0]["id"] = 65;
      },
      "already names another");
  for (const std::string pattern : {"\\b",
                                    "^a",
                                    "[a[b]]",
                                    "a{2}+",
                                    "\\w+",
                                    "(?<n>a)",
                                    "\\p{Nope}",
                                    "(a",
                                    "a)",
                                    "[z-a]",
                                    "*",
                                    "\\x41",
                                    "[\\p{L}-z]",
                                    "(?i:ss)",
                                    "(?i:a\\p{L})",
                                    "(?i:é)"}) {
    refused([&](json* s) { hadal_test::set_split(s, pattern); }, "pattern.Regex");
  }
}

TEST_CASE("Tokenizer: damaged and hostile tokenizer.json is an error", "[text]") {
  CHECK_FALSE(Tokenizer::from_tokenizer_json(""));
  CHECK_FALSE(Tokenizer::from_tokenizer_json("null"));
  CHECK_FALSE(Tokenizer::from_tokenizer_json("{}"));
  CHECK_FALSE(Tokenizer::from_tokenizer_json(std::string(100'000, '[')));
  CHECK_FALSE(Tokenizer::from_tokenizer_json("{\"a\":\"\xFF\"}"));
  const std::string good = make_spec().dump();
  std::mt19937 random(3);
  for (int round = 0; round < 400; ++round) {
    std::string text = good;
    for (size_t n = 1 + random() % 4; n > 0; --n)
      text[random() % text.size()] = static_cast<char>(random() % 256);
    if (round % 3 == 0)
      text.resize(random() % text.size());
    if (const auto tokenizer = Tokenizer::from_tokenizer_json(text))
      static_cast<void>(tokenizer.value().encode("hello \xF0\x9F\x98\x80 12", AddedTokens::parse));
  }
}
