// One pass over the source. The hard part is whitespace: what a tag strips depends on its sign, on
// its kind, and on whether only blanks stand between it and the start of its line.
#include "jinja_lexer.h"

#include <charconv>

#include "jinja_unicode.h"

namespace hadal::jinja {

namespace {

std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n')
        ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n')
    out.pop_back();
  return out;
}

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

bool is_decimal(char c) {
  return c >= '0' && c <= '9';
}

int hex_digit(char c) {
  if (is_decimal(c))
    return c - '0';
  if (c >= 'a' && c <= 'f')
    return c - 'a' + 10;
  if (c >= 'A' && c <= 'F')
    return c - 'A' + 10;
  return -1;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  Result<std::vector<Token>> run() {
    while (!failed_ && at_ < source_.size())
      lex_root();
    if (failed_)
      return error_;
    push(TokenKind::end, at_, {});
    return std::move(tokens_);
  }

 private:
  std::string_view rest(size_t at) const { return std::string_view(source_).substr(at); }

  bool starts(size_t at, std::string_view text) const { return rest(at).starts_with(text); }

  char peek(size_t at) const { return at < source_.size() ? source_[at] : '\0'; }

  /// `at` never decreases between calls but for errors, so lines are counted once.
  void locate(size_t at, int32_t& line, int32_t& column) {
    if (at < located_) {
      located_ = line_start_ = 0;
      line_ = 1;
    }
    for (; located_ < at; ++located_) {
      if (source_[located_] == '\n') {
        ++line_;
        line_start_ = located_ + 1;
      }
    }
    line = line_;
    column = static_cast<int32_t>(at - line_start_) + 1;
  }

  void fail(size_t at, const std::string& message) {
    if (failed_)
      return;
    failed_ = true;
    int32_t line = 0;
    int32_t column = 0;
    locate(at, line, column);
    error_ = syntax_error(line, column, message);
  }

  Token& push(TokenKind kind, size_t at, std::string text) {
    Token& token = tokens_.emplace_back();
    token.kind = kind;
    token.text = std::move(text);
    locate(at, token.line, token.column);
    return token;
  }

  size_t skip_space(size_t at) const {
    while (at < source_.size() && is_space(decode_char(rest(at))))
      at += char_bytes(rest(at));
    return at;
  }

  /// Strips the data before a tag as its sign and kind ask, and pushes what is left.
  void push_data(size_t begin, size_t end, char sign, bool is_variable) {
    std::string_view text = std::string_view(source_).substr(begin, end - begin);
    if (sign == '-') {
      text = text.substr(0, trim(text, nullptr, false, true).end);
    } else if (sign != '+' && !is_variable) {
      const size_t newline = text.rfind('\n');
      const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
      const Trimmed kept = trim(text.substr(line), nullptr, true, false);
      if ((line > 0 || at_line_start_) && kept.begin == kept.end)
        text = text.substr(0, line);
    }
    if (!text.empty())
      push(TokenKind::data, begin, std::string(text));
  }

  /// The end of a tag at `at`: past it, and past what it trims. 0 if there is no such end here.
  size_t tag_end(size_t at, std::string_view end, bool trims_newline) const {
    if (peek(at) == '-' && starts(at + 1, end))
      return skip_space(at + 1 + end.size());
    if (trims_newline && peek(at) == '+' && starts(at + 1, end))
      return at + 1 + end.size();
    if (!starts(at, end))
      return 0;
    at += end.size();
    return trims_newline && peek(at) == '\n' ? at + 1 : at;
  }

  void move_to(size_t at) {
    at_ = at;
    at_line_start_ = at > 0 && source_[at - 1] == '\n';
  }

  void lex_root() {
    size_t open = at_;
    for (;; ++open) {
      open = source_.find('{', open);
      if (open == std::string::npos || open + 1 >= source_.size()) {
        push(TokenKind::data, at_, source_.substr(at_));
        at_ = source_.size();
        return;
      }
      const char next = source_[open + 1];
      if (next == '{' || next == '%' || next == '#')
        break;
    }
    const char kind = source_[open + 1];
    size_t inside = open + 2;
    char sign = peek(inside);
    if (sign == '-' || sign == '+')
      ++inside;
    else
      sign = '\0';
    push_data(at_, open, sign, kind == '{');
    if (kind == '#')
      lex_comment(open, inside);
    else if (kind == '{')
      lex_expression(open, inside, TokenKind::variable_begin);
    else if (const size_t raw = raw_begin(inside); raw != 0)
      lex_raw(open, raw);
    else
      lex_expression(open, inside, TokenKind::block_begin);
  }

  void lex_comment(size_t open, size_t inside) {
    const size_t end = source_.find("#}", inside);
    if (end == std::string::npos)
      return fail(open, "missing end of comment tag");
    const char before = source_[end - 1];
    const bool has_sign = (before == '-' || before == '+') && end > inside;
    move_to(tag_end(has_sign ? end - 1 : end, "#}", true));
  }

  /// Past `raw %}` at `at`, or 0.
  size_t raw_begin(size_t at) const {
    at = skip_space(at);
    if (!starts(at, "raw"))
      return 0;
    return tag_end(skip_space(at + 3), "%}", false);
  }

  void lex_raw(size_t open, size_t begin) {
    // The data rule looks at the line start before the raw tag's end, which is never a newline
    // unless the tag trimmed one.
    move_to(begin);
    for (size_t at = source_.find("{%", begin); at != std::string::npos;
         at = source_.find("{%", at + 1)) {
      size_t inside = at + 2;
      char sign = peek(inside);
      if (sign == '-' || sign == '+')
        ++inside;
      else
        sign = '\0';
      inside = skip_space(inside);
      if (!starts(inside, "endraw"))
        continue;
      const size_t end = tag_end(skip_space(inside + 6), "%}", true);
      if (end == 0)
        continue;
      push_data(begin, at, sign, false);
      move_to(end);
      return;
    }
    fail(open, "missing end of raw directive");
  }

  void lex_expression(size_t open, size_t at, TokenKind kind) {
    const bool is_block = kind == TokenKind::block_begin;
    push(kind, open, {});
    std::string balance;
    at_ = at;
    while (!failed_) {
      if (balance.empty()) {
        if (const size_t end = tag_end(at_, is_block ? "%}" : "}}", is_block); end != 0) {
          push(is_block ? TokenKind::block_end : TokenKind::variable_end, at_, {});
          move_to(end);
          return;
        }
      }
      at_ = skip_space(at_);
      if (at_ >= source_.size())
        return fail(open, is_block ? "unclosed '{%'" : "unclosed '{{'");
      if (balance.empty() && tag_end(at_, is_block ? "%}" : "}}", is_block) != 0)
        continue;
      lex_token(balance);
    }
  }

  void lex_token(std::string& balance) {
    const char c = source_[at_];
    if (is_decimal(c))
      lex_number();
    else if (is_name_start(c))
      lex_name();
    else if (c == '\'' || c == '"')
      lex_string();
    else
      lex_operator(balance);
  }

  void lex_name() {
    size_t end = at_;
    while (is_name_start(peek(end)) || is_decimal(peek(end)))
      ++end;
    push(TokenKind::name, at_, source_.substr(at_, end - at_));
    at_ = end;
  }

  void lex_operator(std::string& balance) {
    static constexpr std::string_view kOperators[] = {
        "**", "//", "==", "!=", "<=", ">=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (const std::string_view op : kOperators) {
      if (!starts(at_, op))
        continue;
      if (op == "(" || op == "[" || op == "{") {
        balance += op == "(" ? ')' : op == "[" ? ']' : '}';
      } else if (op == ")" || op == "]" || op == "}") {
        if (balance.empty() || balance.back() != op[0])
          return fail(at_, "unexpected '" + std::string(op) + "'");
        balance.pop_back();
      }
      push(TokenKind::op, at_, std::string(op));
      at_ += op.size();
      return;
    }
    fail(at_, "unexpected character '" + source_.substr(at_, char_bytes(rest(at_))) + "'");
  }

  /// Digits of `base` with single underscores between them, from `at`; appended to `digits`.
  size_t scan_digits(size_t at, int base, std::string& digits) const {
    for (;;) {
      const char c = peek(at);
      const char next = peek(at + 1);
      if (hex_digit(c) >= 0 && hex_digit(c) < base)
        digits += c;
      else if (c != '_' || hex_digit(next) < 0 || hex_digit(next) >= base || digits.empty())
        return at;
      ++at;
    }
  }

  void lex_number() {
    const char second = peek(at_ + 1);
    const int base = source_[at_] != '0'              ? 10
                     : second == 'x' || second == 'X' ? 16
                     : second == 'o' || second == 'O' ? 8
                     : second == 'b' || second == 'B' ? 2
                                                      : 10;
    std::string digits;
    size_t end = base == 10 ? at_ : at_ + 2;
    end = scan_digits(end, base, digits);
    if (base == 10 && (at_ == 0 || source_[at_ - 1] != '.') && lex_real(end, digits))
      return;
    Token& token = push(TokenKind::integer, at_, {});
    const auto parsed =
        std::from_chars(digits.data(), digits.data() + digits.size(), token.integer, base);
    if (digits.empty() || parsed.ec != std::errc{})
      return fail(at_, "a number that is not an integer of 64 bits");
    at_ = end;
  }

  bool lex_real(size_t end, std::string digits) {
    bool is_real = false;
    if (peek(end) == '.' && is_decimal(peek(end + 1))) {
      is_real = true;
      digits += '.';
      std::string fraction;
      end = scan_digits(end + 1, 10, fraction);
      digits += fraction;
    }
    if (peek(end) == 'e' || peek(end) == 'E') {
      const size_t sign = peek(end + 1) == '+' || peek(end + 1) == '-' ? 1 : 0;
      if (is_decimal(peek(end + 1 + sign))) {
        is_real = true;
        digits += 'e';
        if (peek(end + 1) == '-')
          digits += '-';
        std::string exponent;
        end = scan_digits(end + 1 + sign, 10, exponent);
        digits += exponent;
      }
    }
    if (!is_real)
      return false;
    Token& token = push(TokenKind::real, at_, {});
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), token.real);
    if (parsed.ec != std::errc{})
      fail(at_, "a number out of range");
    at_ = end;
    return true;
  }

  void lex_string() {
    const size_t begin = at_;
    const char quote = source_[at_];
    std::string text;
    size_t at = at_ + 1;
    while (at < source_.size() && source_[at] != quote) {
      if (source_[at] == '\\')
        at = unescape(at, text);
      else
        text += source_[at++];
      if (failed_)
        return;
    }
    if (at >= source_.size())
      return fail(begin, "a string that does not end");
    push(TokenKind::string, begin, std::move(text));
    at_ = at + 1;
  }

  /// Python's escapes; an unknown one keeps its backslash.
  size_t unescape(size_t at, std::string& text) {
    static constexpr std::string_view kFrom = "\\'\"abfnrtv";
    static constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
    const char c = peek(at + 1);
    if (at + 1 >= source_.size())
      return at + 1;
    if (const size_t known = kFrom.find(c); known != std::string_view::npos) {
      text += kTo[known];
      return at + 2;
    }
    if (c == '\n')
      return at + 2;
    if (c >= '0' && c <= '7') {
      uint32_t value = 0;
      size_t end = at + 1;
      while (end < at + 4 && peek(end) >= '0' && peek(end) <= '7')
        value = value * 8 + static_cast<uint32_t>(peek(end++) - '0');
      append_utf8(text, value);
      return end;
    }
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (c == 'N') {
      fail(at, "the escape \\N is not supported");
      return at;
    }
    if (digits == 0) {
      text += '\\';
      return at + 1;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < digits; ++i) {
      const int digit = hex_digit(peek(at + 2 + i));
      if (digit < 0) {
        fail(at, "a truncated escape in a string");
        return at;
      }
      value = value * 16 + static_cast<uint64_t>(digit);
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
      fail(at, "an escape that is no character");
      return at;
    }
    append_utf8(text, static_cast<uint32_t>(value));
    return at + 2 + digits;
  }

  std::string source_;
  size_t at_ = 0;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
  bool failed_ = false;
  Error error_;
  size_t located_ = 0;
  size_t line_start_ = 0;
  int32_t line_ = 1;
};

}  // namespace

Error syntax_error(int32_t line, int32_t column, const std::string& message) {
  return Error{ErrorCode::invalid_argument,
               "chat template, line " + std::to_string(line) + ", column " +
                   std::to_string(column) + ": " + message};
}

Result<std::vector<Token>> tokenize(std::string_view source) {
  if (source.size() > kSourceBytesMax)
    return Error{ErrorCode::invalid_argument,
                 "chat template: at most " + std::to_string(kSourceBytesMax) + " bytes, got " +
                     std::to_string(source.size())};
  return Lexer(normalize_newlines(source)).run();
}

}  // namespace hadal::jinja
