// Incremental detokenisation: whole characters only, and in the end what decoding all bytes at once
// would give.
#include <random>
#include <string>
#include <vector>

#include <hadal/text/tokenizer.h>

#include "catch.h"
#include "tokenizer_fixture.h"
#include "utf8.h"

using hadal::TokenDecoder;
using hadal::TokenId;
using hadal::Tokenizer;

namespace {

const std::string kFffd = "\xEF\xBF\xBD";

}  // namespace

TEST_CASE("TokenDecoder: a character leaves with its last byte", "[text]") {
  const Tokenizer tokenizer = hadal_test::must_load(hadal_test::make_spec());
  TokenDecoder decoder(tokenizer);
  CHECK(decoder.push('a') == "a");
  CHECK(decoder.push(0xF0).empty());
  CHECK(decoder.push(0x9F).empty());
  CHECK(decoder.push(0x98).empty());
  CHECK(decoder.push(0x80) == "\xF0\x9F\x98\x80");
  CHECK(decoder.push(0x80) == kFffd);  // cannot start a character
  CHECK(decoder.push(0xE4).empty());
  CHECK(decoder.push('b') == kFffd + "b");
  CHECK(decoder.push(0xE4).empty());
  CHECK(decoder.push(0xBD).empty());
  CHECK(decoder.flush() == kFffd);
  CHECK(decoder.flush().empty());
}

TEST_CASE("TokenDecoder: special tokens are left out unless asked for", "[text]") {
  hadal_test::json spec = hadal_test::make_spec();
  hadal_test::add_token(&spec, "<s>", true);
  hadal_test::add_token(&spec, "<v>", false);
  const Tokenizer tokenizer = hadal_test::must_load(spec);
  const TokenId special = *tokenizer.added_token("<s>");
  const TokenId visible = *tokenizer.added_token("<v>");
  TokenDecoder skipping(tokenizer);
  CHECK(skipping.push(special).empty());
  CHECK(skipping.push(visible) == "<v>");
  CHECK(skipping.push(0xC3).empty());
  CHECK(skipping.push(special).empty());  // the halves around it join
  CHECK(skipping.push(0xA9) == "\xC3\xA9");
  TokenDecoder showing(tokenizer, {.skip_special_tokens = false});
  CHECK(showing.push(special) == "<s>");
  CHECK(showing.push(tokenizer.vocab_size() + 5).empty());
}

TEST_CASE("TokenDecoder: any ids give the text of all bytes at once", "[text]") {
  const Tokenizer tokenizer = hadal_test::must_load(hadal_test::make_spec());
  const std::vector<int> likely = {0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xED, 'a'};
  std::mt19937 random(11);
  for (int round = 0; round < 3000; ++round) {
    TokenDecoder decoder(tokenizer);
    std::string all;
    std::string streamed;
    for (size_t n = random() % 24; n > 0; --n) {
      const TokenId id = random() % 3 == 0 ? static_cast<TokenId>(random() % 262)
                                           : likely[random() % likely.size()];
      all += tokenizer.bytes(id);
      const std::string part = decoder.push(id);
      REQUIRE(hadal::valid_utf8_prefix(part) == part.size());
      streamed += part;
    }
    streamed += decoder.flush();
    REQUIRE(streamed == hadal::replace_ill_formed(all));
  }
}
