// Table-free UTF-8 decoding by the ranges of Unicode table 3-7. The hard thing is the second byte:
// its range depends on the first (E0, ED, F0, F4), which is what decides how many bytes one U+FFFD
// stands for.
#include "utf8.h"

#include <cstring>

namespace hadal {
namespace {

struct Lead {
  uint8_t length = 0;  // 0: cannot start a character
  uint8_t second_min = 0x80;
  uint8_t second_max = 0xBF;
  uint8_t bits = 0;  // payload of the first byte
};

Lead classify_lead(uint8_t byte) {
  if (byte < 0x80)
    return {1, 0, 0, byte};
  if (byte >= 0xC2 && byte <= 0xDF)
    return {2, 0x80, 0xBF, static_cast<uint8_t>(byte & 0x1F)};
  if (byte >= 0xE0 && byte <= 0xEF) {
    const uint8_t low = byte == 0xE0 ? 0xA0 : 0x80;
    const uint8_t high = byte == 0xED ? 0x9F : 0xBF;
    return {3, low, high, static_cast<uint8_t>(byte & 0x0F)};
  }
  if (byte >= 0xF0 && byte <= 0xF4) {
    const uint8_t low = byte == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = byte == 0xF4 ? 0x8F : 0xBF;
    return {4, low, high, static_cast<uint8_t>(byte & 0x07)};
  }
  return {};
}

bool is_ascii_word(const char* bytes) {
  uint64_t word = 0;
  std::memcpy(&word, bytes, sizeof word);
  return (word & 0x8080808080808080ULL) == 0;
}

}  // namespace

Utf8Unit next_utf8_unit(std::string_view text) {
  const Lead lead = classify_lead(static_cast<uint8_t>(text[0]));
  if (lead.length == 0)
    return {Utf8Unit::Kind::ill_formed, 1, 0xFFFD};
  char32_t code_point = lead.bits;
  for (uint8_t i = 1; i < lead.length; ++i) {
    if (i == text.size())
      return {Utf8Unit::Kind::unfinished, i, 0xFFFD};
    const auto byte = static_cast<uint8_t>(text[i]);
    const uint8_t low = i == 1 ? lead.second_min : 0x80;
    const uint8_t high = i == 1 ? lead.second_max : 0xBF;
    if (byte < low || byte > high)
      return {Utf8Unit::Kind::ill_formed, i, 0xFFFD};
    code_point = code_point << 6 | (byte & 0x3FU);
  }
  return {Utf8Unit::Kind::character, lead.length, code_point};
}

size_t valid_utf8_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (at + 8 <= text.size() && is_ascii_word(text.data() + at)) {
      at += 8;
      continue;
    }
    const Utf8Unit unit = next_utf8_unit(text.substr(at));
    if (unit.kind != Utf8Unit::Kind::character)
      break;
    at += unit.length;
  }
  return at;
}

std::string replace_ill_formed(std::string_view text, std::vector<int64_t>* offsets) {
  std::string out;
  out.reserve(text.size() + 16);
  size_t next_offset = 0;
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Unit unit = next_utf8_unit(text.substr(at));
    const size_t begin = out.size();
    if (unit.kind == Utf8Unit::Kind::character)
      out.append(text.substr(at, unit.length));
    else
      out.append(kReplacementUtf8);
    const auto unit_end = static_cast<int64_t>(at + unit.length);
    while (offsets != nullptr && next_offset < offsets->size() &&
           (*offsets)[next_offset] < unit_end) {
      const bool inside = (*offsets)[next_offset] > static_cast<int64_t>(at);
      const bool is_range_end = next_offset % 2 == 1;
      (*offsets)[next_offset++] = static_cast<int64_t>(inside && is_range_end ? out.size() : begin);
    }
    at += unit.length;
  }
  while (offsets != nullptr && next_offset < offsets->size())
    (*offsets)[next_offset++] = static_cast<int64_t>(out.size());
  return out;
}

void append_utf8(char32_t code_point, std::string* out) {
  const auto tail = [&](int shift) {
    out->push_back(static_cast<char>(0x80U | (code_point >> shift & 0x3FU)));
  };
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->push_back(static_cast<char>(0xC0U | code_point >> 6));
    tail(0);
  } else if (code_point < 0x10000) {
    out->push_back(static_cast<char>(0xE0U | code_point >> 12));
    tail(6);
    tail(0);
  } else {
    out->push_back(static_cast<char>(0xF0U | code_point >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

std::string take_decided_utf8(std::string* pending) {
  std::string out;
  size_t at = 0;
  while (at < pending->size()) {
    const Utf8Unit unit = next_utf8_unit(std::string_view(*pending).substr(at));
    if (unit.kind == Utf8Unit::Kind::unfinished)
      break;
    if (unit.kind == Utf8Unit::Kind::character)
      out.append(*pending, at, unit.length);
    else
      out.append(kReplacementUtf8);
    at += unit.length;
  }
  pending->erase(0, at);
  return out;
}

}  // namespace hadal
