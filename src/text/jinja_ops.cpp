// Truth, comparison and lookup as Python does them, bounded: recursion over values has a depth
// limit, and work on bytes or items is paid for before it is done.
#include <algorithm>
#include <cstring>

#include "jinja_unicode.h"
#include "jinja_value.h"

namespace hadal::jinja {

namespace {

bool too_deep(Heap& heap, int32_t depth) {
  if (depth <= kValueDepthMax)
    return !heap.charge(1);
  heap.fail("a value nested deeper than " + std::to_string(kValueDepthMax) + " levels");
  return true;
}

bool equal_dicts(Heap& heap, const Dict& a, const Dict& b, int32_t depth) {
  if (a.items.size() != b.items.size())
    return false;
  for (const auto& [key, value] : a.items) {
    const Value* other = nullptr;
    if (key.is_string()) {
      if (b.index.empty())
        heap.charge(static_cast<int64_t>(b.items.size()));
      other = b.find(key.text());
    } else {
      for (const auto& [k, v] : b.items) {
        if (equal(heap, k, key, depth + 1))
          other = &v;
      }
    }
    if (other == nullptr || heap.failed() || !equal(heap, value, *other, depth + 1))
      return false;
  }
  return true;
}

std::string quoted(std::string_view text) {
  return "'" + std::string(text.substr(0, 200)) + "'";
}

Value missing(Heap& heap, const Value& object, std::string_view name) {
  return heap.undefined("'" + std::string(type_name(object)) + " object' has no attribute " +
                        quoted(name));
}

struct NamedMethod {
  std::string_view name;
  MethodId id;
};

constexpr NamedMethod kStringMethods[] = {
    {"split", MethodId::str_split},
    {"rsplit", MethodId::str_rsplit},
    {"strip", MethodId::str_strip},
    {"lstrip", MethodId::str_lstrip},
    {"rstrip", MethodId::str_rstrip},
    {"startswith", MethodId::str_startswith},
    {"endswith", MethodId::str_endswith},
    {"replace", MethodId::str_replace},
    {"upper", MethodId::str_upper},
    {"lower", MethodId::str_lower},
    {"title", MethodId::str_title},
    {"capitalize", MethodId::str_capitalize},
    {"find", MethodId::str_find},
    {"rfind", MethodId::str_rfind},
    {"index", MethodId::str_index},
    {"count", MethodId::str_count},
    {"join", MethodId::str_join},
    {"splitlines", MethodId::str_splitlines},
    {"removeprefix", MethodId::str_removeprefix},
    {"removesuffix", MethodId::str_removesuffix},
    {"isdigit", MethodId::str_isdigit},
    {"isalpha", MethodId::str_isalpha},
    {"isalnum", MethodId::str_isalnum},
    {"isspace", MethodId::str_isspace},
    {"zfill", MethodId::str_zfill},
};

constexpr std::string_view kUnsupportedStringMethods[] = {
    "format",     "format_map",   "encode",      "center",   "ljust",     "rjust",
    "partition",  "rpartition",   "swapcase",    "casefold", "translate", "maketrans",
    "expandtabs", "rindex",       "isupper",     "islower",  "istitle",   "isnumeric",
    "isdecimal",  "isidentifier", "isprintable", "isascii",
};

constexpr NamedMethod kDictMethods[] = {
    {"items", MethodId::dict_items},
    {"keys", MethodId::dict_keys},
    {"values", MethodId::dict_values},
    {"get", MethodId::dict_get},
};

constexpr std::string_view kListMutators[] = {
    "append", "extend", "insert", "pop", "remove", "reverse", "sort", "clear"};

Value string_method(Heap& heap, const Value& object, std::string_view name) {
  for (const NamedMethod& method : kStringMethods) {
    if (method.name == name)
      return heap.new_method(method.id, object);
  }
  for (const std::string_view unsupported : kUnsupportedStringMethods) {
    if (unsupported == name)
      return heap.fail("the string method " + quoted(name) + " is not supported");
  }
  return missing(heap, object, name);
}

Value list_method(Heap& heap, const Value& object, std::string_view name) {
  if (name == "index")
    return heap.new_method(MethodId::list_index, object);
  if (name == "count")
    return heap.new_method(MethodId::list_count, object);
  for (const std::string_view mutator : kListMutators) {
    if (mutator == name)
      return heap.fail("list." + std::string(name) + " is not allowed: values are immutable");
  }
  return missing(heap, object, name);
}

Value dict_method(Heap& heap, const Value& object, std::string_view name) {
  for (const NamedMethod& method : kDictMethods) {
    if (method.name == name)
      return heap.new_method(method.id, object);
  }
  return {};
}

Value loop_attribute(Heap& heap, const Value& object, std::string_view name) {
  const Loop& loop = *object.loop;
  const auto length = static_cast<int64_t>(loop.items->items.size());
  const int64_t index = loop.index0;
  if (name == "index")
    return Value::of(index + 1);
  if (name == "index0")
    return Value::of(index);
  if (name == "revindex")
    return Value::of(length - index);
  if (name == "revindex0")
    return Value::of(length - index - 1);
  if (name == "first")
    return Value::of(index == 0);
  if (name == "last")
    return Value::of(index == length - 1);
  if (name == "length")
    return Value::of(length);
  if (name == "depth" || name == "depth0")  // above one only in recursive loops
    return Value::of(int64_t{name == "depth" ? 1 : 0});
  if (name == "previtem")
    return index > 0 ? loop.items->items[static_cast<size_t>(index - 1)]
                     : heap.undefined("there is no previous item");
  if (name == "nextitem")
    return index + 1 < length ? loop.items->items[static_cast<size_t>(index + 1)]
                              : heap.undefined("there is no next item");
  if (name == "cycle")
    return heap.new_method(MethodId::loop_cycle, object);
  if (name == "changed")
    return heap.new_method(MethodId::loop_changed, object);
  return missing(heap, object, name);
}

const Value* dict_lookup(Heap& heap, const Dict& dict, const Value& key) {
  if (dict.index.empty())
    heap.charge(static_cast<int64_t>(dict.items.size()) / 4);
  if (key.is_string())
    return dict.find(key.text());
  for (const auto& [k, v] : dict.items) {
    if (!k.is_string() && equal(heap, k, key))
      return &v;
  }
  return nullptr;
}

}  // namespace

const char* type_name(const Value& value) {
  constexpr const char* kNames[] = {"Undefined",
                                    "None",
                                    "bool",
                                    "int",
                                    "float",
                                    "str",
                                    "list",
                                    "tuple",
                                    "generator",
                                    "dict",
                                    "namespace",
                                    "macro",
                                    "function",
                                    "method",
                                    "loop"};
  return kNames[static_cast<size_t>(value.kind)];
}

bool truthy(const Value& value) {
  switch (value.kind) {
    case Kind::undefined:
    case Kind::none:
      return false;
    case Kind::boolean:
      return value.boolean;
    case Kind::integer:
      return value.integer != 0;
    case Kind::real:
      return value.real != 0;
    case Kind::string:
      return value.begin != value.end;
    case Kind::list:
    case Kind::tuple:
      return !value.list->items.empty();
    case Kind::dict:
      return !value.dict->items.empty();
    default:
      return true;
  }
}

bool equal(Heap& heap, const Value& a, const Value& b, int32_t depth) {
  if (too_deep(heap, depth))
    return false;
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral())
      return a.as_integer() == b.as_integer();
    return a.as_real() == b.as_real();
  }
  if (a.kind != b.kind)
    return false;
  switch (a.kind) {
    case Kind::undefined:
    case Kind::none:
      return true;
    case Kind::string:
      if (a.end - a.begin != b.end - b.begin)
        return false;
      heap.charge_bytes(a.end - a.begin);
      return a.text() == b.text();
    case Kind::list:
    case Kind::tuple:
      if (a.list->items.size() != b.list->items.size())
        return false;
      for (size_t i = 0; i < a.list->items.size(); ++i) {
        if (!equal(heap, a.list->items[i], b.list->items[i], depth + 1))
          return false;
      }
      return true;
    case Kind::dict:
      return equal_dicts(heap, *a.dict, *b.dict, depth);
    case Kind::function:
      return a.function == b.function;
    default:
      return a.list == b.list;  // identity
  }
}

