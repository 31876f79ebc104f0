// Expressions and calls.
#include <ctime>

#include "jinja_interpreter_impl.h"

namespace hadal::jinja {

namespace {

constexpr int64_t kRangeMax = 100000;  // as in jinja2's sandbox

}  // namespace

Value Interpreter::evaluate(const Node& node, Scope& scope) {
  const Level level(*this);
  Value value;
  if (heap_.charge(1))
    value = evaluate_node(node, scope);
  if (failed())
    heap_.locate(node.line, node.column);
  return value;
}

Value Interpreter::evaluate_node(const Node& node, Scope& scope) {
  switch (node.kind) {
    case NodeKind::literal:
      return node.value;
    case NodeKind::text_literal: {
      Value& literal = literals_[static_cast<size_t>(node.literal_index)];
      if (!literal.is_string())
        literal = heap_.external_string(node.text, false);
      return literal;
    }
    case NodeKind::name:
      return evaluate_name(node, scope);
    case NodeKind::list:
    case NodeKind::tuple:
      return evaluate_collection(node, scope);
    case NodeKind::dict:
      return evaluate_dict(node, scope);
    case NodeKind::chain:
      return evaluate_chain(node, scope);
    case NodeKind::concat:
      return evaluate_concat(node, scope);
    case NodeKind::logic_and:
    case NodeKind::logic_or:
      return evaluate_logic(node, scope);
    case NodeKind::logic_not:
      return Value::of(!truthy(evaluate(*node.children[0], scope)));
    case NodeKind::negative:
    case NodeKind::positive: {
      const Value value = evaluate(*node.children[0], scope);
      if (failed() || node.kind == NodeKind::negative)
        return negate(heap_, value);
      return value.is_number() ? value : heap_.fail("bad operand type for unary +");
    }
    case NodeKind::comparison:
      return evaluate_comparison(node, scope);
    case NodeKind::conditional:
      return evaluate_conditional(node, scope);
    case NodeKind::attribute:
    case NodeKind::item:
    case NodeKind::slice:
      return evaluate_access(node, scope);
    case NodeKind::call:
      return evaluate_call(node, scope);
    case NodeKind::filter:
      return evaluate_filter(node, scope, nullptr);
    case NodeKind::test:
      return evaluate_test(node, scope);
    default:
      HADAL_CHECK(false, "a statement where an expression is expected");
  }
}

Value Interpreter::evaluate_name(const Node& node, Scope& scope) {
  for (Scope* s = &scope; s != nullptr; s = s->parent) {
    if (const Value* value = s->find(node.text))
      return *value;
  }
  return heap_.undefined("'" + node.text + "' is undefined");
}

Value Interpreter::evaluate_collection(const Node& node, Scope& scope) {
  std::vector<Value> items;
  for (const NodePtr& child : node.children) {
    items.push_back(evaluate(*child, scope));
    if (failed())
      return {};
  }
  return heap_.new_list(std::move(items), node.kind == NodeKind::tuple ? Kind::tuple : Kind::list);
}

Value Interpreter::evaluate_dict(const Node& node, Scope& scope) {
  Dict* dict = heap_.new_dict();
  for (size_t i = 0; i + 1 < node.children.size(); i += 2) {
    const Value key = evaluate(*node.children[i], scope);
    const Value value = failed() ? Value{} : evaluate(*node.children[i + 1], scope);
    if (!failed() && (key.is(Kind::list) || key.is(Kind::dict)))
      heap_.fail(std::string("a ") + type_name(key) + " cannot be a key");
    if (failed() || !heap_.charge(4))
      return {};
    bool is_known = false;
    for (auto& [k, v] : dict->items) {
      if (equal(heap_, k, key)) {
        v = value;
        is_known = true;
      }
    }
    if (!is_known)
      dict->add(key, value);
  }
  return from_dict(dict);
}

Value Interpreter::evaluate_chain(const Node& node, Scope& scope) {
  Value left = evaluate(*node.children[0], scope);
  for (size_t i = 0; i < node.ops.size() && !failed(); ++i) {
    const Value right = evaluate(*node.children[i + 1], scope);
    if (!failed())
      left = arithmetic(heap_, node.ops[i], left, right);
  }
  return left;
}

Value Interpreter::evaluate_concat(const Node& node, Scope& scope) {
  Value left;
  for (size_t i = 0; i < node.children.size(); ++i) {
    const Value value = evaluate(*node.children[i], scope);
    const Value text = failed() ? Value{} : to_string(heap_, value);
    if (failed())
      return {};
    left = i == 0 ? text : heap_.concat(left, text);
  }
  return left;
}

Value Interpreter::evaluate_logic(const Node& node, Scope& scope) {
  const bool stops_at = node.kind == NodeKind::logic_or;
  Value value;
  for (const NodePtr& child : node.children) {
    value = evaluate(*child, scope);
    if (failed() || truthy(value) == stops_at)
      break;
  }
  return value;
}

bool Interpreter::compare_values(CompareOp op, const Value& left, const Value& right) {
  switch (op) {
    case CompareOp::eq:
      return equal(heap_, left, right);
    case CompareOp::ne:
      return !equal(heap_, left, right);
    case CompareOp::lt:
      return compare(heap_, left, right) < 0;
    case CompareOp::le:
      return compare(heap_, left, right) <= 0;
    case CompareOp::gt:
      return compare(heap_, left, right) > 0;
    case CompareOp::ge:
      return compare(heap_, left, right) >= 0;
    case CompareOp::in:
      return contains(heap_, right, left);
    case CompareOp::not_in:
      return !contains(heap_, right, left);
  }
  return false;
}

Value Interpreter::evaluate_comparison(const Node& node, Scope& scope) {
  Value left = evaluate(*node.children[0], scope);
  for (size_t i = 0; i < node.compare_ops.size(); ++i) {
    const Value right = failed() ? Value{} : evaluate(*node.children[i + 1], scope);
    if (failed())
      return {};
    if (!compare_values(node.compare_ops[i], left, right))
      return Value::of(false);
    left = right;
  }
  return Value::of(true);
}

Value Interpreter::evaluate_conditional(const Node& node, Scope& scope) {
  const bool holds = truthy(evaluate(*node.children[1], scope));
  if (failed())
    return {};
  if (holds)
    return evaluate(*node.children[0], scope);
  if (node.children[2])
    return evaluate(*node.children[2], scope);
  return heap_.undefined("the condition is false and there is no else");
}

Value Interpreter::evaluate_access(const Node& node, Scope& scope) {
  const Value object = evaluate(*node.children[0], scope);
  if (failed())
    return {};
  if (node.kind == NodeKind::attribute)
    return get_attribute(heap_, object, node.text);
  Value parts[3] = {Value::none(), Value::none(), Value::none()};
  for (size_t i = 1; i < node.children.size(); ++i) {
    if (node.children[i])
      parts[i - 1] = evaluate(*node.children[i], scope);
    if (failed())
      return {};
  }
  return node.kind == NodeKind::item ? get_item(heap_, object, parts[0])
                                     : slice(heap_, object, parts);
}

bool Interpreter::evaluate_arguments(const Node& node, Scope& scope, CallArgs& args) {
  for (const NodePtr& argument : node.arguments) {
    args.positional.push_back(evaluate(*argument, scope));
    if (failed())
      return false;
  }
  for (const auto& [name, argument] : node.named_arguments) {
    if (args.find(name) != nullptr)
      heap_.fail("the argument '" + name + "' is given twice");
    args.named.emplace_back(name, evaluate(*argument, scope));
    if (failed())
      return false;
  }
  return true;
}

Value Interpreter::evaluate_call(const Node& node, Scope& scope) {
  const Value callee = evaluate(*node.children[0], scope);
  if (failed())
    return {};
  CallArgs args;
  switch (callee.kind) {
    case Kind::function:
      return evaluate_arguments(node, scope, args) ? call_builtin(callee.function, args) : Value{};
    case Kind::macro:
      return evaluate_arguments(node, scope, args) ? call_macro(*callee.macro, args) : Value{};
    case Kind::method:
      return evaluate_arguments(node, scope, args) ? call_method(heap_, *callee.method, args)
                                                   : Value{};
    case Kind::undefined:
      return get_attribute(heap_, callee, {});
    default:
      return heap_.fail(std::string("a ") + type_name(callee) + " is not callable");
  }
}

Value Interpreter::evaluate_filter(const Node& node, Scope& scope, const Value* block_input) {
  const Node* inner = node.children[0].get();
  Value input;
  if (inner == nullptr)
    input = *block_input;
  else if (block_input != nullptr)
    input = evaluate_filter(*inner, scope, block_input);
  else
    input = evaluate(*inner, scope);
  CallArgs args;
  if (failed() || !evaluate_arguments(node, scope, args))
    return {};
  return apply_filter(heap_, node.filter, input, args);
}

Value Interpreter::evaluate_test(const Node& node, Scope& scope) {
  const Value input = evaluate(*node.children[0], scope);
  CallArgs args;
  if (failed() || !evaluate_arguments(node, scope, args))
    return {};
  return Value::of(apply_test(heap_, node.test, input, args));
}

bool Interpreter::bind_parameters(const Node& node, const CallArgs& args, Scope& scope) {
  const size_t num_parameters = node.targets.size();
  const size_t first_default = num_parameters - (node.children.size() - 1);
  if (args.positional.size() > num_parameters) {
    heap_.fail("the macro '" + node.text + "' takes at most " + std::to_string(num_parameters) +
               " arguments, got " + std::to_string(args.positional.size()));
    return false;
  }
  size_t num_named = 0;
  for (size_t i = 0; i < num_parameters; ++i) {
    const std::string& name = node.targets[i].name;
    const Value* named = args.find(name);
    num_named += named != nullptr ? 1 : 0;
    Value value;
    if (i < args.positional.size() && named != nullptr)
      heap_.fail("the macro '" + node.text + "' got two values for '" + name + "'");
    else if (i < args.positional.size())
      value = args.positional[i];
    else if (named != nullptr)
      value = *named;
    else if (i >= first_default)
      value = evaluate(*node.children[1 + i - first_default], scope);
    else
      value = heap_.undefined("parameter '" + name + "' was not provided");
    if (failed())
      return false;
    scope.set(name, value);
  }
  if (num_named != args.named.size()) {
    heap_.fail("the macro '" + node.text + "' got an argument that it does not have");
    return false;
  }
  return true;
}

Value Interpreter::call_macro(const Macro& macro, const CallArgs& args) {
  const Level level(*this);
  if (macro_depth_ >= limits_.depth_max)
    return heap_.fail("macro calls nested deeper than " + std::to_string(limits_.depth_max) +
                      " levels");
  Scope* scope = new_scope(macro.scope);
  if (failed() || !bind_parameters(*macro.node, args, *scope))
    return {};
  ++macro_depth_;
  const Value value = capture(*macro.node->children[0], *scope);
  --macro_depth_;
  return value;
}

Value Interpreter::call_builtin(Builtin builtin, const CallArgs& args) {
  switch (builtin) {
    case Builtin::range:
      return make_range(args);
    case Builtin::name_space:
      return make_namespace(args);
    case Builtin::dict:
      return make_dict(args);
    case Builtin::raise_exception:
      return raise(args);
    case Builtin::strftime_now:
      return format_now(args);
  }
  return {};
}

Value Interpreter::make_range(const CallArgs& args) {
  const size_t count = args.positional.size();
  if (count < 1 || count > 3 || !args.named.empty())
    return heap_.fail("range: expected 1 to 3 integers");
  int64_t bounds[3] = {0, 0, 1};
  for (size_t i = 0; i < count; ++i) {
    if (!args.positional[i].is_integral())
      return heap_.fail(std::string("range: expected an integer, got ") +
                        type_name(args.positional[i]));
    bounds[count == 1 ? 1 : i] = args.positional[i].as_integer();
  }
  const int64_t step = bounds[2];
  if (step == 0)
    return heap_.fail("range: the step cannot be zero");
  std::vector<Value> items;
  for (int64_t i = bounds[0]; step > 0 ? i < bounds[1] : i > bounds[1];) {
    if (static_cast<int64_t>(items.size()) >= kRangeMax)
      return heap_.fail("range: more than " + std::to_string(kRangeMax) + " numbers");
    if (!heap_.charge(2))
      return {};
    items.push_back(Value::of(i));
    if (__builtin_add_overflow(i, step, &i))
      break;
  }
  return heap_.new_list(std::move(items));
}

Value Interpreter::make_namespace(const CallArgs& args) {
  Value value;
  value.kind = Kind::name_space;
  value.name_space = heap_.new_namespace();
  if (args.positional.size() > 1 ||
      (args.positional.size() == 1 && !args.positional[0].is(Kind::dict)))
    return heap_.fail("namespace: expected a dict or named values");
  if (!args.positional.empty()) {
    for (const auto& [key, item] : args.positional[0].dict->items) {
      if (key.is_string() && heap_.charge(4))
        value.name_space->set(key.text(), item);
    }
  }
  for (const auto& [name, item] : args.named)
    value.name_space->set(name, item);
  return value;
}

Value Interpreter::make_dict(const CallArgs& args) {
  if (args.positional.size() > 1 ||
      (args.positional.size() == 1 && !args.positional[0].is(Kind::dict)))
    return heap_.fail("dict: expected a dict or named values");
  Dict* dict = heap_.new_dict(!args.positional.empty() && args.positional[0].dict->is_content);
  if (!args.positional.empty()) {
    if (!heap_.charge(static_cast<int64_t>(args.positional[0].dict->items.size()) * 4))
      return {};
    for (const auto& [key, item] : args.positional[0].dict->items)
      dict->add(key, item);
  }
  for (const auto& [name, item] : args.named) {
    const Value key = heap_.string(name, false);
    if (failed())
      return {};
    bool is_known = false;
    for (auto& [k, v] : dict->items) {
      if (k.is_string() && k.text() == name) {
        v = item;
        is_known = true;
      }
    }
    if (!is_known)
      dict->add(key, item);
  }
  return from_dict(dict);
}

Value Interpreter::raise(const CallArgs& args) {
  const Value* message = args.get(0, "message");
  if (message == nullptr)
    return heap_.fail("raise_exception: expected a message");
  const Value text = to_string(heap_, *message);
  return failed() ? Value{} : heap_.fail_verbatim(std::string(text.text().substr(0, 10000)));
}

Value Interpreter::format_now(const CallArgs& args) {
  const Value* format = args.get(0, "format");
  if (format == nullptr || !format->is_string() || format->end - format->begin > 256)
    return heap_.fail("strftime_now: expected a format of at most 256 bytes");
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  if (::localtime_r(&now, &local) == nullptr)
    return heap_.fail("strftime_now: no local time");
  char text[4096];
  const std::string pattern(format->text());
  const size_t bytes = std::strftime(text, sizeof text, pattern.c_str(), &local);
  return heap_.string({text, bytes}, false);
}

}  // namespace hadal::jinja
