// Splitting gives windows into the same buffer; everything else builds a new one run by run.
#include "jinja_text.h"

#include <algorithm>
#include <cstring>

namespace hadal::jinja {

namespace {

int64_t bytes_of(const Value& string) {
  return static_cast<int64_t>(string.end - string.begin);
}

void append(Buffer* buffer, const Value& string) {
  buffer->append_window(*string.buffer, string.begin, string.end);
}

Value split_on_space(Heap& heap, const Value& string, int64_t max_splits) {
  const std::string_view text = string.text();
  std::vector<Value> parts;
  size_t at = 0;
  while (at < text.size() && heap.charge(1)) {
    const size_t bytes = char_bytes(text.substr(at));
    if (is_space(decode_char(text.substr(at)))) {
      at += bytes;
      continue;
    }
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) == max_splits) {
      parts.push_back(heap.window(string, at, text.size()));
      break;
    }
    size_t end = at;
    while (end < text.size() && !is_space(decode_char(text.substr(end))))
      end += char_bytes(text.substr(end));
    parts.push_back(heap.window(string, at, end));
    at = end;
  }
  return heap.new_list(std::move(parts));
}

bool check_separator(Heap& heap, const Value& separator) {
  if (!separator.is_string())
    heap.fail(std::string("split: the separator must be a string, not ") + type_name(separator));
  else if (separator.begin == separator.end)
    heap.fail("split: empty separator");
  return !heap.failed();
}

/// Appends each character of `string`, converted, with its own mark.
template <class Convert>
Value convert_chars(Heap& heap, const Value& string, Convert convert) {
  Buffer* buffer = heap.new_buffer(bytes_of(string) + bytes_of(string) / 2);
  if (heap.failed())
    return {};
  const std::string_view all = string.buffer->view();
  string.buffer->for_each_run(
      string.begin, string.end, [&](uint32_t begin, uint32_t end, bool tainted) {
        std::string out;
        for (size_t at = begin; at < end;) {
          const size_t bytes = std::min<size_t>(char_bytes(all.substr(at)), end - at);
          convert(out, all.substr(at, bytes));
          at += bytes;
        }
        if (heap.charge_bytes(static_cast<int64_t>(out.size())))
          buffer->append(out, tainted);
      });
  return heap.failed() ? Value{} : heap.from_buffer(buffer);
}

/// Lower case of capital sigma: final after a letter at a word's end.
bool is_final_sigma(const Value& string, std::string_view one) {
  const std::string_view all = string.text();
  const auto at = static_cast<size_t>(one.data() - all.data());
  size_t before = at;
  if (before == 0)
    return false;
  do {
    --before;
  } while (before > 0 && (static_cast<unsigned char>(all[before]) & 0xC0U) == 0x80U);
  const std::string_view after = all.substr(at + one.size());
  return is_cased(decode_char(all.substr(before))) &&
         (after.empty() || !is_cased(decode_char(after)));
}

void append_lower(std::string& out, const Value& string, std::string_view one) {
  const uint32_t c = decode_char(one);
  if (c == 0x3A3 && is_final_sigma(string, one))
    append_utf8(out, 0x3C2);
  else if (c == 0xFFFD)
    out += one;
  else
    append_cased(out, c, Case::lower);
}

void append_other(std::string& out, std::string_view one, Case to) {
  const uint32_t c = decode_char(one);
  if (c == 0xFFFD)
    out += one;  // perhaps a byte that is not UTF-8
  else
    append_cased(out, c, to);
}

}  // namespace

size_t find_bytes(std::string_view text, std::string_view needle, size_t from) {
  if (from > text.size())
    return kNotFound;
  if (needle.empty())
    return from;
  const void* found =
      ::memmem(text.data() + from, text.size() - from, needle.data(), needle.size());
  return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : kNotFound;
}

