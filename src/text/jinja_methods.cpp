// Methods of strings, dicts, lists and `loop`.
#include <algorithm>

#include "jinja_filters.h"
#include "jinja_text.h"

namespace hadal::jinja {

namespace {

const Value* string_argument(Heap& heap, const CallArgs& args, size_t index, const char* what) {
  const Value* value = args.get(index, {});
  if (value == nullptr || !value->is_string()) {
    heap.fail(std::string(what) + ": expected a string");
    return nullptr;
  }
  return value;
}

/// startswith and endswith take a string or a tuple of strings.
bool has_affix(Heap& heap, const Value& self, const CallArgs& args, bool at_end) {
  const Value* affix = args.get(0, {});
  std::vector<Value> candidates;
  if (affix != nullptr && affix->kind == Kind::tuple)
    candidates = affix->list->items;
  else if (affix != nullptr)
    candidates.push_back(*affix);
  if (candidates.empty() && affix == nullptr)
    heap.fail("startswith, endswith: expected a string");
  for (const Value& candidate : candidates) {
    if (!candidate.is_string()) {
      heap.fail("startswith, endswith: expected a string or a tuple of strings");
      return false;
    }
    heap.charge_bytes(candidate.end - candidate.begin);
    if (at_end ? self.text().ends_with(candidate.text())
               : self.text().starts_with(candidate.text()))
      return true;
  }
  return false;
}

Value find_in(Heap& heap, const Value& self, const CallArgs& args, MethodId id) {
  const Value* needle = string_argument(heap, args, 0, "find");
  if (needle == nullptr)
    return {};
  const std::string_view text = self.text();
  const int64_t start = integer_argument(heap, args.get(1, {}), 0, "find: the start");
  if (args.positional.size() > 2 || start < 0)
    return heap.fail("find: only a start of 0 or more is supported");
  const auto needle_bytes = static_cast<int64_t>(needle->end - needle->begin);
  const bool is_backward = id == MethodId::str_rfind;
  heap.charge_bytes(static_cast<int64_t>(text.size()) *
                    (is_backward ? std::min<int64_t>(needle_bytes + 1, 1 << 20) : 1));
  if (heap.failed())
    return {};
  const int64_t size = count_chars(text);
  const size_t from = char_offset(text, start);
  size_t found = start > size ? kNotFound : find_bytes(text, needle->text(), from);
  if (is_backward && found != kNotFound)
    found = text.rfind(needle->text());
  if (found == kNotFound && id == MethodId::str_index)
    return heap.fail("substring not found");
  return Value::of(found == kNotFound ? int64_t{-1} : count_chars(text.substr(0, found)));
}

Value count_in(Heap& heap, const Value& self, const CallArgs& args) {
  const Value* needle = string_argument(heap, args, 0, "count");
  if (needle == nullptr)
    return {};
  heap.charge_bytes(static_cast<int64_t>(self.end - self.begin));
  if (needle->begin == needle->end)
    return Value::of(count_chars(self.text()) + 1);
  int64_t count = 0;
  for (size_t at = 0; (at = find_bytes(self.text(), needle->text(), at)) != kNotFound; ++count)
    at += needle->text().size();
  return Value::of(count);
}

template <class Test>
Value all_chars(Heap& heap, const Value& self, Test test) {
  const std::string_view text = self.text();
  heap.charge_bytes(static_cast<int64_t>(text.size()));
  for (size_t at = 0; at < text.size(); at += char_bytes(text.substr(at))) {
    if (!test(decode_char(text.substr(at))))
      return Value::of(false);
  }
  return Value::of(!text.empty());
}

Value remove_affix(Heap& heap, const Value& self, const CallArgs& args, bool at_end) {
  const Value* affix = string_argument(heap, args, 0, "removeprefix, removesuffix");
  if (affix == nullptr)
    return {};
  const size_t size = self.text().size();
  const size_t bytes = affix->text().size();
  heap.charge_bytes(static_cast<int64_t>(bytes));
  if (at_end && bytes > 0 && self.text().ends_with(affix->text()))
    return heap.window(self, 0, size - bytes);
  if (!at_end && self.text().starts_with(affix->text()))
    return heap.window(self, bytes, size);
  return self;
}

Value zero_fill(Heap& heap, const Value& self, const CallArgs& args) {
  const int64_t width = integer_argument(heap, args.get(0, {}), 0, "zfill: the width");
  const int64_t missing = width - count_chars(self.text());
  if (missing <= 0 || heap.failed())
    return self;
  if (missing > 10000)
    return heap.fail("zfill: a width of at most 10000");
  const bool has_sign = self.text().starts_with('-') || self.text().starts_with('+');
  const size_t sign = has_sign ? 1 : 0;
  const Value zeros = heap.string(std::string(static_cast<size_t>(missing), '0'), false);
  if (heap.failed())
    return {};
  Buffer* buffer = heap.new_buffer(missing + self.end - self.begin);
  if (heap.failed())
    return {};
  buffer->append_window(*self.buffer, self.begin, self.begin + static_cast<uint32_t>(sign));
  buffer->append_window(*zeros.buffer, zeros.begin, zeros.end);
  buffer->append_window(*self.buffer, self.begin + static_cast<uint32_t>(sign), self.end);
  return heap.from_buffer(buffer);
}

Value call_string_search(Heap& heap, const Method& method, const CallArgs& args) {
  const Value& self = method.self;
  switch (method.id) {
    case MethodId::str_startswith:
      return Value::of(has_affix(heap, self, args, false));
    case MethodId::str_endswith:
      return Value::of(has_affix(heap, self, args, true));
    case MethodId::str_find:
    case MethodId::str_rfind:
    case MethodId::str_index:
      return find_in(heap, self, args, method.id);
    case MethodId::str_count:
      return count_in(heap, self, args);
    case MethodId::str_isdigit:
      return all_chars(heap, self, is_digit);
    case MethodId::str_isalpha:
      return all_chars(heap, self, is_alpha);
    case MethodId::str_isalnum:
      return all_chars(heap, self, is_alnum);
    default:
      return all_chars(heap, self, is_space);
  }
}

Value call_string(Heap& heap, const Method& method, const CallArgs& args) {
  const Value& self = method.self;
  switch (method.id) {
    case MethodId::str_split:
    case MethodId::str_rsplit: {
      const int64_t limit = integer_argument(heap, args.get(1, "maxsplit"), -1, "split: the limit");
      const Value* separator = args.get(0, "sep");
      return method.id == MethodId::str_split ? split(heap, self, separator, limit)
                                              : split_right(heap, self, separator, limit);
    }
    case MethodId::str_strip:
      return trimmed(heap, self, args.get(0, {}), true, true);
    case MethodId::str_lstrip:
      return trimmed(heap, self, args.get(0, {}), true, false);
    case MethodId::str_rstrip:
      return trimmed(heap, self, args.get(0, {}), false, true);
    case MethodId::str_replace: {
      const Value* from = string_argument(heap, args, 0, "replace");
      const Value* to = string_argument(heap, args, 1, "replace");
      const int64_t limit = integer_argument(heap, args.get(2, "count"), -1, "replace: the count");
      return heap.failed() ? Value{} : replace(heap, self, *from, *to, limit);
    }
    case MethodId::str_upper:
      return change_case(heap, self, Case::upper);
    case MethodId::str_lower:
      return change_case(heap, self, Case::lower);
    case MethodId::str_title:
      return title_words(heap, self);
    case MethodId::str_capitalize:
      return capitalize(heap, self);
    case MethodId::str_join: {
      std::vector<Value> items;
      if (args.positional.size() != 1 || !iterate(heap, args.positional[0], items))
        return heap.fail("join: expected one iterable");
      for (const Value& item : items) {
        if (!item.is_string())
          return heap.fail(std::string("join: expected strings, got ") + type_name(item));
      }
      return join(heap, self, items);
    }
    case MethodId::str_splitlines: {
      const Value* keeps = args.get(0, "keepends");
      return split_lines(heap, self, keeps && truthy(*keeps));
    }
    case MethodId::str_removeprefix:
      return remove_affix(heap, self, args, false);
    case MethodId::str_removesuffix:
      return remove_affix(heap, self, args, true);
    case MethodId::str_zfill:
      return zero_fill(heap, self, args);
    default:
      return call_string_search(heap, method, args);
  }
}

Value call_dict(Heap& heap, const Method& method, const CallArgs& args) {
  const Value& self = method.self;
  if (method.id == MethodId::dict_get) {
    if (args.positional.empty() || args.positional.size() > 2)
      return heap.fail("get: expected a key and perhaps a default");
    const Value& key = args.positional[0];
    if (contains(heap, self, key))
      return get_item(heap, self, key);
    return args.positional.size() > 1 ? args.positional[1] : Value::none();
  }
  if (!args.positional.empty())
    return heap.fail("items, keys, values: no arguments expected");
  std::vector<Value> result;
  if (!heap.charge(static_cast<int64_t>(self.dict->items.size()) * 2))
    return {};
  for (const auto& [key, value] : self.dict->items) {
    if (method.id == MethodId::dict_items)
      result.push_back(heap.new_list({key, value}, Kind::tuple, self.dict->is_content));
    else
      result.push_back(method.id == MethodId::dict_keys ? key : value);
    if (heap.failed())
      return {};
  }
  return heap.new_list(std::move(result), Kind::list, self.dict->is_content);
}

Value call_list(Heap& heap, const Method& method, const CallArgs& args) {
  if (args.positional.size() != 1)
    return heap.fail("index, count: expected one argument");
  int64_t count = 0;
  const std::vector<Value>& items = method.self.list->items;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!equal(heap, items[i], args.positional[0]))
      continue;
    if (method.id == MethodId::list_index)
      return Value::of(static_cast<int64_t>(i));
    ++count;
  }
  if (method.id == MethodId::list_index)
    return heap.fail("index: the value is not in the list");
  return Value::of(count);
}

