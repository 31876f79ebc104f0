// Arithmetic as Python does it, on 64-bit integers: what does not fit is an error, never a wrap.
#include <cmath>
#include <limits>

#include "jinja_value.h"

namespace hadal::jinja {

namespace {

Value repeat(Heap& heap, const Value& what, int64_t times) {
  if (times < 0)
    times = 0;
  if (what.is_string()) {
    const auto bytes = static_cast<int64_t>(what.end - what.begin);
    if (times > 0 && bytes > std::numeric_limits<int64_t>::max() / 64 / times)
      return heap.fail("a repeated string that is too long");
    Buffer* buffer = heap.new_buffer(bytes * times);
    if (heap.failed())
      return {};
    for (int64_t i = 0; i < times && bytes > 0; ++i)
      buffer->append_window(*what.buffer, what.begin, what.end);
    return heap.from_buffer(buffer);
  }
  const std::vector<Value>& items = what.list->items;
  const auto count = static_cast<int64_t>(items.size());
  if (times > 0 && count > std::numeric_limits<int64_t>::max() / 64 / times)
    return heap.fail("a repeated list that is too long");
  if (!heap.charge(count * times * 2))
    return {};
  std::vector<Value> result;
  result.reserve(static_cast<size_t>(count * times));
  for (int64_t i = 0; i < times && count > 0; ++i)
    result.insert(result.end(), items.begin(), items.end());
  return heap.new_list(std::move(result), what.kind, what.list->is_content);
}

Value overflow(Heap& heap) {
  return heap.fail("an integer beyond 64 bits");
}

Value integer_power(Heap& heap, int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0)
      return heap.fail("0 cannot be raised to a negative power");
    return Value::of(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  if (base == 0 || base == 1)
    return Value::of(exponent == 0 ? int64_t{1} : base);
  if (base == -1)
    return Value::of(exponent % 2 == 0 ? int64_t{1} : int64_t{-1});
  for (int64_t i = 0; i < exponent; ++i) {
    if (__builtin_mul_overflow(result, base, &result))
      return overflow(heap);
  }
  return Value::of(result);
}

Value integer_arithmetic(Heap& heap, BinaryOp op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case BinaryOp::add:
      return __builtin_add_overflow(a, b, &result) ? overflow(heap) : Value::of(result);
    case BinaryOp::sub:
      return __builtin_sub_overflow(a, b, &result) ? overflow(heap) : Value::of(result);
    case BinaryOp::mul:
      return __builtin_mul_overflow(a, b, &result) ? overflow(heap) : Value::of(result);
    case BinaryOp::power:
      return integer_power(heap, a, b);
    case BinaryOp::div:
      if (b == 0)
        return heap.fail("division by zero");
      return Value::of(static_cast<double>(a) / static_cast<double>(b));
    case BinaryOp::floor_div:
    case BinaryOp::mod:
      break;
  }
  if (b == 0)
    return heap.fail("division by zero");
  if (b == -1)
    return op == BinaryOp::mod ? Value::of(int64_t{0})
                               : integer_arithmetic(heap, BinaryOp::sub, 0, a);
  int64_t quotient = a / b;
  int64_t rest = a % b;
  if (rest != 0 && (rest < 0) != (b < 0)) {
    --quotient;
    rest += b;
  }
  return Value::of(op == BinaryOp::mod ? rest : quotient);
}

Value real_arithmetic(Heap& heap, BinaryOp op, double a, double b) {
  const bool divides = op == BinaryOp::div || op == BinaryOp::floor_div || op == BinaryOp::mod;
  if (divides && b == 0)
    return heap.fail("division by zero");
  switch (op) {
    case BinaryOp::add:
      return Value::of(a + b);
    case BinaryOp::sub:
      return Value::of(a - b);
    case BinaryOp::mul:
      return Value::of(a * b);
    case BinaryOp::div:
      return Value::of(a / b);
    case BinaryOp::power:
      if (a < 0 && b != std::floor(b))
        return heap.fail("a negative number raised to a fraction");
      if (std::isfinite(a) && std::isfinite(b) && !std::isfinite(std::pow(a, b)))
        return heap.fail("a power out of range");
      return Value::of(std::pow(a, b));
    default:
      break;
  }
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0))
    rest += b;
  if (op == BinaryOp::mod)
    return Value::of(rest == 0 ? std::copysign(0.0, b) : rest);
  const double quotient = (a - rest) / b;
  const double floored = std::floor(quotient);
  return Value::of(quotient - floored > 0.5 ? floored + 1 : floored);
}

const char* op_text(BinaryOp op) {
  constexpr const char* kNames[] = {"+", "-", "*", "/", "//", "%", "**"};
  return kNames[static_cast<size_t>(op)];
}

}  // namespace

Value arithmetic(Heap& heap, BinaryOp op, const Value& left, const Value& right) {
  if (left.is_integral() && right.is_integral())
    return integer_arithmetic(heap, op, left.as_integer(), right.as_integer());
  if (left.is_number() && right.is_number())
    return real_arithmetic(heap, op, left.as_real(), right.as_real());
  if (op == BinaryOp::add && left.is_string() && right.is_string())
    return heap.concat(left, right);
  if (op == BinaryOp::add && left.is_sequence() && left.kind == right.kind) {
    std::vector<Value> items;
    if (!iterate(heap, left, items) ||
        !heap.charge(static_cast<int64_t>(right.list->items.size()) * 2))
      return {};
    items.insert(items.end(), right.list->items.begin(), right.list->items.end());
    return heap.new_list(
        std::move(items), left.kind, left.list->is_content || right.list->is_content);
  }
  if (op == BinaryOp::mul && (left.is_string() || left.is_sequence()) && right.is_integral())
    return repeat(heap, left, right.as_integer());
  if (op == BinaryOp::mul && (right.is_string() || right.is_sequence()) && left.is_integral())
    return repeat(heap, right, left.as_integer());
  const Value* undefined = left.is_undefined() ? &left : right.is_undefined() ? &right : nullptr;
  if (undefined)
    return heap.fail(undefined->info ? undefined->info->message : "the value is undefined");
  if (op == BinaryOp::mod && left.is_string())
    return heap.fail("formatting with % is not supported");
  return heap.fail(std::string("unsupported operand types for ") + op_text(op) + ": " +
                   type_name(left) + " and " + type_name(right));
}

Value negate(Heap& heap, const Value& value) {
  if (value.is_integral())
    return integer_arithmetic(heap, BinaryOp::sub, 0, value.as_integer());
  if (value.kind == Kind::real)
    return Value::of(-value.real);
  if (value.is_undefined())
    return get_attribute(heap, value, {});
  return heap.fail(std::string("bad operand type for unary -: ") + type_name(value));
}

}  // namespace hadal::jinja
