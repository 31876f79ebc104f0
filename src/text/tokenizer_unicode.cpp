// The table of tokenizer_unicode_table.inc holds ranges sorted by first code point; a bitmap over
// blocks of 256 code points keeps ordinary text from ever searching it.
#include "tokenizer_unicode.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <cstring>

#include "utf8.h"

namespace hadal {
namespace {

struct Substitution {
  char32_t first;
  char32_t last;
  char32_t stand_in;
};

constexpr Substitution kSubstitutions[] = {
#include "tokenizer_unicode_table.inc"
};

using Blocks = std::bitset<0x1100>;

Blocks make_blocks() {
  Blocks blocks;
  for (const Substitution& s : kSubstitutions) {
    for (char32_t block = s.first >> 8; block <= s.last >> 8; ++block)
      blocks.set(block);
  }
  return blocks;
}

/// 0 when `code_point` stays as it is.
char32_t stand_in_for(char32_t code_point) {
  static const Blocks blocks = make_blocks();
  if (!blocks.test(code_point >> 8))
    return 0;
  const auto* found =
      std::upper_bound(std::begin(kSubstitutions),
                       std::end(kSubstitutions),
                       code_point,
                       [](char32_t value, const Substitution& s) { return value < s.first; });
  if (found == std::begin(kSubstitutions) || (found - 1)->last < code_point)
    return 0;
  return (found - 1)->stand_in;
}

}  // namespace

std::string_view shadow_for_matching(std::string_view utf8, std::string* storage) {
  bool is_copied = false;
  size_t at = 0;
  while (at < utf8.size()) {
    if (static_cast<uint8_t>(utf8[at]) < 0xE0) {  // the table starts at U+0897
      ++at;
      continue;
    }
    const Utf8Unit unit = next_utf8_unit(utf8.substr(at));
    if (const char32_t stand_in = stand_in_for(unit.code_point); stand_in != 0) {
      if (!is_copied)
        storage->assign(utf8);
      is_copied = true;
      std::string bytes;
      append_utf8(stand_in, &bytes);
      storage->replace(at, unit.length, bytes);
    }
    at += unit.length;
  }
  return is_copied ? std::string_view(*storage) : utf8;
}

}  // namespace hadal
