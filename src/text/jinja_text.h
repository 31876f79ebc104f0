// String operations that keep, for every byte, whether it came from the request.
#pragma once

#include "jinja_unicode.h"
#include "jinja_value.h"

namespace hadal::jinja {

inline constexpr size_t kNotFound = std::string_view::npos;

/// Byte offset of `needle` in `text` at or after `from`; linear time.
size_t find_bytes(std::string_view text, std::string_view needle, size_t from = 0);

/// str.split(separator, max_splits): `separator` null or none means runs of whitespace.
Value split(Heap& heap, const Value& string, const Value* separator, int64_t max_splits);
Value split_right(Heap& heap, const Value& string, const Value* separator, int64_t max_splits);
Value split_lines(Heap& heap, const Value& string, bool keeps_ends);
Value trimmed(Heap& heap, const Value& string, const Value* chars, bool left, bool right);
Value replace(
    Heap& heap, const Value& string, const Value& from, const Value& to, int64_t max_replacements);
/// Joins the items' str(); taint is kept of each.
Value join(Heap& heap, const Value& separator, const std::vector<Value>& items);
Value change_case(Heap& heap, const Value& string, Case to);
Value capitalize(Heap& heap, const Value& string);
/// str.title(); the filter `title` starts words elsewhere.
Value title_words(Heap& heap, const Value& string);
Value title_filter(Heap& heap, const Value& string);
Value reverse_text(Heap& heap, const Value& string);
Value escape_html(Heap& heap, const Value& string);
Value indent(Heap& heap, const Value& string, const Value& prefix, bool first, bool blank);

}  // namespace hadal::jinja