Value call_loop(Heap& heap, const Method& method, const CallArgs& args) {
  Loop& loop = *method.self.loop;
  if (method.id == MethodId::loop_cycle) {
    if (args.positional.empty())
      return heap.fail("cycle: expected at least one value");
    return args.positional[static_cast<size_t>(loop.index0) % args.positional.size()];
  }
  const Value now = heap.new_list(args.positional, Kind::tuple);
  if (heap.failed())
    return {};
  const bool is_changed = !loop.has_last_changed || !equal(heap, loop.last_changed, now);
  loop.has_last_changed = true;
  loop.last_changed = now;
  return Value::of(is_changed);
}

}  // namespace

Value call_method(Heap& heap, const Method& method, const CallArgs& args) {
  if (!heap.charge(2))
    return {};
  for (const auto& [name, value] : args.named) {
    if (name != "maxsplit" && name != "sep" && name != "count" && name != "keepends")
      return heap.fail("no argument named '" + std::string(name.substr(0, 100)) + "'");
  }
  switch (method.id) {
    case MethodId::dict_items:
    case MethodId::dict_keys:
    case MethodId::dict_values:
    case MethodId::dict_get:
      return call_dict(heap, method, args);
    case MethodId::list_index:
    case MethodId::list_count:
      return call_list(heap, method, args);
    case MethodId::loop_cycle:
    case MethodId::loop_changed:
      return call_loop(heap, method, args);
    default:
      return call_string(heap, method, args);
  }
}

}  // namespace hadal::jinja