int compare(Heap& heap, const Value& a, const Value& b, int32_t depth) {
  if (too_deep(heap, depth))
    return 0;
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral())
      return a.as_integer() < b.as_integer() ? -1 : a.as_integer() > b.as_integer();
    return a.as_real() < b.as_real() ? -1 : a.as_real() > b.as_real();
  }
  if (a.is_string() && b.is_string()) {
    heap.charge_bytes(std::min(a.end - a.begin, b.end - b.begin));
    const int order = a.text().compare(b.text());  // UTF-8 orders as code points do
    return order < 0 ? -1 : order > 0;
  }
  if (a.is_sequence() && a.kind == b.kind) {
    const size_t count = std::min(a.list->items.size(), b.list->items.size());
    for (size_t i = 0; i < count && !heap.failed(); ++i) {
      if (!equal(heap, a.list->items[i], b.list->items[i], depth + 1))
        return compare(heap, a.list->items[i], b.list->items[i], depth + 1);
    }
    return a.list->items.size() < b.list->items.size()
               ? -1
               : a.list->items.size() > b.list->items.size();
  }
  const Value* undefined = a.is_undefined() ? &a : b.is_undefined() ? &b : nullptr;
  if (undefined && undefined->info)
    heap.fail(undefined->info->message);
  else
    heap.fail(std::string("cannot order ") + type_name(a) + " and " + type_name(b));
  return 0;
}

