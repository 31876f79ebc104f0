// A tokenizer.json and a text for it: loading ends in a tokenizer or an error; a tokenizer's ids
// are in range, and decoding them gives well-formed text.
#include <string>

#include <hadal/text/tokenizer.h>

#include "fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto [json, tail] = fuzz::two_parts(fuzz::as_text(data, size));
  const auto tokenizer = hadal::Tokenizer::from_tokenizer_json(json);
  if (!tokenizer)
    return 0;
  const std::string text =
      "don't 12345 \xE5\xAD\x97 <a> \xF0\x9F\x98\x80\n\n  " + std::string(tail);
  hadal::TokenDecoder decoder(tokenizer.value());
  for (const hadal::TokenId id : tokenizer.value().encode(text, hadal::AddedTokens::parse)) {
    fuzz::expect(id >= 0 && id < tokenizer.value().vocab_size(), "an id names a token");
    const std::string part = decoder.push(id);
    const auto last = part.empty() ? uint8_t{0} : static_cast<uint8_t>(part.back());
    fuzz::expect(last < 0xC0, "no character is left unfinished");
  }
  return 0;
}
