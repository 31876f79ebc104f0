// The tests that follow `is`.
#include <cmath>

#include "jinja_filters.h"
#include "jinja_text.h"

namespace hadal::jinja {

namespace {

struct TestEntry {
  std::string_view name;
  TestId id;
  size_t arguments;
};

constexpr TestEntry kTests[] = {
    {"defined", TestId::defined, 0},
    {"undefined", TestId::undefined, 0},
    {"none", TestId::none, 0},
    {"boolean", TestId::boolean, 0},
    {"true", TestId::true_value, 0},
    {"false", TestId::false_value, 0},
    {"integer", TestId::integer, 0},
    {"float", TestId::real, 0},
    {"number", TestId::number, 0},
    {"string", TestId::string, 0},
    {"mapping", TestId::mapping, 0},
    {"sequence", TestId::sequence, 0},
    {"iterable", TestId::iterable, 0},
    {"callable", TestId::callable, 0},
    {"sameas", TestId::sameas, 1},
    {"odd", TestId::odd, 0},
    {"even", TestId::even, 0},
    {"divisibleby", TestId::divisibleby, 1},
    {"lower", TestId::lower, 0},
    {"upper", TestId::upper, 0},
    {"in", TestId::in, 1},
    {"eq", TestId::eq, 1},
    {"==", TestId::eq, 1},
    {"equalto", TestId::eq, 1},
    {"ne", TestId::ne, 1},
    {"!=", TestId::ne, 1},
    {"lt", TestId::lt, 1},
    {"<", TestId::lt, 1},
    {"lessthan", TestId::lt, 1},
    {"le", TestId::le, 1},
    {"<=", TestId::le, 1},
    {"gt", TestId::gt, 1},
    {">", TestId::gt, 1},
    {"greaterthan", TestId::gt, 1},
    {"ge", TestId::ge, 1},
    {">=", TestId::ge, 1},
};

bool is_callable(const Value& value) {
  return value.is(Kind::function) || value.is(Kind::macro) || value.is(Kind::method) ||
         value.is_undefined();
}

bool is_same(const Value& a, const Value& b) {
  if (a.kind != b.kind)
    return false;
  switch (a.kind) {
    case Kind::none:
      return true;
    case Kind::boolean:
      return a.boolean == b.boolean;
    case Kind::integer:
      return a.integer == b.integer;
    case Kind::string:
      return a.buffer == b.buffer && a.begin == b.begin && a.end == b.end;
    case Kind::real:
      return a.real == b.real;
    default:
      return a.list == b.list;
  }
}

bool is_cased_as(Heap& heap, const Value& value, Case to) {
  const Value text = text_of(heap, value);
  if (heap.failed())
    return false;
  const std::string_view all = text.text();
  bool has_cased = false;
  for (size_t at = 0; at < all.size() && !has_cased; at += char_bytes(all.substr(at)))
    has_cased = is_cased(decode_char(all.substr(at)));
  const Value changed = change_case(heap, text, to);
  return has_cased && !heap.failed() && changed.text() == text.text();
}

bool is_remainder(Heap& heap, const Value& value, const Value& divisor, int64_t expected) {
  const Value rest = arithmetic(heap, BinaryOp::mod, value, divisor);
  return !heap.failed() && equal(heap, rest, Value::of(expected));
}

bool is_kind(TestId id, const Value& v) {
  switch (id) {
    case TestId::defined:
      return !v.is_undefined();
    case TestId::undefined:
      return v.is_undefined();
    case TestId::none:
      return v.is(Kind::none);
    case TestId::boolean:
      return v.is(Kind::boolean);
    case TestId::true_value:
      return v.is(Kind::boolean) && v.boolean;
    case TestId::false_value:
      return v.is(Kind::boolean) && !v.boolean;
    case TestId::integer:
      return v.is(Kind::integer);
    case TestId::real:
      return v.is(Kind::real);
    case TestId::number:
      return v.is_number();
    case TestId::string:
      return v.is_string();
    case TestId::mapping:
      return v.is(Kind::dict);
    case TestId::iterable:
      if (v.is(Kind::generator))
        return true;
      [[fallthrough]];
    case TestId::sequence:
      return v.is_string() || v.is_sequence() || v.is(Kind::dict) || v.is_undefined();
    default:
      return is_callable(v);
  }
}

}  // namespace

std::optional<TestId> test_by_name(std::string_view name) {
  for (const TestEntry& entry : kTests) {
    if (entry.name == name)
      return entry.id;
  }
  return std::nullopt;
}

bool apply_test(Heap& heap, TestId id, const Value& input, const CallArgs& args) {
  if (heap.failed())
    return false;
  for (const TestEntry& entry : kTests) {
    if (entry.id != id)
      continue;
    if (args.positional.size() != entry.arguments || !args.named.empty()) {
      heap.fail("the test '" + std::string(entry.name) + "' takes " +
                std::to_string(entry.arguments) + " arguments, got " +
                std::to_string(args.positional.size() + args.named.size()));
      return false;
    }
    break;
  }
  const Value argument = args.positional.empty() ? Value{} : args.positional[0];
  switch (id) {
    case TestId::sameas:
      return is_same(input, argument);
    case TestId::odd:
      return is_remainder(heap, input, Value::of(int64_t{2}), 1);
    case TestId::even:
      return is_remainder(heap, input, Value::of(int64_t{2}), 0);
    case TestId::divisibleby:
      return is_remainder(heap, input, argument, 0);
    case TestId::lower:
      return is_cased_as(heap, input, Case::lower);
    case TestId::upper:
      return is_cased_as(heap, input, Case::upper);
    case TestId::in:
      return contains(heap, argument, input);
    case TestId::eq:
      return equal(heap, input, argument);
    case TestId::ne:
      return !equal(heap, input, argument);
    case TestId::lt:
      return compare(heap, input, argument) < 0;
    case TestId::le:
      return compare(heap, input, argument) <= 0;
    case TestId::gt:
      return compare(heap, input, argument) > 0;
    case TestId::ge:
      return compare(heap, input, argument) >= 0;
    default:
      return is_kind(id, input);
  }
}

}  // namespace hadal::jinja
