// UTF-8 as the tokenizers see it: ill-formed bytes become U+FFFD by the rule of Unicode 3.9 ("best
// practice", also Python's errors="replace" and Rust's from_utf8_lossy): one U+FFFD for each
// maximal prefix of a character that could have been well-formed, one for every other stray byte.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hadal {

/// U+FFFD in UTF-8.
inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";

/// One unit of a byte string: a character or an ill-formed stretch of 1 to 3 bytes.
struct Utf8Unit {
  enum class Kind : uint8_t {
    character,   ///< `code_point` is valid
    ill_formed,  ///< stands for one U+FFFD, whatever follows
    unfinished,  ///< the text ends inside a character that may still become valid
  };

  Kind kind = Kind::ill_formed;
  uint8_t length = 1;  ///< bytes used, 1 to 4
  char32_t code_point = 0xFFFD;
};

/// The unit at the start of `text`, which must not be empty.
Utf8Unit next_utf8_unit(std::string_view text);

/// Length of the longest prefix that is well-formed UTF-8.
size_t valid_utf8_prefix(std::string_view text);

/// Copies `text` with U+FFFD for what is ill-formed, an unfinished tail included. `offsets`, if not
/// null, holds ascending byte offsets into `text`, an even count of alternating range begins and
/// ends; they are moved to the copy, and a range that cuts a unit grows to cover its replacement.
std::string replace_ill_formed(std::string_view text, std::vector<int64_t>* offsets = nullptr);

/// Appends `code_point` (a Unicode scalar value) as UTF-8.
void append_utf8(char32_t code_point, std::string* out);

/// Moves everything that is decided from `pending` to the result: characters, and U+FFFD for
/// ill-formed bytes. At most 3 bytes of an unfinished character stay.
std::string take_decided_utf8(std::string* pending);

}  // namespace hadal
