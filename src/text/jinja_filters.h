// Filters and tests by name, and the string and dict methods.
#pragma once

#include <optional>
#include <string_view>

#include "jinja_value.h"

namespace hadal::jinja {

enum class FilterId : uint8_t {
  abs,
  attr,
  capitalize,
  count,
  default_value,
  dictsort,
  escape,
  first,
  real,
  indent,
  integer,
  items,
  join,
  last,
  list,
  lower,
  map,
  max,
  min,
  reject,
  rejectattr,
  replace,
  reverse,
  round,
  safe,
  select,
  selectattr,
  sort,
  string,
  sum,
  title,
  tojson,
  trim,
  unique,
  upper,
};

enum class TestId : uint8_t {
  defined,
  undefined,
  none,
  boolean,
  true_value,
  false_value,
  integer,
  real,
  number,
  string,
  mapping,
  sequence,
  iterable,
  callable,
  sameas,
  odd,
  even,
  divisibleby,
  lower,
  upper,
  in,
  eq,
  ne,
  lt,
  le,
  gt,
  ge,
};

std::optional<FilterId> filter_by_name(std::string_view name);
std::optional<TestId> test_by_name(std::string_view name);

Value apply_filter(Heap& heap, FilterId id, const Value& input, const CallArgs& args);
bool apply_test(Heap& heap, TestId id, const Value& input, const CallArgs& args);

/// Parts of apply_filter, in other files.
Value filter_sequence(Heap& heap, FilterId id, const Value& input, const CallArgs& args);
Value filter_number(Heap& heap, FilterId id, const Value& input, const CallArgs& args);

/// str(value) for filters that take any value; an error inside sticks to the heap.
Value text_of(Heap& heap, const Value& value);
/// An integer argument, or `missing` if absent or none; fails for other kinds.
int64_t integer_argument(Heap& heap, const Value* argument, int64_t missing, const char* what);

}  // namespace hadal::jinja