bool contains(Heap& heap, const Value& container, const Value& item) {
  switch (container.kind) {
    case Kind::undefined:
      return false;
    case Kind::string:
      if (!item.is_string()) {
        heap.fail(std::string("'in <string>' requires a string, not ") + type_name(item));
        return false;
      }
      heap.charge_bytes(container.end - container.begin);
      return item.begin == item.end || ::memmem(container.text().data(),
                                                container.text().size(),
                                                item.text().data(),
                                                item.text().size()) != nullptr;
    case Kind::list:
    case Kind::tuple:
    case Kind::generator:
      for (const Value& member : container.list->items) {
        if (equal(heap, member, item))
          return true;
      }
      return false;
    case Kind::dict:
      return dict_lookup(heap, *container.dict, item) != nullptr;
    default:
      heap.fail(std::string("'in': a ") + type_name(container) + " is not iterable");
      return false;
  }
}

bool iterate(Heap& heap, const Value& value, std::vector<Value>& items) {
  switch (value.kind) {
    case Kind::undefined:
      return true;
    case Kind::list:
    case Kind::tuple:
    case Kind::generator:
      if (!heap.charge(static_cast<int64_t>(value.list->items.size()) * 2))
        return false;
      items = value.list->items;
      return true;
    case Kind::dict:
      if (!heap.charge(static_cast<int64_t>(value.dict->items.size()) * 2))
        return false;
      for (const auto& [key, unused] : value.dict->items)
        items.push_back(key);
      return true;
    case Kind::string: {
      if (!heap.charge(static_cast<int64_t>(value.end - value.begin) * 2))
        return false;
      const std::string_view text = value.text();
      for (size_t at = 0; at < text.size();) {
        const size_t bytes = char_bytes(text.substr(at));
        items.push_back(heap.window(value, at, at + bytes));
        at += bytes;
      }
      return true;
    }
    default:
      heap.fail(std::string("a ") + type_name(value) + " is not iterable");
      return false;
  }
}

Value get_attribute(Heap& heap, const Value& object, std::string_view name) {
  switch (object.kind) {
    case Kind::undefined:
      return heap.fail(object.info ? object.info->message : "the value is undefined");
    case Kind::string:
      return string_method(heap, object, name);
    case Kind::list:
    case Kind::tuple:
      return list_method(heap, object, name);
    case Kind::dict: {
      const Value method = dict_method(heap, object, name);
      if (method.is(Kind::method))
        return method;
      const Value* found = object.dict->find(name);
      return found ? *found : missing(heap, object, name);
    }
    case Kind::name_space: {
      const Value* found = object.name_space->find(name);
      return found ? *found : missing(heap, object, name);
    }
    case Kind::loop:
      return loop_attribute(heap, object, name);
    default:
      return missing(heap, object, name);
  }
}

