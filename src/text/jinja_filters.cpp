// The table of filters with their parameters, and those that work on text.
#include "jinja_filters.h"

#include <algorithm>
#include <array>

#include "jinja_text.h"

namespace hadal::jinja {

namespace {

struct FilterEntry {
  std::string_view name;
  FilterId id;
  bool is_variadic = false;
  std::array<std::string_view, 4> parameters = {};
};

constexpr FilterEntry kFilters[] = {
    {"abs", FilterId::abs, false, {}},
    {"attr", FilterId::attr, false, {"name"}},
    {"capitalize", FilterId::capitalize, false, {}},
    {"count", FilterId::count, false, {}},
    {"length", FilterId::count, false, {}},
    {"default", FilterId::default_value, false, {"default_value", "boolean"}},
    {"d", FilterId::default_value, false, {"default_value", "boolean"}},
    {"dictsort", FilterId::dictsort, false, {"case_sensitive", "by", "reverse"}},
    {"escape", FilterId::escape, false, {}},
    {"e", FilterId::escape, false, {}},
    {"forceescape", FilterId::escape, false, {}},
    {"first", FilterId::first, false, {}},
    {"float", FilterId::real, false, {"default"}},
    {"indent", FilterId::indent, false, {"width", "first", "blank"}},
    {"int", FilterId::integer, false, {"default", "base"}},
    {"items", FilterId::items, false, {}},
    {"join", FilterId::join, false, {"d", "attribute"}},
    {"last", FilterId::last, false, {}},
    {"list", FilterId::list, false, {}},
    {"lower", FilterId::lower, false, {}},
    {"map", FilterId::map, true, {}},
    {"max", FilterId::max, false, {"case_sensitive", "attribute"}},
    {"min", FilterId::min, false, {"case_sensitive", "attribute"}},
    {"reject", FilterId::reject, true, {}},
    {"rejectattr", FilterId::rejectattr, true, {}},
    {"replace", FilterId::replace, false, {"old", "new", "count"}},
    {"reverse", FilterId::reverse, false, {}},
    {"round", FilterId::round, false, {"precision", "method"}},
    {"safe", FilterId::safe, false, {}},
    {"select", FilterId::select, true, {}},
    {"selectattr", FilterId::selectattr, true, {}},
    {"sort", FilterId::sort, false, {"reverse", "case_sensitive", "attribute"}},
    {"string", FilterId::string, false, {}},
    {"sum", FilterId::sum, false, {"attribute", "start"}},
    {"title", FilterId::title, false, {}},
    {"tojson", FilterId::tojson, false, {"ensure_ascii", "indent", "separators", "sort_keys"}},
    {"trim", FilterId::trim, false, {"chars"}},
    {"unique", FilterId::unique, false, {"case_sensitive", "attribute"}},
    {"upper", FilterId::upper, false, {}},
};

const FilterEntry& entry_of(FilterId id) {
  return *std::find_if(
      std::begin(kFilters), std::end(kFilters), [id](const FilterEntry& e) { return e.id == id; });
}

bool check_arguments(Heap& heap, FilterId id, const CallArgs& args) {
  const FilterEntry& entry = entry_of(id);
  if (entry.is_variadic)
    return true;
  const auto known = static_cast<size_t>(std::count_if(
      entry.parameters.begin(), entry.parameters.end(), [](auto name) { return !name.empty(); }));
  if (args.positional.size() > known) {
    heap.fail("the filter '" + std::string(entry.name) + "' takes at most " +
              std::to_string(known) + " arguments, got " + std::to_string(args.positional.size()));
    return false;
  }
  for (const auto& [name, value] : args.named) {
    const auto* it = std::find(entry.parameters.begin(), entry.parameters.end(), name);
    if (it == entry.parameters.end() || name.empty()) {
      heap.fail("the filter '" + std::string(entry.name) + "' has no argument '" +
                std::string(name.substr(0, 100)) + "'");
      return false;
    }
  }
  return true;
}

Value filter_indent(Heap& heap, const Value& input, const CallArgs& args) {
  const Value* width = args.get(0, "width");
  const Value* first = args.get(1, "first");
  const Value* blank = args.get(2, "blank");
  if (!input.is_string())
    return heap.fail(std::string("indent: expected a string, got ") + type_name(input));
  Value prefix;
  if (width != nullptr && width->is_string()) {
    prefix = *width;
  } else {
    const int64_t spaces = integer_argument(heap, width, 4, "indent: the width");
    if (spaces > 1000)
      return heap.fail("indent: at most 1000 spaces");
    prefix =
        heap.string(std::string(static_cast<size_t>(std::max<int64_t>(spaces, 0)), ' '), false);
  }
  if (heap.failed())
    return {};
  return indent(heap, input, prefix, first && truthy(*first), blank && truthy(*blank));
}

Value filter_tojson(Heap& heap, const Value& input, const CallArgs& args) {
  JsonStyle style;
  const Value* ascii = args.get(0, "ensure_ascii");
  const Value* width = args.get(1, "indent");
  const Value* separators = args.get(2, "separators");
  const Value* sorted = args.get(3, "sort_keys");
  style.ascii_only = ascii && truthy(*ascii);
  style.sorts_keys = sorted && truthy(*sorted);
  if (width != nullptr && !width->is(Kind::none)) {
    if (width->is_string()) {
      style.indent_text = std::string(width->text().substr(0, 1000));
    } else {
      const int64_t spaces = integer_argument(heap, width, 0, "tojson: the indent");
      if (spaces > 1000)
        return heap.fail("tojson: an indent of at most 1000 spaces");
      style.indent_text = std::string(static_cast<size_t>(std::max<int64_t>(spaces, 0)), ' ');
    }
    style.indent = static_cast<int64_t>(style.indent_text.size());
    style.item_separator = ",";
  }
  if (separators != nullptr && !separators->is(Kind::none)) {
    if (!separators->is_sequence() || separators->list->items.size() != 2 ||
        !separators->list->items[0].is_string() || !separators->list->items[1].is_string())
      return heap.fail("tojson: separators must be two strings");
    style.item_separator = std::string(separators->list->items[0].text().substr(0, 1000));
    style.key_separator = std::string(separators->list->items[1].text().substr(0, 1000));
  }
  return heap.failed() ? Value{} : to_json(heap, input, style);
}

Value filter_replace(Heap& heap, const Value& input, const CallArgs& args) {
  const Value* from = args.get(0, "old");
  const Value* to = args.get(1, "new");
  if (from == nullptr || to == nullptr)
    return heap.fail("replace: expected what to replace, and by what");
  const int64_t limit = integer_argument(heap, args.get(2, "count"), -1, "replace: the count");
  const Value text = text_of(heap, input);
  const Value from_text = text_of(heap, *from);
  const Value to_text = text_of(heap, *to);
  return heap.failed() ? Value{} : replace(heap, text, from_text, to_text, limit);
}

Value filter_text(Heap& heap, FilterId id, const Value& input, const CallArgs& args) {
  const Value text = text_of(heap, input);
  if (heap.failed())
    return {};
  switch (id) {
    case FilterId::capitalize:
      return capitalize(heap, text);
    case FilterId::escape:
      return escape_html(heap, text);
    case FilterId::lower:
      return change_case(heap, text, Case::lower);
    case FilterId::upper:
      return change_case(heap, text, Case::upper);
    case FilterId::title:
      return title_filter(heap, text);
    case FilterId::trim:
      return trimmed(heap, text, args.get(0, "chars"), true, true);
    default:
      return text;  // string, safe
  }
}

}  // namespace

std::optional<FilterId> filter_by_name(std::string_view name) {
  for (const FilterEntry& entry : kFilters) {
    if (entry.name == name)
      return entry.id;
  }
  return std::nullopt;
}

Value text_of(Heap& heap, const Value& value) {
  return to_string(heap, value);
}

int64_t integer_argument(Heap& heap, const Value* argument, int64_t missing, const char* what) {
  if (argument == nullptr || argument->is(Kind::none))
    return missing;
  if (argument->is_integral())
    return argument->as_integer();
  heap.fail(std::string(what) + " must be an integer, got " + type_name(*argument));
  return missing;
}

Value apply_filter(Heap& heap, FilterId id, const Value& input, const CallArgs& args) {
  if (heap.failed() || !check_arguments(heap, id, args))
    return {};
  switch (id) {
    case FilterId::capitalize:
    case FilterId::escape:
    case FilterId::lower:
    case FilterId::upper:
    case FilterId::title:
    case FilterId::trim:
    case FilterId::string:
    case FilterId::safe:
      return filter_text(heap, id, input, args);
    case FilterId::indent:
      return filter_indent(heap, input, args);
    case FilterId::replace:
      return filter_replace(heap, input, args);
    case FilterId::tojson:
      return filter_tojson(heap, input, args);
    case FilterId::default_value: {
      const Value* value = args.get(0, "default_value");
      const Value* boolean = args.get(1, "boolean");
      if (!input.is_undefined() && !(boolean && truthy(*boolean) && !truthy(input)))
        return input;
      return value ? *value : heap.string("", false);
    }
    case FilterId::abs:
    case FilterId::integer:
    case FilterId::real:
    case FilterId::round:
      return filter_number(heap, id, input, args);
    default:
      return filter_sequence(heap, id, input, args);
  }
}

}  // namespace hadal::jinja