Value split(Heap& heap, const Value& string, const Value* separator, int64_t max_splits) {
  if (!heap.charge_bytes(bytes_of(string)))
    return {};
  if (separator == nullptr || separator->is(Kind::none))
    return split_on_space(heap, string, max_splits);
  if (!check_separator(heap, *separator))
    return {};
  const std::string_view text = string.text();
  const std::string_view needle = separator->text();
  std::vector<Value> parts;
  size_t begin = 0;
  while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
    const size_t found = find_bytes(text, needle, begin);
    if (found == kNotFound || !heap.charge(2))
      break;
    parts.push_back(heap.window(string, begin, found));
    begin = found + needle.size();
  }
  parts.push_back(heap.window(string, begin, text.size()));
  return heap.new_list(std::move(parts));
}

Value split_right(Heap& heap, const Value& string, const Value* separator, int64_t max_splits) {
  if (separator == nullptr || separator->is(Kind::none)) {
    if (max_splits < 0)
      return split(heap, string, separator, max_splits);
    return heap.fail("rsplit: a limit without a separator is not supported");
  }
  if (!check_separator(heap, *separator))
    return {};
  const std::string_view text = string.text();
  const std::string_view needle = separator->text();
  // Searching backwards is not linear for a long needle: pay for the worst case.
  if (!heap.charge_bytes(bytes_of(string) * std::min<int64_t>(bytes_of(*separator), 1 << 20)))
    return {};
  std::vector<Value> parts;
  size_t end = text.size();
  while ((max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) &&
         end >= needle.size()) {
    const size_t found = text.rfind(needle, end - needle.size());
    if (found == kNotFound || !heap.charge(2))
      break;
    parts.push_back(heap.window(string, found + needle.size(), end));
    end = found;
  }
  parts.push_back(heap.window(string, 0, end));
  std::reverse(parts.begin(), parts.end());
  return heap.new_list(std::move(parts));
}

Value split_lines(Heap& heap, const Value& string, bool keeps_ends) {
  heap.charge_bytes(bytes_of(string));
  const std::string_view text = string.text();
  std::vector<Value> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = char_bytes(text.substr(at));
    if (!is_line_break(decode_char(text.substr(at)))) {
      at += bytes;
      continue;
    }
    size_t next = at + bytes;
    if (text[at] == '\r' && next < text.size() && text[next] == '\n')
      ++next;
    if (!heap.charge(2))
      return {};
    lines.push_back(heap.window(string, begin, keeps_ends ? next : at));
    at = begin = next;
  }
  if (begin < text.size())
    lines.push_back(heap.window(string, begin, text.size()));
  return heap.new_list(std::move(lines));
}

Value trimmed(Heap& heap, const Value& string, const Value* chars, bool left, bool right) {
  std::string_view set;
  const bool has_set = chars != nullptr && !chars->is(Kind::none);
  if (has_set) {
    if (!chars->is_string())
      return heap.fail("strip: the characters must be a string");
    set = chars->text();
  }
  const Trimmed kept = trim(string.text(), has_set ? &set : nullptr, left, right);
  const auto taken = bytes_of(string) - static_cast<int64_t>(kept.end - kept.begin);
  heap.charge_bytes(taken * static_cast<int64_t>(std::min<size_t>(set.size() + 1, 1 << 20)));
  return heap.window(string, kept.begin, kept.end);
}

Value replace(
    Heap& heap, const Value& string, const Value& from, const Value& to, int64_t max_replacements) {
  if (!from.is_string() || !to.is_string())
    return heap.fail("replace: both arguments must be strings");
  const std::string_view text = string.text();
  Buffer* buffer = heap.new_buffer(bytes_of(string));
  size_t begin = 0;
  size_t from_at = 0;
  for (int64_t done = 0; max_replacements < 0 || done < max_replacements; ++done) {
    const size_t found = find_bytes(text, from.text(), from_at);
    if (found == kNotFound || !heap.charge_bytes(bytes_of(to) + 16))
      break;
    const Value head = heap.window(string, begin, found);
    append(buffer, head);
    append(buffer, to);
    begin = found + from.text().size();
    from_at = begin;
    if (from.begin == from.end) {  // between any two characters
      if (found >= text.size())
        break;
      from_at = found + char_bytes(text.substr(found));
    }
  }
  if (heap.failed())
    return {};
  append(buffer, heap.window(string, std::min(begin, text.size()), text.size()));
  return heap.from_buffer(buffer);
}

