// Template text to tokens, with jinja2's whitespace rules as Hugging Face sets them: trim_blocks
// and lstrip_blocks on, the trailing newline dropped.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/base/result.h>

namespace hadal::jinja {

inline constexpr size_t kSourceBytesMax = size_t{4} << 20;

enum class TokenKind : uint8_t {
  data,  ///< literal text; also the inside of raw blocks
  block_begin,
  block_end,
  variable_begin,
  variable_end,
  name,
  string,
  integer,
  real,
  op,
  end,
};

struct Token {
  TokenKind kind = TokenKind::end;
  std::string text;  // data, names, decoded strings, operators
  int64_t integer = 0;
  double real = 0;
  int32_t line = 1;
  int32_t column = 1;  // in bytes
};

/// "chat template, line L, column C: message".
Error syntax_error(int32_t line, int32_t column, const std::string& message);

/// The last token is `end`.
Result<std::vector<Token>> tokenize(std::string_view source);

}  // namespace hadal::jinja
