// Filters that make numbers, with Python's rounding and parsing.
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "jinja_filters.h"
#include "jinja_unicode.h"

namespace hadal::jinja {

namespace {

/// `text` without surrounding whitespace and with Python's single underscores taken out.
std::optional<std::string> plain_number(std::string_view text) {
  const Trimmed kept = trim(text, nullptr, true, true);
  text = text.substr(kept.begin, kept.end - kept.begin);
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
      continue;
    }
    const auto alnum = [&](size_t at) {
      return at < text.size() && is_alnum(static_cast<unsigned char>(text[at]));
    };
    if (i == 0 || !alnum(i - 1) || !alnum(i + 1))
      return std::nullopt;
  }
  if (out.empty() || out.size() > 400)
    return std::nullopt;
  return out;
}

std::optional<int64_t> parse_integer(std::string_view text, int base) {
  const std::optional<std::string> plain = plain_number(text);
  if (!plain)
    return std::nullopt;
  std::string_view digits = *plain;
  const bool is_negative = digits.starts_with('-');
  if (is_negative || digits.starts_with('+'))
    digits.remove_prefix(1);
  if (digits.size() > 2 && digits[0] == '0') {
    const char mark = static_cast<char>(digits[1] | 0x20);
    if ((base == 16 && mark == 'x') || (base == 8 && mark == 'o') || (base == 2 && mark == 'b'))
      digits.remove_prefix(2);
  }
  uint64_t value = 0;
  const char* end = digits.data() + digits.size();
  const auto parsed = std::from_chars(digits.data(), end, value, base);
  if (parsed.ec != std::errc{} || parsed.ptr != end || digits.empty() ||
      value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    return std::nullopt;
  return is_negative ? -static_cast<int64_t>(value) : static_cast<int64_t>(value);
}

std::optional<double> parse_real(std::string_view text) {
  const std::optional<std::string> plain = plain_number(text);
  if (!plain)
    return std::nullopt;
  std::string_view digits = *plain;
  const bool has_plus = digits.starts_with('+');
  if (has_plus)
    digits.remove_prefix(1);
  double value = 0;
  const char* end = digits.data() + digits.size();
  const auto parsed = std::from_chars(digits.data(), end, value);
  if (parsed.ptr != end || digits.empty() || (has_plus && digits.starts_with('-')) ||
      digits.find('(') != std::string_view::npos || parsed.ec == std::errc::invalid_argument)
    return std::nullopt;
  return parsed.ec == std::errc::result_out_of_range ? std::strtod(plain->c_str(), nullptr) : value;
}

std::optional<int64_t> truncate(double value) {
  const double whole = std::trunc(value);
  if (!(std::fabs(whole) < 9.2e18))
    return std::nullopt;
  return static_cast<int64_t>(whole);
}

Value to_integer(Heap& heap, const Value& input, const CallArgs& args) {
  const Value* fallback = args.get(0, "default");
  const int64_t base = integer_argument(heap, args.get(1, "base"), 10, "int: the base");
  if (input.is_undefined())
    return get_attribute(heap, input, {});
  if (base < 2 || base > 36)
    return heap.fail("int: a base from 2 to 36");
  std::optional<int64_t> value;
  if (input.is_integral()) {
    value = input.as_integer();
  } else if (input.is(Kind::real)) {
    value = truncate(input.real);
    if (!value && std::isfinite(input.real))
      return heap.fail("an integer beyond 64 bits");
  } else if (input.is_string()) {
    value = parse_integer(input.text(), static_cast<int>(base));
    if (!value) {
      const std::optional<double> real = parse_real(input.text());
      value = real ? truncate(*real) : std::nullopt;
    }
  }
  if (value)
    return Value::of(*value);
  return fallback ? *fallback : Value::of(int64_t{0});
}

Value to_real(Heap& heap, const Value& input, const CallArgs& args) {
  const Value* fallback = args.get(0, "default");
  if (input.is_undefined())
    return get_attribute(heap, input, {});
  if (input.is_number())
    return Value::of(input.as_real());
  if (input.is_string()) {
    if (const std::optional<double> value = parse_real(input.text()))
      return Value::of(*value);
  }
  return fallback ? *fallback : Value::of(0.0);
}

/// Python's round(): to nearest on the exact binary value, ties to even.
double round_to(double value, int64_t precision) {
  if (!std::isfinite(value) || precision > 300)
    return value;
  if (precision < 0) {
    const double unit = std::pow(10.0, static_cast<double>(-precision));
    return std::isfinite(unit) ? std::nearbyint(value / unit) * unit : 0.0;
  }
  char text[700];
  std::snprintf(text, sizeof text, "%.*f", static_cast<int>(precision), value);
  return std::strtod(text, nullptr);
}

Value round_number(Heap& heap, const Value& input, const CallArgs& args) {
  const int64_t precision =
      integer_argument(heap, args.get(0, "precision"), 0, "round: the precision");
  const Value* method = args.get(1, "method");
  const std::string_view how = method && method->is_string() ? method->text() : "common";
  if (input.is_undefined())
    return get_attribute(heap, input, {});
  if (!input.is_number())
    return heap.fail(std::string("round: expected a number, got ") + type_name(input));
  if (how == "common") {
    if (input.is_integral() && precision >= 0)
      return Value::of(input.as_integer());
    if (input.is_integral())
      return heap.fail("round: a negative precision of an integer is not supported");
    return Value::of(round_to(input.real, precision));
  }
  if (how != "ceil" && how != "floor")
    return heap.fail("round: the method must be common, ceil or floor");
  const double unit = std::pow(10.0, static_cast<double>(precision));
  const double scaled = input.as_real() * unit;
  return Value::of((how == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / unit);
}

}  // namespace

Value filter_number(Heap& heap, FilterId id, const Value& input, const CallArgs& args) {
  switch (id) {
    case FilterId::integer:
      return to_integer(heap, input, args);
    case FilterId::real:
      return to_real(heap, input, args);
    case FilterId::round:
      return round_number(heap, input, args);
    default:
      break;
  }
  if (input.is_undefined())
    return get_attribute(heap, input, {});
  if (input.is(Kind::real))
    return Value::of(std::fabs(input.real));
  if (!input.is_integral())
    return heap.fail(std::string("abs: expected a number, got ") + type_name(input));
  return input.as_integer() < 0 ? negate(heap, input) : Value::of(input.as_integer());
}

}  // namespace hadal::jinja
