// Filters over lists and dicts. What jinja2 gives as a generator is one here as far as it shows:
// true even if empty, without length or index; but its items are computed at once.
#include <algorithm>
#include <charconv>
#include <unordered_set>

#include "jinja_filters.h"
#include "jinja_text.h"

namespace hadal::jinja {

namespace {

/// A path "a.b.0" followed from `item`.
Value follow(Heap& heap, Value item, const Value& path) {
  if (path.is_integral())
    return get_item(heap, item, path);
  if (!path.is_string())
    return heap.fail("an attribute must be named by a string or an integer");
  const std::string_view text = path.text();
  for (size_t begin = 0; begin <= text.size() && !heap.failed();) {
    const size_t end = std::min(text.find('.', begin), text.size());
    const std::string_view part = text.substr(begin, end - begin);
    int64_t index = 0;
    const auto parsed = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_number = !part.empty() && part[0] != '-' && parsed.ec == std::errc{} &&
                           parsed.ptr == part.data() + part.size();
    item = get_item(heap, item, is_number ? Value::of(index) : heap.window(path, begin, end));
    begin = end + 1;
  }
  return item;
}

Value with_attribute(Heap& heap, const Value& item, const Value* attribute) {
  return attribute == nullptr || attribute->is(Kind::none) ? item : follow(heap, item, *attribute);
}

/// What sorting and uniqueness look at: text without case unless asked otherwise.
Value key_of(Heap& heap, const Value& item, const Value* attribute, bool is_case_sensitive) {
  const Value value = with_attribute(heap, item, attribute);
  if (is_case_sensitive || !value.is_string() || heap.failed())
    return value;
  return change_case(heap, value, Case::lower);
}

Value map_items(Heap& heap, const std::vector<Value>& items, const CallArgs& args) {
  std::vector<Value> mapped;
  const Value* attribute = args.positional.empty() ? args.find("attribute") : nullptr;
  std::optional<FilterId> filter;
  CallArgs rest;
  if (attribute == nullptr) {
    if (args.positional.empty() || !args.positional[0].is_string())
      return heap.fail("map: expected the name of a filter, or attribute=");
    filter = filter_by_name(args.positional[0].text());
    if (!filter)
      return heap.fail("map: no filter named '" +
                       std::string(args.positional[0].text().substr(0, 100)) + "'");
    rest.positional.assign(args.positional.begin() + 1, args.positional.end());
    rest.named = args.named;
  }
  const Value* fallback = attribute ? args.find("default") : nullptr;
  for (const Value& item : items) {
    if (!heap.charge(2))
      return {};
    Value value = filter ? apply_filter(heap, *filter, item, rest) : follow(heap, item, *attribute);
    if (value.is_undefined() && fallback != nullptr)
      value = *fallback;
    mapped.push_back(value);
  }
  return heap.new_list(std::move(mapped), Kind::generator);
}

Value select_items(Heap& heap,
                   const std::vector<Value>& items,
                   const CallArgs& args,
                   bool by_attribute,
                   bool keeps) {
  const size_t at = by_attribute ? 1 : 0;
  if (args.positional.size() < at)
    return heap.fail("selectattr, rejectattr: expected the name of an attribute");
  std::optional<TestId> test;
  CallArgs rest;
  if (args.positional.size() > at) {
    const Value& name = args.positional[at];
    test = name.is_string() ? test_by_name(name.text()) : std::nullopt;
    if (!test)
      return heap.fail("select, reject: no such test");
    rest.positional.assign(args.positional.begin() + static_cast<ptrdiff_t>(at) + 1,
                           args.positional.end());
  }
  std::vector<Value> kept;
  for (const Value& item : items) {
    if (!heap.charge(2))
      return {};
    const Value value = by_attribute ? follow(heap, item, args.positional[0]) : item;
    if (heap.failed())
      return {};
    if ((test ? apply_test(heap, *test, value, rest) : truthy(value)) == keeps)
      kept.push_back(item);
  }
  return heap.new_list(std::move(kept), Kind::generator);
}

struct Keyed {
  Value key;
  Value item;
};

void sort_keyed(Heap& heap, std::vector<Keyed>& keyed, bool is_reversed) {
  std::stable_sort(keyed.begin(), keyed.end(), [&](const Keyed& a, const Keyed& b) {
    return is_reversed ? compare(heap, b.key, a.key) < 0 : compare(heap, a.key, b.key) < 0;
  });
}

bool flag(const Value* argument) {
  return argument != nullptr && truthy(*argument);
}

Value sort_items(Heap& heap, const std::vector<Value>& items, const CallArgs& args) {
  const Value* attribute = args.get(2, "attribute");
  if (attribute && attribute->is_string() && attribute->text().find(',') != std::string_view::npos)
    return heap.fail("sort: several attributes are not supported");
  std::vector<Keyed> keyed;
  for (const Value& item : items)
    keyed.push_back({key_of(heap, item, attribute, flag(args.get(1, "case_sensitive"))), item});
  if (heap.failed())
    return {};
  sort_keyed(heap, keyed, flag(args.get(0, "reverse")));
  std::vector<Value> sorted;
  for (const Keyed& one : keyed)
    sorted.push_back(one.item);
  return heap.new_list(std::move(sorted));
}

Value dict_pairs(Heap& heap, const Dict& dict, Kind kind = Kind::list) {
  std::vector<Value> pairs;
  for (const auto& [key, value] : dict.items) {
    if (!heap.charge(2))
      return {};
    pairs.push_back(heap.new_list({key, value}, Kind::tuple, dict.is_content));
  }
  return heap.new_list(std::move(pairs), kind, dict.is_content);
}

Value sort_dict(Heap& heap, const Value& input, const CallArgs& args) {
  if (!input.is(Kind::dict))
    return heap.fail(std::string("dictsort: expected a mapping, got ") + type_name(input));
  const Value* by = args.get(1, "by");
  const std::string_view how = by && by->is_string() ? by->text() : "key";
  if (how != "key" && how != "value")
    return heap.fail("dictsort: by must be key or value");
  const Value pairs = dict_pairs(heap, *input.dict);
  if (heap.failed())
    return {};
  std::vector<Keyed> keyed;
  for (const Value& pair : pairs.list->items) {
    const Value& key = pair.list->items[how == "key" ? 0 : 1];
    keyed.push_back({key_of(heap, key, nullptr, flag(args.get(0, "case_sensitive"))), pair});
  }
  if (heap.failed())
    return {};
  sort_keyed(heap, keyed, flag(args.get(2, "reverse")));
  std::vector<Value> sorted;
  for (const Keyed& one : keyed)
    sorted.push_back(one.item);
  return heap.new_list(std::move(sorted), Kind::list, input.dict->is_content);
}

Value unique_items(Heap& heap, const std::vector<Value>& items, const CallArgs& args) {
  const bool is_case_sensitive = flag(args.get(0, "case_sensitive"));
  std::unordered_set<std::string> texts;
  std::vector<Value> others;
  std::vector<Value> kept;
  for (const Value& item : items) {
    const Value key = key_of(heap, item, args.get(1, "attribute"), is_case_sensitive);
    if (heap.failed())
      return {};
    if (key.is_string()) {
      heap.charge_bytes(static_cast<int64_t>(key.end - key.begin) + 64);
      if (texts.emplace(key.text()).second)
        kept.push_back(item);
      continue;
    }
    const bool is_known = std::any_of(
        others.begin(), others.end(), [&](const Value& other) { return equal(heap, other, key); });
    if (!is_known) {
      others.push_back(key);
      kept.push_back(item);
    }
  }
  return heap.new_list(std::move(kept), Kind::generator);
}

Value extreme(Heap& heap, const std::vector<Value>& items, const CallArgs& args, int sign) {
  if (items.empty())
    return heap.undefined("No aggregated item, sequence was empty.");
  const Value* attribute = args.get(1, "attribute");
  const bool is_case_sensitive = flag(args.get(0, "case_sensitive"));
  size_t best = 0;
  Value best_key = key_of(heap, items[0], attribute, is_case_sensitive);
  for (size_t i = 1; i < items.size() && !heap.failed(); ++i) {
    const Value key = key_of(heap, items[i], attribute, is_case_sensitive);
    if (compare(heap, key, best_key) * sign > 0) {
      best = i;
      best_key = key;
    }
  }
  return items[best];
}

Value sum_items(Heap& heap, const std::vector<Value>& items, const CallArgs& args) {
  const Value* start = args.get(1, "start");
  Value total = start ? *start : Value::of(int64_t{0});
  if (total.is_string())
    return heap.fail("sum: strings cannot be summed; use join");
  for (const Value& item : items) {
    if (heap.failed())
      return {};
    const Value value = with_attribute(heap, item, args.get(0, "attribute"));
    total = heap.failed() ? Value{} : arithmetic(heap, BinaryOp::add, total, value);
  }
  return total;
}

Value join_items(Heap& heap, const std::vector<Value>& items, const CallArgs& args) {
  const Value* separator = args.get(0, "d");
  const Value* attribute = args.get(1, "attribute");
  const Value between = separator ? text_of(heap, *separator) : heap.string("", false);
  if (heap.failed())
    return {};
  if (attribute == nullptr || attribute->is(Kind::none))
    return join(heap, between, items);
  std::vector<Value> values;
  for (const Value& item : items)
    values.push_back(follow(heap, item, *attribute));
  return heap.failed() ? Value{} : join(heap, between, values);
}

Value count_items(Heap& heap, const Value& input) {
  switch (input.kind) {
    case Kind::undefined:
      return Value::of(int64_t{0});
    case Kind::string:
      heap.charge_bytes(static_cast<int64_t>(input.end - input.begin));
      return Value::of(count_chars(input.text()));
    case Kind::list:
    case Kind::tuple:
      return Value::of(static_cast<int64_t>(input.list->items.size()));
    case Kind::dict:
      return Value::of(static_cast<int64_t>(input.dict->items.size()));
    default:
      return heap.fail(std::string("a ") + type_name(input) + " has no length");
  }
}

Value reverse_items(Heap& heap, const Value& input, std::vector<Value> items) {
  if (input.is_string())
    return reverse_text(heap, input);
  std::reverse(items.begin(), items.end());
  return heap.new_list(std::move(items), Kind::generator);
}

}  // namespace

Value filter_sequence(Heap& heap, FilterId id, const Value& input, const CallArgs& args) {
  switch (id) {
    case FilterId::count:
      return count_items(heap, input);
    case FilterId::dictsort:
      return sort_dict(heap, input, args);
    case FilterId::items:
      if (input.is_undefined())
        return heap.new_list({}, Kind::generator);
      if (!input.is(Kind::dict))
        return heap.fail(std::string("items: expected a mapping, got ") + type_name(input));
      return dict_pairs(heap, *input.dict, Kind::generator);
    case FilterId::attr: {
      const Value* name = args.get(0, "name");
      if (name == nullptr || !name->is_string())
        return heap.fail("attr: expected the name of an attribute");
      if (input.is(Kind::dict))  // Python's getattr does not look into a dict
        return heap.undefined("a dict has no such attribute");
      return get_attribute(heap, input, name->text());
    }
    default:
      break;
  }
  // jinja2 looks at what is false no further, whatever its kind: `none | map(...)` is empty.
  const bool is_lazy = id == FilterId::map || id == FilterId::select || id == FilterId::reject ||
                       id == FilterId::selectattr || id == FilterId::rejectattr;
  std::vector<Value> items;
  if (!(is_lazy && !truthy(input)) && !iterate(heap, input, items))
    return {};
  switch (id) {
    case FilterId::first:
      return items.empty() ? heap.undefined("No first item, sequence was empty.") : items.front();
    case FilterId::last:
      return items.empty() ? heap.undefined("No last item, sequence was empty.") : items.back();
    case FilterId::list:
      return heap.new_list(
          std::move(items), Kind::list, input.is_sequence() && input.list->is_content);
    case FilterId::reverse:
      return reverse_items(heap, input, std::move(items));
    case FilterId::join:
      return join_items(heap, items, args);
    case FilterId::map:
      return map_items(heap, items, args);
    case FilterId::select:
      return select_items(heap, items, args, false, true);
    case FilterId::reject:
      return select_items(heap, items, args, false, false);
    case FilterId::selectattr:
      return select_items(heap, items, args, true, true);
    case FilterId::rejectattr:
      return select_items(heap, items, args, true, false);
    case FilterId::sort:
      return sort_items(heap, items, args);
    case FilterId::unique:
      return unique_items(heap, items, args);
    case FilterId::min:
      return extreme(heap, items, args, -1);
    case FilterId::max:
      return extreme(heap, items, args, 1);
    default:
      return sum_items(heap, items, args);
  }
}

}  // namespace hadal::jinja
