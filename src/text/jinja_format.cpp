// Values to text: Python's str() and repr(), and json.dumps. Request strings keep their mark; the
// punctuation of a request's own containers is marked too.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "jinja_unicode.h"
#include "jinja_value.h"

namespace hadal::jinja {

namespace {

/// Appends to a buffer and pays for the bytes.
class Writer {
 public:
  explicit Writer(Heap& heap) : heap_(heap), buffer_(heap.new_buffer(0)) {}

  bool put(std::string_view bytes, bool tainted) {
    unpaid_ += static_cast<int64_t>(bytes.size());
    if (unpaid_ >= 256) {
      heap_.charge_bytes(unpaid_);
      unpaid_ = 0;
    }
    if (heap_.failed())
      return false;
    buffer_->append(bytes, tainted);
    return true;
  }

  Value finish() {
    heap_.charge_bytes(unpaid_);
    return heap_.failed() ? Value{} : heap_.from_buffer(buffer_);
  }

 private:
  Heap& heap_;
  Buffer* buffer_;
  int64_t unpaid_ = 0;
};

void append_hex(std::string& out, uint32_t value, int digits) {
  char text[12];
  std::snprintf(text, sizeof text, "%0*x", digits, value);
  out += text;
}

/// Calls escape(out, code point, one) for each character, keeping runs' marks.
template <class Escape>
void put_escaped(Writer& writer, const Value& string, Escape escape) {
  const std::string_view all = string.buffer->view();
  string.buffer->for_each_run(
      string.begin, string.end, [&](uint32_t begin, uint32_t end, bool tainted) {
        std::string out;
        size_t at = begin;
        while (at < end) {
          const size_t bytes = std::min<size_t>(char_bytes(all.substr(at)), end - at);
          escape(out, all.substr(at, bytes));
          at += bytes;
          if (out.size() >= 4096) {
            if (!writer.put(out, tainted))
              return;
            out.clear();
          }
        }
        writer.put(out, tainted);
      });
}

void put_repr_string(Writer& writer, const Value& string, bool tainted) {
  const std::string_view text = string.text();
  const bool double_quoted =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = double_quoted ? '"' : '\'';
  writer.put({&quote, 1}, tainted);
  put_escaped(writer, string, [quote](std::string& out, std::string_view one) {
    const uint32_t c = decode_char(one);
    if (one[0] == quote || one[0] == '\\') {
      out += '\\';
      out += one;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out += one;
    } else if (c < 0x100) {
      out += "\\x";
      append_hex(out, c, 2);
    } else if (c < 0x10000) {
      out += "\\u";
      append_hex(out, c, 4);
    } else {
      out += "\\U";
      append_hex(out, c, 8);
    }
  });
  writer.put({&quote, 1}, tainted);
}

bool put_repr(Heap& heap, Writer& writer, const Value& value, bool tainted, int32_t depth);

bool put_repr_items(Heap& heap, Writer& writer, const Value& value, bool tainted, int32_t depth) {
  if (value.kind == Kind::dict) {
    const bool mark = tainted || value.dict->is_content;
    writer.put("{", mark);
    bool first = true;
    for (const auto& [k, v] : value.dict->items) {
      if (!first)
        writer.put(", ", mark);
      first = false;
      if (!put_repr(heap, writer, k, mark, depth + 1))
        return false;
      writer.put(": ", mark);
      if (!put_repr(heap, writer, v, mark, depth + 1))
        return false;
    }
    return writer.put("}", mark);
  }
  const bool mark = tainted || value.list->is_content;
  const bool is_tuple = value.kind == Kind::tuple;
  writer.put(is_tuple ? "(" : "[", mark);
  bool first = true;
  for (const Value& item : value.list->items) {
    if (!first)
      writer.put(", ", mark);
    first = false;
    if (!put_repr(heap, writer, item, mark, depth + 1))
      return false;
  }
  if (is_tuple && value.list->items.size() == 1)
    writer.put(",", mark);
  return writer.put(is_tuple ? ")" : "]", mark);
}

bool put_repr(Heap& heap, Writer& writer, const Value& value, bool tainted, int32_t depth) {
  if (depth > kValueDepthMax) {
    heap.fail("a value nested deeper than " + std::to_string(kValueDepthMax) + " levels");
    return false;
  }
  if (!heap.charge(1))
    return false;
  switch (value.kind) {
    case Kind::undefined:
      return writer.put(depth == 0 ? "" : "Undefined", tainted);
    case Kind::none:
      return writer.put("None", tainted);
    case Kind::boolean:
      return writer.put(value.boolean ? "True" : "False", tainted);
    case Kind::integer:
      return writer.put(std::to_string(value.integer), tainted);
    case Kind::real:
      return writer.put(format_real(value.real), tainted);
    case Kind::string:
      put_repr_string(writer, value, tainted);
      return !heap.failed();
    case Kind::list:
    case Kind::tuple:
    case Kind::dict:
      return put_repr_items(heap, writer, value, tainted, depth);
    default:
      heap.fail(std::string("cannot print a ") + type_name(value));
      return false;
  }
}

void put_json_string(Writer& writer, const Value& string, const JsonStyle& style, bool tainted) {
  writer.put("\"", tainted);
  put_escaped(writer, string, [&style](std::string& out, std::string_view one) {
    const uint32_t c = decode_char(one);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += one;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\f') {
      out += "\\f";
    } else if (c == '\b') {
      out += "\\b";
    } else if (c < 0x20 || (style.ascii_only && c >= 0x7F && c < 0x10000)) {
      out += "\\u";
      append_hex(out, c, 4);
    } else if (style.ascii_only && c >= 0x10000) {
      out += "\\u";
      append_hex(out, 0xD800 + ((c - 0x10000) >> 10), 4);
      out += "\\u";
      append_hex(out, 0xDC00 + ((c - 0x10000) & 0x3FFU), 4);
    } else {
      out += one;
    }
  });
  writer.put("\"", tainted);
}

std::string json_real(double value) {
  if (std::isnan(value))
    return "NaN";
  if (std::isinf(value))
    return value > 0 ? "Infinity" : "-Infinity";
  return format_real(value);
}

class JsonWriter {
 public:
  JsonWriter(Heap& heap, const JsonStyle& style) : heap_(heap), style_(style), writer_(heap) {}