Value join(Heap& heap, const Value& separator, const std::vector<Value>& items) {
  Buffer* buffer = heap.new_buffer(0);
  for (size_t i = 0; i < items.size(); ++i) {
    const Value text = to_string(heap, items[i]);
    if (heap.failed() || !heap.charge_bytes(bytes_of(text) + bytes_of(separator)))
      return {};
    if (i > 0)
      append(buffer, separator);
    append(buffer, text);
  }
  return heap.from_buffer(buffer);
}

Value change_case(Heap& heap, const Value& string, Case to) {
  return convert_chars(heap, string, [&](std::string& out, std::string_view one) {
    if (to == Case::lower)
      append_lower(out, string, one);
    else
      append_other(out, one, to);
  });
}

Value capitalize(Heap& heap, const Value& string) {
  bool first = true;
  return convert_chars(heap, string, [&](std::string& out, std::string_view one) {
    if (first)
      append_other(out, one, Case::title);
    else
      append_lower(out, string, one);
    first = false;
  });
}

Value title_words(Heap& heap, const Value& string) {
  bool in_word = false;
  return convert_chars(heap, string, [&](std::string& out, std::string_view one) {
    if (in_word)
      append_lower(out, string, one);
    else
      append_other(out, one, Case::title);
    in_word = is_cased(decode_char(one));
  });
}

Value title_filter(Heap& heap, const Value& string) {
  int64_t place = 0;  // of the character in its word
  return convert_chars(heap, string, [&](std::string& out, std::string_view one) {
    const uint32_t c = decode_char(one);
    const bool separates = c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || is_space(c);
    if (place == 0 && !separates)
      append_other(out, one, Case::upper);
    else if (place == 1)  // jinja2 lowers the rest by itself: it begins here
      append_other(out, one, Case::lower);
    else
      append_lower(out, string, one);
    place = separates ? 0 : place + 1;
  });
}

Value reverse_text(Heap& heap, const Value& string) {
  std::vector<Value> chars;
  if (!iterate(heap, string, chars))
    return {};
  Buffer* buffer = heap.new_buffer(bytes_of(string));
  if (heap.failed())
    return {};
  for (size_t i = chars.size(); i > 0; --i)
    append(buffer, chars[i - 1]);
  return heap.from_buffer(buffer);
}

Value escape_html(Heap& heap, const Value& string) {
  return convert_chars(heap, string, [](std::string& out, std::string_view one) {
    switch (one[0]) {
      case '&':
        out += "&amp;";
        return;
      case '<':
        out += "&lt;";
        return;
      case '>':
        out += "&gt;";
        return;
      case '\'':
        out += "&#39;";
        return;
      case '"':
        out += "&#34;";
        return;
      default:
        out += one;
    }
  });
}

Value indent(Heap& heap, const Value& string, const Value& prefix, bool first, bool blank) {
  // jinja2 appends a newline, splits into lines and indents all but the first.
  const Value padded = heap.concat(string, heap.string("\n", false));
  if (heap.failed())
    return {};
  const Value lines = split_lines(heap, padded, false);
  if (heap.failed())
    return {};
  const Value newline = heap.string("\n", false);
  Buffer* buffer = heap.new_buffer(bytes_of(string));
  for (size_t i = 0; i < lines.list->items.size(); ++i) {
    const Value& line = lines.list->items[i];
    if (!heap.charge_bytes(bytes_of(line) + bytes_of(prefix) + 1))
      return {};
    if (i > 0)
      append(buffer, newline);
    if ((i > 0 && (blank || line.begin != line.end)) || (i == 0 && first))
      append(buffer, prefix);
    append(buffer, line);
  }
  return heap.failed() ? Value{} : heap.from_buffer(buffer);
}

}  // namespace hadal::jinja
