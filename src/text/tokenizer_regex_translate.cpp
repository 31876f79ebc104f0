// Oniguruma (Ruby syntax, as Hugging Face compiles it) to PCRE2. Only constructs whose meaning was
// compared in both engines pass; the rest is refused. Differences that matter here: PCRE2's \p{Han}
// means Script_Extensions, `$` and possessive intervals differ, class intersection does not exist.
#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "tokenizer_regex.h"
#include "utf8.h"

namespace hadal {
namespace {

constexpr size_t kPatternBytesMax = 8 << 10;
constexpr size_t kGroupDepthMax = 32;
constexpr int kRepeatMax = 255;

constexpr std::array<std::string_view, 30> kCategories = {
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
    "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cn", "Co", "Cs"};
constexpr std::array<std::string_view, 4> kScripts = {"Han", "Hiragana", "Katakana", "Hangul"};

bool is_ascii_alnum(char32_t c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

/// One element of a class or one atom: a character or a set written with a backslash.
struct Atom {
  std::optional<char32_t> character;
  std::string set;       // PCRE2 text, when not a character
  std::string category;  // set is exactly this general category ("L", "Lu"), not negated
};

struct Group {
  bool is_lookaround = false;
  bool is_caseless = false;
};

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> run();

 private:
  Error refuse(std::string_view what, size_t at) const;

  bool at_end() const { return at_ >= in_.size(); }

  bool next_is(std::string_view text) const { return in_.substr(at_, text.size()) == text; }

  bool take(std::string_view text) {
    const bool is_next = next_is(text);
    at_ += is_next ? text.size() : 0;
    return is_next;
  }

  Status group_open();
  Status group_close();
  Status quantifier();
  Status atom();
  Status check_caseless(const std::vector<Atom>& items, bool is_class, size_t start);
  Status character_class();
  Result<std::vector<Atom>> class_items(bool* is_intersected);
  Status intersected_class(const std::vector<Atom>& items);
  Result<Atom> escape();
  Result<Atom> property(bool is_negated);
  Result<char32_t> hex(size_t digits_max, char closing);
  char32_t take_character();
  void emit_character(char32_t c);
  void emit_items(const std::vector<Atom>& items);

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
  std::vector<Group> groups_;  // open ones
  bool can_repeat_ = false;
  char32_t last_literal_ = 0;  // the atom before, in lower case, inside a caseless group
};

Error Translator::refuse(std::string_view what, size_t at) const {
  return {
      ErrorCode::unsupported,
      "regular expression: unsupported " + std::string(what) + " at byte " + std::to_string(at)};
}

char32_t Translator::take_character() {
  const Utf8Unit unit = next_utf8_unit(in_.substr(at_));
  at_ += unit.length;
  return unit.code_point;
}

void Translator::emit_character(char32_t c) {
  if (c < 0x80 && !is_ascii_alnum(c)) {
    constexpr std::string_view kHex = "0123456789ABCDEF";
    out_ += "\\x{";
    out_ += kHex[c >> 4];
    out_ += kHex[c & 15U];
    out_ += '}';
  } else {
    append_utf8(c, &out_);
  }
}

/// Hexadecimal digits up to `closing` ('\0': exactly `digits_max` digits).
Result<char32_t> Translator::hex(size_t digits_max, char closing) {
  const size_t start = at_;
  char32_t value = 0;
  size_t digits = 0;
  for (; !at_end() && digits < digits_max; ++at_, ++digits) {
    const char c = in_[at_];
    if (c >= '0' && c <= '9')
      value = value * 16 + static_cast<char32_t>(c - '0');
    else if (c >= 'a' && c <= 'f')
      value = value * 16 + static_cast<char32_t>(c - 'a' + 10);
    else if (c >= 'A' && c <= 'F')
      value = value * 16 + static_cast<char32_t>(c - 'A' + 10);
    else
      break;
  }
  const bool is_closed = closing == '\0' ? digits == digits_max : take({&closing, 1});
  if (digits == 0 || !is_closed || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
    return refuse("hexadecimal escape", start);
  return value;
}

Result<Atom> Translator::property(bool is_negated) {
  const size_t start = at_;
  if (!take("{"))
    return refuse("property without braces", start);
  if (take("^"))
    is_negated = !is_negated;
  const size_t close = in_.find('}', at_);
  if (close == std::string_view::npos)
    return refuse("unclosed property", start);
  const std::string name(in_.substr(at_, close - at_));
  at_ = close + 1;
  const std::string opening = is_negated ? "\\P{" : "\\p{";
  for (const std::string_view category : kCategories) {
    if (name == category || name == category.substr(0, 1))
      return Atom{std::nullopt, opening + name + "}", is_negated ? std::string() : name};
  }
  for (const std::string_view script : kScripts) {
    if (name == script)
      return Atom{std::nullopt, opening + "sc:" + name + "}", {}};
  }
  return refuse("property '" + name.substr(0, 32) + "'", start);
}

Result<Atom> Translator::escape() {
  const size_t start = at_;
  ++at_;
  if (at_end())
    return refuse("trailing backslash", start);
  const char32_t c = take_character();
  switch (c) {
    case 'n':
      return Atom{U'\n', {}, {}};
    case 'r':
      return Atom{U'\r', {}, {}};
    case 't':
      return Atom{U'\t', {}, {}};
    case 'f':
      return Atom{U'\f', {}, {}};
    case 'v':  // Oniguruma: the one character; PCRE2: every vertical space
      return Atom{U'\v', {}, {}};
    case 's':
    case 'S':
      return Atom{std::nullopt, c == 's' ? "\\s" : "\\S", {}};
    case 'd':
    case 'D':
      return Atom{std::nullopt, c == 'd' ? "\\p{Nd}" : "\\P{Nd}", c == 'd' ? "Nd" : ""};
    case 'p':
    case 'P':
      return property(c == 'P');
    case 'u':
    case 'x': {
      if (c == 'x' && !take("{"))
        return refuse("escape '\\x' without braces", start);
      Result<char32_t> value = c == 'x' ? hex(6, '}') : hex(4, '\0');
      if (!value)
        return value.error();
      return Atom{value.value(), {}, {}};
    }
    default:
      break;
  }
  if (is_ascii_alnum(c))
    return refuse(std::string("escape '\\") + static_cast<char>(c) + "'", start);
  return Atom{c, {}, {}};
}

void Translator::emit_items(const std::vector<Atom>& items) {
  for (const Atom& item : items) {
    if (item.character)
      emit_character(*item.character);
    else
      out_ += item.set;
  }
}

/// Items up to the closing bracket or `&&`. A range `a-z` comes back as three items, the middle one
/// a bare '-' set.
Result<std::vector<Atom>> Translator::class_items(bool* is_intersected) {
  const size_t start = at_;
  std::vector<Atom> items;
  *is_intersected = false;
  while (!at_end()) {
    if (next_is("]") && !items.empty()) {
      ++at_;
      return items;
    }
    if (take("&&")) {
      *is_intersected = true;
      return items;
    }
    if (next_is("[") || next_is("]"))
      return refuse("unescaped bracket in a class", at_);
    if (next_is("-") && !items.empty() && in_.substr(at_ + 1, 1) != "]") {
      const bool follows_range = items.size() >= 2 && items[items.size() - 2].set == "-";
      if (!items.back().character || follows_range)
        return refuse("'-' after a set or range in a class", at_);
      ++at_;
      items.push_back({std::nullopt, "-", {}});
    }
    const bool is_range_end = !items.empty() && items.back().set == "-";
    if (at_end())
      break;
    Atom item;
    if (next_is("\\")) {
      Result<Atom> escaped = escape();
      if (!escaped)
        return escaped.error();
      item = std::move(escaped).value();
    } else {
      item.character = take_character();
    }
    if (is_range_end && (!item.character || *item.character < *items[items.size() - 2].character))
      return refuse("range in a class", at_);
    items.push_back(std::move(item));
  }
  return refuse("unclosed class", start);
}

/// `[A&&[^B]]` with A made of general categories: everything outside of A's complement and B.
Status Translator::intersected_class(const std::vector<Atom>& items) {
  const size_t start = at_;
  if (!take("[^"))
    return refuse("class intersection other than '&&[^...]'", start);
  bool is_intersected = false;
  Result<std::vector<Atom>> removed = class_items(&is_intersected);
  if (!removed)
    return removed.error();
  if (is_intersected || !take("]"))
    return refuse("class intersection other than '&&[^...]'", start);
  out_ += "[^";
  for (const std::string_view category : kCategories) {
    bool is_kept = false;
    for (const Atom& item : items) {
      if (item.category.empty())
        return refuse("class intersection with other than general categories", start);
      is_kept = is_kept || item.category == category || item.category == category.substr(0, 1);
    }
    if (!is_kept && category != "Cs")  // surrogates are not in well-formed UTF-8
      out_ += "\\p{" + std::string(category) + "}";
  }
  emit_items(removed.value());
  out_ += ']';
  return ok_status();
}

Status Translator::character_class() {
  const bool is_negated = take("[^");
  if (!is_negated)
    ++at_;
  const size_t start = at_;
  bool is_intersected = false;
  Result<std::vector<Atom>> items = class_items(&is_intersected);
  if (!items)
    return items.error();
  if (is_intersected) {
    if (is_negated)
      return refuse("intersection in a negated class", start);
    return intersected_class(items.value());
  }
  HADAL_RETURN_IF_ERROR(check_caseless(items.value(), true, start));
  out_ += is_negated ? "[^" : "[";
  emit_items(items.value());
  out_ += ']';
  return ok_status();
}

Status Translator::group_open() {
  const size_t start = at_;
  if (groups_.size() == kGroupDepthMax)
    return refuse("depth of groups (more than 32)", start);
  ++at_;
  Group group{false, !groups_.empty() && groups_.back().is_caseless};
  if (!take("?")) {
    out_ += "(?:";
    groups_.push_back(group);
    return ok_status();
  }
  for (const std::string_view kind : {":", ">", "i:", "=", "!", "<=", "<!"}) {
    if (take(kind)) {
      out_ += "(?" + std::string(kind);
      group.is_lookaround = kind == "=" || kind == "!" || kind[0] == '<';
      group.is_caseless = group.is_caseless || kind == "i:";
      groups_.push_back(group);
      return ok_status();
    }
  }
  return refuse("group '(?" + std::string(in_.substr(at_, 1)) + "'", start);
}

Status Translator::group_close() {
  if (groups_.empty())
    return refuse("unopened ')'", at_);
  ++at_;
  out_ += ')';
  can_repeat_ = !groups_.back().is_lookaround;
  groups_.pop_back();
  return ok_status();
}

Status Translator::quantifier() {
  const size_t start = at_;
  const char first = in_[at_++];
  if (!can_repeat_)
    return refuse("quantifier without an atom", start);
  can_repeat_ = false;
  out_ += first;
  if (first != '{') {
    if (next_is("?") || next_is("+"))
      out_ += in_[at_++];
    return ok_status();
  }
  std::array<int, 2> bounds = {-1, -1};
  size_t which = 0;
  while (!at_end() && in_[at_] != '}') {
    const char c = in_[at_++];
    if (c == ',' && which == 0 && bounds[0] >= 0) {
      which = 1;
    } else if (c >= '0' && c <= '9' && bounds.at(which) <= kRepeatMax) {
      bounds.at(which) = std::max(bounds.at(which), 0) * 10 + (c - '0');
    } else {
      return refuse("interval", start);
    }
    out_ += c;
  }
  const bool is_reversed = bounds[1] >= 0 && bounds[1] < bounds[0];
  if (!take("}") || bounds[0] < 0 || std::max(bounds[0], bounds[1]) > kRepeatMax || is_reversed)
    return refuse("interval", start);
  out_ += '}';
  if (next_is("?") || next_is("+"))  // Oniguruma reads these as a second quantifier
    return refuse("quantifier after an interval", start);
  return ok_status();
}

/// Case folding differs between the engines for properties and where one character folds to
/// several ("ss" and U+00DF), so a caseless group holds single ASCII characters.
Status Translator::check_caseless(const std::vector<Atom>& items, bool is_class, size_t start) {
  const char32_t before = std::exchange(last_literal_, 0);
  if (groups_.empty() || !groups_.back().is_caseless)
    return ok_status();
  for (const Atom& item : items) {
    const bool is_ascii = item.character ? *item.character < 0x80 : item.set == "-";
    if (!is_ascii)
      return refuse("set or non-ASCII character in a caseless group", start);
  }
  if (is_class)
    return ok_status();
  const char32_t c = *items[0].character;
  last_literal_ = c >= 'A' && c <= 'Z' ? c + 0x20 : c;
  const bool folds =
      (before == 's' && (last_literal_ == 's' || last_literal_ == 't')) ||
      (before == 'f' && (last_literal_ == 'f' || last_literal_ == 'i' || last_literal_ == 'l'));
  if (folds)
    return refuse("letters with a ligature in a caseless group", start);
  return ok_status();
}

Status Translator::atom() {
  const size_t start = at_;
  if (next_is("[")) {
    HADAL_RETURN_IF_ERROR(character_class());
  } else if (next_is("\\")) {
    Result<Atom> escaped = escape();
    if (!escaped)
      return escaped.error();
    HADAL_RETURN_IF_ERROR(check_caseless({escaped.value()}, false, start));
    emit_items({escaped.value()});
  } else if (take(".")) {
    out_ += "[^\\x{0A}]";
    last_literal_ = 0;
  } else {
    const Atom literal{take_character(), {}, {}};
    HADAL_RETURN_IF_ERROR(check_caseless({literal}, false, start));
    emit_items({literal});
  }
  can_repeat_ = true;
  return ok_status();
}

Result<std::string> Translator::run() {
  while (!at_end()) {
    const char c = in_[at_];
    if (c == '(' || c == ')' || c == '|')
      last_literal_ = 0;
    if (c == '(') {
      HADAL_RETURN_IF_ERROR(group_open());
      can_repeat_ = false;
    } else if (c == ')') {
      HADAL_RETURN_IF_ERROR(group_close());
    } else if (c == '|') {
      ++at_;
      out_ += '|';
      can_repeat_ = false;
    } else if (c == '*' || c == '+' || c == '?' || c == '{') {
      HADAL_RETURN_IF_ERROR(quantifier());
    } else if (c == '$') {
      ++at_;
      out_ += "(?=\\x{0A}|\\z)";
      can_repeat_ = false;
    } else if (c == '^') {
      return refuse("anchor '^'", at_);
    } else {
      HADAL_RETURN_IF_ERROR(atom());
    }
  }
  if (!groups_.empty())
    return refuse("unclosed group", at_);
  return std::move(out_);
}

}  // namespace

Result<std::string> translate_oniguruma(std::string_view pattern) {
  if (pattern.size() > kPatternBytesMax) {
    return Error{ErrorCode::unsupported,
                 "regular expression: " + std::to_string(pattern.size()) +
                     " bytes, expected at most " + std::to_string(kPatternBytesMax)};
  }
  if (valid_utf8_prefix(pattern) != pattern.size())
    return Error{ErrorCode::invalid_argument, "regular expression: not UTF-8"};
  // From every space of a run that does not end a line this pattern would read to the run's end:
  // quadratic. A match can only start where the search starts or after a character that is no
  // space, since one that starts later could have started earlier.
  if (pattern == "\\s+$")
    return std::string("(?:\\G|(?<!\\s))\\s+(?=\\x{0A}|\\z)");
  return Translator(pattern).run();
}

}  // namespace hadal