  bool put(const Value& value, bool tainted, int32_t depth) {
    if (depth > kValueDepthMax) {
      heap_.fail("tojson: a value nested deeper than " + std::to_string(kValueDepthMax) +
                 " levels");
      return false;
    }
    if (!heap_.charge(1))
      return false;
    switch (value.kind) {
      case Kind::none:
        return writer_.put("null", tainted);
      case Kind::boolean:
        return writer_.put(value.boolean ? "true" : "false", tainted);
      case Kind::integer:
        return writer_.put(std::to_string(value.integer), tainted);
      case Kind::real:
        return writer_.put(json_real(value.real), tainted);
      case Kind::string:
        put_json_string(writer_, value, style_, tainted);
        return !heap_.failed();
      case Kind::list:
      case Kind::tuple:
        return put_list(*value.list, tainted || value.list->is_content, depth);
      case Kind::dict:
        return put_dict(*value.dict, tainted || value.dict->is_content, depth);
      default:
        heap_.fail(std::string("tojson: ") + type_name(value) + " is not JSON serializable");
        return false;
    }
  }

  Value finish() { return writer_.finish(); }

 private:
  void new_line(int32_t depth, bool mark) {
    if (style_.indent < 0)
      return;
    writer_.put("\n", mark);
    for (int32_t i = 0; i < depth && !heap_.failed(); ++i)
      writer_.put(style_.indent_text, mark);
  }

  bool put_list(const List& list, bool mark, int32_t depth) {
    if (list.items.empty())
      return writer_.put("[]", mark);
    writer_.put("[", mark);
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0)
        writer_.put(style_.item_separator, mark);
      new_line(depth + 1, mark);
      if (!put(list.items[i], mark, depth + 1))
        return false;
    }
    new_line(depth, mark);
    return writer_.put("]", mark);
  }

  bool put_key(const Value& key, bool mark) {
    switch (key.kind) {
      case Kind::string:
        put_json_string(writer_, key, style_, mark);
        return !heap_.failed();
      case Kind::none:
        return writer_.put("\"null\"", mark);
      case Kind::boolean:
        return writer_.put(key.boolean ? "\"true\"" : "\"false\"", mark);
      case Kind::integer:
        return writer_.put("\"" + std::to_string(key.integer) + "\"", mark);
      case Kind::real:
        return writer_.put("\"" + json_real(key.real) + "\"", mark);
      default:
        heap_.fail(std::string("tojson: a key must be a string, not a ") + type_name(key));
        return false;
    }
  }

  bool put_dict(const Dict& dict, bool mark, int32_t depth) {
    if (dict.items.empty())
      return writer_.put("{}", mark);
    std::vector<std::pair<Value, Value>> sorted;
    if (style_.sorts_keys) {
      heap_.charge(static_cast<int64_t>(dict.items.size()) * 20);
      sorted = dict.items;
      std::stable_sort(sorted.begin(), sorted.end(), [&](const auto& a, const auto& b) {
        return compare(heap_, a.first, b.first) < 0;
      });
    }
    const auto& items = style_.sorts_keys ? sorted : dict.items;
    writer_.put("{", mark);
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0)
        writer_.put(style_.item_separator, mark);
      new_line(depth + 1, mark);
      if (!put_key(items[i].first, mark))
        return false;
      writer_.put(style_.key_separator, mark);
      if (!put(items[i].second, mark, depth + 1))
        return false;
    }
    new_line(depth, mark);
    return writer_.put("}", mark);
  }

  Heap& heap_;
  const JsonStyle& style_;
  Writer writer_;
};

}  // namespace

std::string format_real(double value) {
  if (std::isnan(value))
    return "nan";
  if (std::isinf(value))
    return value > 0 ? "inf" : "-inf";
  if (value == 0)
    return std::signbit(value) ? "-0.0" : "0.0";
  // Python's repr: the shortest digits that read back, with an exponent below 1e-4 and from 1e16.
  char text[64];
  const double size = std::fabs(value);
  const bool scientific = size < 1e-4 || size >= 1e16;
  const auto end =
      std::to_chars(text,
                    text + sizeof text,
                    value,
                    scientific ? std::chars_format::scientific : std::chars_format::fixed);
  std::string result(text, end.ptr);
  if (!scientific && result.find('.') == std::string::npos)
    result += ".0";
  return result;
}

Value to_string(Heap& heap, const Value& value) {
  if (value.is_string())
    return value;
  Writer writer(heap);
  put_repr(heap, writer, value, false, 0);
  return writer.finish();
}

Value to_json(Heap& heap, const Value& value, const JsonStyle& style) {
  JsonWriter writer(heap, style);
  writer.put(value, false, 0);
  return writer.finish();
}

}  // namespace hadal::jinja