Value get_item(Heap& heap, const Value& object, const Value& key) {
  if (object.is_undefined())
    return get_attribute(heap, object, {});
  if (object.kind == Kind::dict) {
    if (const Value* found = dict_lookup(heap, *object.dict, key))
      return *found;
    if (!key.is_string())
      return heap.undefined("'dict object' has no such element");
    const Value method = dict_method(heap, object, key.text());
    return method.is(Kind::method) ? method : missing(heap, object, key.text());
  }
  if ((object.is_sequence() || object.is_string()) && key.is_integral()) {
    int64_t index = key.as_integer();
    if (object.is_string()) {
      heap.charge_bytes(object.end - object.begin);
      const std::string_view text = object.text();
      if (index < 0)
        index += count_chars(text);
      const size_t at = index < 0 ? text.size() : char_offset(text, index);
      if (at < text.size())
        return heap.window(object, at, at + char_bytes(text.substr(at)));
    } else {
      const auto size = static_cast<int64_t>(object.list->items.size());
      if (index < 0)
        index += size;
      if (index >= 0 && index < size)
        return object.list->items[static_cast<size_t>(index)];
    }
    return heap.undefined("'" + std::string(type_name(object)) + " object' has no element " +
                          std::to_string(key.as_integer()));
  }
  if (key.is_string())
    return get_attribute(heap, object, key.text());
  return heap.undefined("'" + std::string(type_name(object)) + " object' has no such element");
}

Value slice(Heap& heap, const Value& object, const Value bounds[3]) {
  if (object.is_undefined())
    return get_attribute(heap, object, {});
  for (int i = 0; i < 3; ++i) {
    if (!bounds[i].is(Kind::none) && !bounds[i].is_integral())
      return heap.fail("slice indices must be integers or none");
  }
  if (!object.is_sequence() && !object.is_string())
    return heap.fail(std::string("a ") + type_name(object) + " cannot be sliced");
  const std::string_view text = object.is_string() ? object.text() : std::string_view{};
  heap.charge_bytes(static_cast<int64_t>(text.size()));
  const int64_t size =
      object.is_string() ? count_chars(text) : static_cast<int64_t>(object.list->items.size());
  const int64_t step = bounds[2].is(Kind::none) ? 1 : bounds[2].as_integer();
  if (step == 0)
    return heap.fail("slice step cannot be zero");
  const auto clamp = [&](const Value& bound, int64_t missing_value) {
    if (bound.is(Kind::none))
      return missing_value;
    int64_t index = bound.as_integer();
    if (index < 0)
      index = index < -size ? -1 : index + size;
    else if (index > size)
      index = size;
    if (step > 0)
      return index < 0 ? 0 : index;
    return index >= size ? size - 1 : index;
  };
  const int64_t start = clamp(bounds[0], step > 0 ? 0 : size - 1);
  const int64_t stop = clamp(bounds[1], step > 0 ? size : -1);
  if (object.is_string() && step == 1) {
    const size_t begin = char_offset(text, start);
    const size_t end = stop > start ? begin + char_offset(text.substr(begin), stop - start) : begin;
    return heap.window(object, begin, end);
  }
  std::vector<Value> all;
  if (!iterate(heap, object, all))
    return {};
  std::vector<Value> picked;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    picked.push_back(all[static_cast<size_t>(i)]);
    if (__builtin_add_overflow(i, step, &i))
      break;
  }
  if (!object.is_string())
    return heap.new_list(std::move(picked), object.kind, object.list->is_content);
  Buffer* buffer = heap.new_buffer(static_cast<int64_t>(picked.size()) * 4);
  for (const Value& one : picked)
    buffer->append_window(*one.buffer, one.begin, one.end);
  return heap.failed() ? Value{} : heap.from_buffer(buffer);
}

}  // namespace hadal::jinja
