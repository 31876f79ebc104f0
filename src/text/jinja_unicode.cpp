// Lookups in the tables that scripts/make_jinja_unicode.py wrote, and UTF-8 stepping.
#include "jinja_unicode.h"

#include <algorithm>
#include <iterator>

#include "jinja_unicode_tables.h"

namespace hadal::jinja {

namespace {

template <size_t N>
bool in_ranges(const CodeRange (&ranges)[N], uint32_t code_point) {
  const auto* it = std::upper_bound(
      std::begin(ranges), std::end(ranges), code_point, [](uint32_t c, const CodeRange& range) {
        return c < range.first;
      });
  return it != std::begin(ranges) && code_point <= std::prev(it)->last;
}

bool is_continuation(std::string_view text, size_t at) {
  return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U;
}

struct Decoded {
  uint32_t code_point;
  size_t bytes;
};

Decoded decode(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[i])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80)
    return {lead, 1};
  if (lead >= 0xC2 && lead < 0xE0 && is_continuation(text, 1))
    return {((lead & 0x1FU) << 6) | (byte(1) & 0x3FU), 2};
  if (lead >= 0xE0 && lead < 0xF0 && is_continuation(text, 1) && is_continuation(text, 2)) {
    const uint32_t c = ((lead & 0x0FU) << 12) | ((byte(1) & 0x3FU) << 6) | (byte(2) & 0x3FU);
    if (c >= 0x800 && (c < 0xD800 || c >= 0xE000))
      return {c, 3};
  }
  if (lead >= 0xF0 && lead < 0xF5 && is_continuation(text, 1) && is_continuation(text, 2) &&
      is_continuation(text, 3)) {
    const uint32_t c = ((lead & 0x07U) << 18) | ((byte(1) & 0x3FU) << 12) |
                       ((byte(2) & 0x3FU) << 6) | (byte(3) & 0x3FU);
    if (c >= 0x10000 && c < 0x110000)
      return {c, 4};
  }
  return {0xFFFD, 1};
}

template <size_t R, size_t S>
void append_mapped(std::string& out,
                   uint32_t code_point,
                   const CaseRun (&runs)[R],
                   const CaseSpecial (&specials)[S]) {
  const auto* special = std::lower_bound(
      std::begin(specials), std::end(specials), code_point, [](const CaseSpecial& s, uint32_t c) {
        return s.from < c;
      });
  if (special != std::end(specials) && special->from == code_point) {
    for (const uint32_t to : special->to) {
      if (to != 0)
        append_utf8(out, to);
    }
    return;
  }
  const auto* run = std::upper_bound(
      std::begin(runs), std::end(runs), code_point, [](uint32_t c, const CaseRun& r) {
        return c < r.first;
      });
  // Runs of stride 2 may enclose others: look a few back.
  for (int back = 0; back < 4 && run != std::begin(runs); ++back) {
    --run;
    if (code_point <= run->last && (code_point - run->first) % run->stride == 0) {
      append_utf8(out, static_cast<uint32_t>(static_cast<int32_t>(code_point) + run->delta));
      return;
    }
  }
  append_utf8(out, code_point);
}

}  // namespace

size_t char_bytes(std::string_view text) {
  return decode(text).bytes;
}

uint32_t decode_char(std::string_view text) {
  return decode(text).code_point;
}

void append_utf8(std::string& out, uint32_t c) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0U | (c >> 6));
    put(0x80U | (c & 0x3FU));
  } else if (c < 0x10000) {
    put(0xE0U | (c >> 12));
    put(0x80U | ((c >> 6) & 0x3FU));
    put(0x80U | (c & 0x3FU));
  } else {
    put(0xF0U | (c >> 18));
    put(0x80U | ((c >> 12) & 0x3FU));
    put(0x80U | ((c >> 6) & 0x3FU));
    put(0x80U | (c & 0x3FU));
  }
}

int64_t count_chars(std::string_view text) {
  int64_t count = 0;
  for (size_t at = 0; at < text.size(); ++count)
    at += char_bytes(text.substr(at));
  return count;
}

size_t char_offset(std::string_view text, int64_t index) {
  size_t at = 0;
  for (; index > 0 && at < text.size(); --index)
    at += char_bytes(text.substr(at));
  return at;
}

bool is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool is_line_break(uint32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

bool is_printable(uint32_t code_point) {
  return !in_ranges(kUnprintable, code_point);
}

bool is_alpha(uint32_t code_point) {
  return in_ranges(kAlpha, code_point);
}

bool is_alnum(uint32_t code_point) {
  return in_ranges(kAlnum, code_point);
}

bool is_digit(uint32_t code_point) {
  return in_ranges(kDigit, code_point);
}

bool is_cased(uint32_t code_point) {
  return in_ranges(kCased, code_point);
}

void append_cased(std::string& out, uint32_t code_point, Case to) {
  switch (to) {
    case Case::upper:
      append_mapped(out, code_point, kUpperRuns, kUpperSpecial);
      return;
    case Case::lower:
      append_mapped(out, code_point, kLowerRuns, kLowerSpecial);
      return;
    case Case::title:
      append_mapped(out, code_point, kTitleRuns, kTitleSpecial);
      return;
  }
}

Trimmed trim(std::string_view text, const std::string_view* chars, bool left, bool right) {
  const auto taken = [&](std::string_view one) {
    return chars ? chars->find(one) != std::string_view::npos : is_space(decode_char(one));
  };
  Trimmed result{0, text.size()};
  while (left && result.begin < result.end) {
    const size_t bytes = char_bytes(text.substr(result.begin));
    if (!taken(text.substr(result.begin, bytes)))
      break;
    result.begin += bytes;
  }
  while (right && result.end > result.begin) {
    size_t start = result.end - 1;
    while (start > result.begin && result.end - start < 4 && is_continuation(text, start))
      --start;
    if (char_bytes(text.substr(start)) != result.end - start)
      start = result.end - 1;
    if (!taken(text.substr(start, result.end - start)))
      break;
    result.end = start;
  }
  return result;
}

}  // namespace hadal::jinja
