// Statements, and the way in and out: request data becomes marked values, the marked output
// becomes the prompt with its content ranges.
#include "jinja_interpreter.h"

#include "jinja_interpreter_impl.h"

namespace hadal::jinja {

namespace {

constexpr int32_t kLevelsPerDepth = 16;  // nodes that one level of the template's depth may recurse

std::vector<ByteRange> content_ranges(const Buffer& buffer) {
  std::vector<ByteRange> ranges;
  int64_t begin = 0;
  for (const TaintRun& run : buffer.runs) {
    if (run.tainted)
      ranges.push_back({begin, run.end});
    begin = run.end;
  }
  return ranges;
}

}  // namespace

Interpreter::Interpreter(const Template& parsed, const TemplateLimits& limits)
    : template_(parsed),
      limits_(limits),
      heap_(limits.steps_max),
      literals_(static_cast<size_t>(parsed.num_literals)),
      levels_max_(limits.depth_max * kLevelsPerDepth) {}

Value Interpreter::convert(const TemplateValue& value, bool is_content, int32_t depth) {
  is_content = is_content || value.is_content;
  if (depth > kValueDepthMax)
    return heap_.fail("a value nested deeper than " + std::to_string(kValueDepthMax) + " levels");
  if (!heap_.charge(2))
    return {};
  if (const auto* boolean = std::get_if<bool>(&value.value))
    return Value::of(*boolean);
  if (const auto* integer = std::get_if<int64_t>(&value.value))
    return Value::of(*integer);
  if (const auto* real = std::get_if<double>(&value.value))
    return Value::of(*real);
  if (const auto* string = std::get_if<std::string>(&value.value))
    return heap_.external_string(*string, is_content);
  if (const auto* list = std::get_if<std::shared_ptr<const TemplateValue::List>>(&value.value)) {
    std::vector<Value> items;
    for (const TemplateValue& item : **list)
      items.push_back(convert(item, is_content, depth + 1));
    return heap_.new_list(std::move(items), Kind::list, is_content);
  }
  if (const auto* object =
          std::get_if<std::shared_ptr<const TemplateValue::Object>>(&value.value)) {
    Dict* dict = heap_.new_dict(is_content);
    for (const auto& [key, item] : **object) {
      const Value name = heap_.external_string(key, is_content);
      const Value converted = convert(item, is_content, depth + 1);
      if (failed())
        return {};
      dict->add(name, converted);
    }
    return from_dict(dict);
  }
  return Value::none();
}

void Interpreter::add_globals() {
  const std::pair<std::string_view, Builtin> builtins[] = {
      {"range", Builtin::range},
      {"namespace", Builtin::name_space},
      {"dict", Builtin::dict},
      {"raise_exception", Builtin::raise_exception},
      {"strftime_now", Builtin::strftime_now},
  };
  for (const auto& [name, builtin] : builtins) {
    Value value;
    value.kind = Kind::function;
    value.function = builtin;
    scopes_.front().set(name, value);
  }
}

Scope* Interpreter::new_scope(Scope* parent) {
  heap_.charge(8);
  scopes_.emplace_back();
  scopes_.back().parent = parent;
  return &scopes_.back();
}

Result<PromptText> Interpreter::run(const TemplateValue& context) {
  const auto* object = std::get_if<std::shared_ptr<const TemplateValue::Object>>(&context.value);
  if (object == nullptr)
    return Error{ErrorCode::invalid_argument, "chat template: the context must be an object"};
  Scope* globals = new_scope(nullptr);
  add_globals();
  for (const auto& [name, value] : **object) {
    const Value converted = convert(value, context.is_content, 0);
    globals->set(name, converted);
  }
  heap_.locate(failed() ? 1 : 0, failed() ? 1 : 0);
  main_out_ = out_ = heap_.new_buffer(0);
  Scope* top = new_scope(globals);
  if (!failed())
    execute(*template_.root, *top);
  if (failed())
    return Error{ErrorCode::invalid_argument, heap_.error_text()};
  PromptText prompt;
  prompt.content = content_ranges(*main_out_);
  prompt.text = std::move(main_out_->own);
  return prompt;
}

Interpreter::Flow Interpreter::execute(const Node& node, Scope& scope) {
  const Level level(*this);
  Flow flow = Flow::normal;
  if (heap_.charge(1))
    flow = execute_node(node, scope);
  if (failed())
    heap_.locate(node.line, node.column);
  return flow;
}

Interpreter::Flow Interpreter::execute_node(const Node& node, Scope& scope) {
  switch (node.kind) {
    case NodeKind::data:
      print_bytes(static_cast<int64_t>(node.text.size()));
      if (!failed())
        out_->append(node.text, false);
      return Flow::normal;
    case NodeKind::output:
      print(evaluate(*node.children[0], scope));
      return Flow::normal;
    case NodeKind::body:
      return execute_body(node, scope);
    case NodeKind::if_block:
      return execute_if(node, scope);
    case NodeKind::for_block:
      return execute_for(node, scope);
    case NodeKind::set: {
      const Value value = evaluate(*node.children[0], scope);
      if (!failed())
        assign(node.targets[0], value, scope);
      return Flow::normal;
    }
    case NodeKind::set_block:
      execute_set_block(node, scope);
      return Flow::normal;
    case NodeKind::macro:
      define_macro(node, scope);
      return Flow::normal;
    case NodeKind::with_block:
      return execute_with(node, scope);
    case NodeKind::filter_block:
      execute_filter_block(node, scope);
      return Flow::normal;
    case NodeKind::break_loop:
      return Flow::broken;
    case NodeKind::continue_loop:
      return Flow::continued;
    default:
      HADAL_CHECK(false, "an expression where a statement is expected");
  }
}

Interpreter::Flow Interpreter::execute_body(const Node& node, Scope& scope) {
  for (const NodePtr& child : node.children) {
    const Flow flow = execute(*child, scope);
    if (flow != Flow::normal || failed())
      return flow;
  }
  return Flow::normal;
}

Interpreter::Flow Interpreter::execute_if(const Node& node, Scope& scope) {
  size_t i = 0;
  for (; i + 1 < node.children.size(); i += 2) {
    const bool holds = truthy(evaluate(*node.children[i], scope));
    if (failed())
      return Flow::normal;
    if (holds)
      return execute(*node.children[i + 1], scope);
  }
  return i < node.children.size() ? execute(*node.children[i], scope) : Flow::normal;
}

bool Interpreter::filter_items(const Node& node, Scope& scope, std::vector<Value>& items) {
  std::vector<Value> kept;
  Scope* inner = new_scope(&scope);
  for (const Value& item : items) {
    if (failed())
      return false;
    assign(node.targets[0], item, *inner);
    if (!failed() && truthy(evaluate(*node.children[1], *inner)))
      kept.push_back(item);
  }
  items = std::move(kept);
  return !failed();
}

Interpreter::Flow Interpreter::execute_for(const Node& node, Scope& scope) {
  const Value iterable = evaluate(*node.children[0], scope);
  std::vector<Value> items;
  if (failed() || !iterate(heap_, iterable, items) ||
      (node.children[1] && !filter_items(node, scope, items)))
    return Flow::normal;
  if (items.empty())
    return node.children[3] ? execute(*node.children[3], *new_scope(&scope)) : Flow::normal;
  Value loop;
  loop.kind = Kind::loop;
  loop.loop = heap_.new_loop();
  loop.loop->items = heap_.new_list(std::move(items)).list;
  const std::vector<Value>& all = loop.loop->items->items;
  Flow flow = Flow::normal;
  Scope* inner = nullptr;
  for (size_t i = 0; i < all.size() && flow != Flow::broken && heap_.charge(2); ++i) {
    if (inner == nullptr || inner->is_captured)
      inner = new_scope(&scope);
    inner->variables.clear();
    loop.loop->index0 = static_cast<int64_t>(i);
    inner->set("loop", loop);
    assign(node.targets[0], all[i], *inner);
    if (!failed())
      flow = execute(*node.children[2], *inner);
  }
  return Flow::normal;
}

Interpreter::Flow Interpreter::execute_with(const Node& node, Scope& scope) {
  Scope* inner = new_scope(&scope);
  for (size_t i = 0; i < node.targets.size() && !failed(); ++i) {
    const Value value = evaluate(*node.children[i + 1], scope);
    if (!failed())
      assign(node.targets[i], value, *inner);
  }
  return failed() ? Flow::normal : execute(*node.children[0], *inner);
}

Value Interpreter::capture(const Node& body, Scope& scope) {
  Buffer* const outer = out_;
  Buffer* const inner = heap_.new_buffer(0);
  if (failed())
    return {};
  out_ = inner;
  execute(body, scope);
  out_ = outer;
  return failed() ? Value{} : heap_.from_buffer(inner);
}

void Interpreter::execute_set_block(const Node& node, Scope& scope) {
  Value value = capture(*node.children[0], *new_scope(&scope));
  if (!failed() && node.children[1])
    value = evaluate_filter(*node.children[1], scope, &value);
  if (!failed())
    assign(node.targets[0], value, scope);
}

void Interpreter::execute_filter_block(const Node& node, Scope& scope) {
  const Value value = capture(*node.children[0], *new_scope(&scope));
  if (!failed())
    print(evaluate_filter(*node.children[1], scope, &value));
}

void Interpreter::define_macro(const Node& node, Scope& scope) {
  heap_.charge(8);
  for (Scope* s = &scope; s != nullptr; s = s->parent)
    s->is_captured = true;
  macros_.push_back(Macro{&node, &scope});
  Value value;
  value.kind = Kind::macro;
  value.macro = &macros_.back();
  scope.set(node.text, value);
}

void Interpreter::assign(const Target& target, const Value& value, Scope& scope) {
  if (!target.parts.empty()) {
    std::vector<Value> items;
    if (!iterate(heap_, value, items))
      return;
    if (items.size() != target.parts.size()) {
      heap_.fail("cannot unpack " + std::to_string(items.size()) + " values into " +
                 std::to_string(target.parts.size()));
      return;
    }
    for (size_t i = 0; i < items.size(); ++i)
      assign(target.parts[i], items[i], scope);
    return;
  }
  if (target.attribute.empty()) {
    scope.set(target.name, value);
    return;
  }
  for (Scope* s = &scope; s != nullptr; s = s->parent) {
    Value* object = s->find(target.name);
    if (object == nullptr)
      continue;
    if (object->is(Kind::name_space))
      object->name_space->set(target.attribute, value);
    else
      heap_.fail("cannot assign an attribute of '" + target.name + "': it is not a namespace");
    return;
  }
  heap_.fail("'" + target.name + "' is undefined");
}

void Interpreter::print_bytes(int64_t bytes) {
  heap_.charge_bytes(bytes);
  if (static_cast<int64_t>(out_->own.size()) + bytes > limits_.output_bytes_max)
    heap_.fail("the output exceeds the limit of " + std::to_string(limits_.output_bytes_max) +
               " bytes");
}

void Interpreter::print(const Value& value) {
  if (failed())
    return;
  const Value text = to_string(heap_, value);
  if (failed())
    return;
  print_bytes(text.end - text.begin);
  if (!failed())
    out_->append_window(*text.buffer, text.begin, text.end);
}

Result<PromptText> run(const Template& parsed,
                       const TemplateValue& context,
                       const TemplateLimits& limits) {
  return Interpreter(parsed, limits).run(context);
}

}  // namespace hadal::jinja
