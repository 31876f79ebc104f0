// The interpreter's inside: scopes, and evaluation that stops at the first failure of the heap.
#pragma once

#include <deque>
#include <string_view>
#include <vector>

#include "jinja_filters.h"
#include "jinja_interpreter.h"

namespace hadal::jinja {

/// Names of one block. Blocks see the scopes around them; assignments stay in their own.
struct Scope {
  Scope* parent = nullptr;
  bool is_captured = false;  // a macro defined here refers to it
  std::vector<std::pair<std::string_view, Value>> variables;

  Value* find(std::string_view name) {
    for (auto& [key, value] : variables) {
      if (key == name)
        return &value;
    }
    return nullptr;
  }

  void set(std::string_view name, const Value& value) {
    if (Value* known = find(name))
      *known = value;
    else
      variables.emplace_back(name, value);
  }
};

struct Macro {
  const Node* node;
  Scope* scope;
};

class Interpreter {
 public:
  Interpreter(const Template& parsed, const TemplateLimits& limits);

  Result<PromptText> run(const TemplateValue& context);

 private:
  enum class Flow : uint8_t { normal, broken, continued };

  /// One level of recursion; the heap fails when there are too many.
  class Level {
   public:
    explicit Level(Interpreter& interpreter) : interpreter_(interpreter) {
      if (++interpreter_.levels_ > interpreter_.levels_max_)
        interpreter_.heap_.fail("the template recurses too deep");
    }

    ~Level() { --interpreter_.levels_; }

    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    Interpreter& interpreter_;
  };

  bool failed() const { return heap_.failed(); }

  Value convert(const TemplateValue& value, bool is_content, int32_t depth);
  void add_globals();
  Scope* new_scope(Scope* parent);

  // Statements
  Flow execute(const Node& node, Scope& scope);
  Flow execute_node(const Node& node, Scope& scope);
  Flow execute_body(const Node& node, Scope& scope);
  Flow execute_if(const Node& node, Scope& scope);
  Flow execute_for(const Node& node, Scope& scope);
  bool filter_items(const Node& node, Scope& scope, std::vector<Value>& items);
  Flow execute_with(const Node& node, Scope& scope);
  void execute_set_block(const Node& node, Scope& scope);
  void execute_filter_block(const Node& node, Scope& scope);
  void define_macro(const Node& node, Scope& scope);
  void assign(const Target& target, const Value& value, Scope& scope);
  void print(const Value& value);
  void print_bytes(int64_t bytes);
  /// Runs `body` with its output going to a string.
  Value capture(const Node& body, Scope& scope);

  // Expressions
  Value evaluate(const Node& node, Scope& scope);
  Value evaluate_node(const Node& node, Scope& scope);
  Value evaluate_name(const Node& node, Scope& scope);
  Value evaluate_collection(const Node& node, Scope& scope);
  Value evaluate_dict(const Node& node, Scope& scope);
  Value evaluate_chain(const Node& node, Scope& scope);
  Value evaluate_concat(const Node& node, Scope& scope);
  Value evaluate_logic(const Node& node, Scope& scope);
  Value evaluate_comparison(const Node& node, Scope& scope);
  Value evaluate_conditional(const Node& node, Scope& scope);
  Value evaluate_access(const Node& node, Scope& scope);
  Value evaluate_call(const Node& node, Scope& scope);
  Value evaluate_filter(const Node& node, Scope& scope, const Value* block_input);
  Value evaluate_test(const Node& node, Scope& scope);
  bool evaluate_arguments(const Node& node, Scope& scope, CallArgs& args);
  bool compare_values(CompareOp op, const Value& left, const Value& right);

  Value call_macro(const Macro& macro, const CallArgs& args);
  bool bind_parameters(const Node& node, const CallArgs& args, Scope& scope);
  Value call_builtin(Builtin builtin, const CallArgs& args);
  Value make_range(const CallArgs& args);
  Value make_namespace(const CallArgs& args);
  Value make_dict(const CallArgs& args);
  Value raise(const CallArgs& args);
  Value format_now(const CallArgs& args);

  const Template& template_;
  TemplateLimits limits_;
  Heap heap_;
  std::vector<Value> literals_;
  std::deque<Scope> scopes_;
  std::deque<Macro> macros_;
  Buffer* out_ = nullptr;
  Buffer* main_out_ = nullptr;
  int32_t levels_ = 0;
  int32_t levels_max_ = 0;
  int32_t macro_depth_ = 0;
};

}  // namespace hadal::jinja
