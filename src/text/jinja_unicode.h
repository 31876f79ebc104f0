// Characters of UTF-8 text as Python's str sees them. Bytes that are not UTF-8 count as one
// character each, so that arbitrary input is cut nowhere and never read past its end.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace hadal::jinja {

/// Bytes of the character at the front of `text` (not empty); 1 for a byte that is not UTF-8.
size_t char_bytes(std::string_view text);
/// Its code point; U+FFFD for a byte that is not UTF-8.
uint32_t decode_char(std::string_view text);
void append_utf8(std::string& out, uint32_t code_point);
/// Characters in `text`.
int64_t count_chars(std::string_view text);
/// Byte offset of character `index`, or text.size().
size_t char_offset(std::string_view text, int64_t index);

bool is_space(uint32_t code_point);
bool is_printable(uint32_t code_point);
bool is_alpha(uint32_t code_point);
bool is_alnum(uint32_t code_point);
bool is_digit(uint32_t code_point);
bool is_cased(uint32_t code_point);
/// Line boundaries of str.splitlines().
bool is_line_break(uint32_t code_point);

enum class Case : uint8_t { upper, lower, title };
/// Appends the character's counterpart (up to three characters).
void append_cased(std::string& out, uint32_t code_point, Case to);

/// Whitespace, or any of `chars` if that is not null, taken off.
struct Trimmed {
  size_t begin = 0;
  size_t end = 0;
};

Trimmed trim(std::string_view text, const std::string_view* chars, bool left, bool right);

}  // namespace hadal::jinja
