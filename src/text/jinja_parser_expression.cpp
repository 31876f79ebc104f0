// Expressions, in jinja2's order of precedence. Chains of one level become one flat node, so that
// `a + b + c + ...` is no deeper than `a + b`.
#include <algorithm>
#include <array>

#include "jinja_filters.h"
#include "jinja_parser_impl.h"

namespace hadal::jinja {

NodePtr Parser::fail(const std::string& message) {
  if (!error_)
    error_ = syntax_error(peek().line, peek().column, message);
  return nullptr;
}

bool Parser::is_op(std::string_view op, size_t ahead) const {
  return peek(ahead).kind == TokenKind::op && peek(ahead).text == op;
}

bool Parser::is_name(std::string_view name, size_t ahead) const {
  return peek(ahead).kind == TokenKind::name && peek(ahead).text == name;
}

bool Parser::skip_op(std::string_view op) {
  if (!is_op(op))
    return false;
  take();
  return true;
}

bool Parser::skip_name(std::string_view name) {
  if (!is_name(name))
    return false;
  take();
  return true;
}

std::string Parser::describe(const Token& token) const {
  switch (token.kind) {
    case TokenKind::end:
      return "end of template";
    case TokenKind::block_end:
      return "'%}'";
    case TokenKind::variable_end:
      return "'}}'";
    case TokenKind::name:
    case TokenKind::op:
      return "'" + token.text.substr(0, 100) + "'";
    case TokenKind::string:
      return "a string";
    case TokenKind::integer:
    case TokenKind::real:
      return "a number";
    default:
      return "text";
  }
}

bool Parser::expect_op(std::string_view op) {
  if (skip_op(op))
    return true;
  fail("expected '" + std::string(op) + "', got " + describe(peek()));
  return false;
}

bool Parser::expect(TokenKind kind, const char* what) {
  if (peek().kind == kind) {
    take();
    return true;
  }
  fail(std::string("expected ") + what + ", got " + describe(peek()));
  return false;
}

NodePtr Parser::make(NodeKind kind) const {
  auto node = std::make_unique<Node>();
  node->kind = kind;
  node->line = peek().line;
  node->column = peek().column;
  return node;
}

NodePtr Parser::make_at(NodeKind kind, const Node& place) const {
  auto node = std::make_unique<Node>();
  node->kind = kind;
  node->line = place.line;
  node->column = place.column;
  return node;
}

NodePtr Parser::done(NodePtr node) {
  if (failed())
    return nullptr;
  int32_t height = 0;
  for (const NodePtr& child : node->children)
    height = std::max(height, child ? child->height : 0);
  for (const NodePtr& argument : node->arguments)
    height = std::max(height, argument->height);
  for (const auto& [name, argument] : node->named_arguments)
    height = std::max(height, argument->height);
  node->height = height + 1;
  if (node->height > limits_.height_max)
    return fail("an expression or block more than " + std::to_string(limits_.height_max) +
                " levels high");
  return node;
}

NodePtr Parser::parse_tuple(bool allows_conditional, bool in_parentheses) {
  NodePtr tuple = make(NodeKind::tuple);
  bool has_comma = false;
  const auto at_end = [&] {
    return is_op(")") || peek().kind == TokenKind::block_end ||
           peek().kind == TokenKind::variable_end || is_op("=");
  };
  while (!failed() && !at_end()) {
    tuple->children.push_back(parse_expression(allows_conditional));
    if (failed() || !skip_op(","))
      break;
    has_comma = true;
  }
  if (failed())
    return nullptr;
  if (has_comma || (tuple->children.empty() && in_parentheses))
    return done(std::move(tuple));
  if (tuple->children.empty())
    return fail("expected an expression, got " + describe(peek()));
  return std::move(tuple->children.front());
}

NodePtr Parser::parse_expression(bool allows_conditional) {
  const Nesting nesting(*this);
  if (failed())
    return nullptr;
  NodePtr node = parse_or();
  while (!failed() && allows_conditional && skip_name("if")) {
    NodePtr conditional = make_at(NodeKind::conditional, *node);
    conditional->children.push_back(std::move(node));
    conditional->children.push_back(parse_or());
    conditional->children.push_back(!failed() && skip_name("else") ? parse_expression() : nullptr);
    node = done(std::move(conditional));
  }
  return failed() ? nullptr : std::move(node);
}

NodePtr Parser::parse_or() {
  NodePtr first = parse_and();
  if (failed() || !is_name("or"))
    return first;
  NodePtr node = make_at(NodeKind::logic_or, *first);
  node->children.push_back(std::move(first));
  while (!failed() && skip_name("or"))
    node->children.push_back(parse_and());
  return done(std::move(node));
}

NodePtr Parser::parse_and() {
  NodePtr first = parse_not();
  if (failed() || !is_name("and"))
    return first;
  NodePtr node = make_at(NodeKind::logic_and, *first);
  node->children.push_back(std::move(first));
  while (!failed() && skip_name("and"))
    node->children.push_back(parse_not());
  return done(std::move(node));
}

NodePtr Parser::parse_not() {
  if (!is_name("not"))
    return parse_compare();
  const Nesting nesting(*this);
  NodePtr node = make(NodeKind::logic_not);
  take();
  if (!failed())
    node->children.push_back(parse_not());
  return done(std::move(node));
}

NodePtr Parser::parse_compare() {
  static constexpr std::array<std::pair<std::string_view, CompareOp>, 6> kOps = {
      {{"==", CompareOp::eq},
       {"!=", CompareOp::ne},
       {"<", CompareOp::lt},
       {"<=", CompareOp::le},
       {">", CompareOp::gt},
       {">=", CompareOp::ge}}};
  NodePtr first = parse_sum();
  NodePtr node;
  while (!failed()) {
    std::optional<CompareOp> op;
    for (const auto& [text, id] : kOps) {
      if (is_op(text))
        op = id;
    }
    if (is_name("in"))
      op = CompareOp::in;
    if (is_name("not") && is_name("in", 1)) {
      op = CompareOp::not_in;
      take();
    }
    if (!op)
      break;
    take();
    if (!node) {
      node = make_at(NodeKind::comparison, *first);
      node->children.push_back(std::move(first));
    }
    node->compare_ops.push_back(*op);
    node->children.push_back(parse_sum());
  }
  if (failed())
    return nullptr;
  return node ? done(std::move(node)) : std::move(first);
}

NodePtr Parser::chain(NodePtr first,
                      NodePtr (Parser::*next)(),
                      std::initializer_list<std::pair<std::string_view, BinaryOp>> ops) {
  NodePtr node;
  while (!failed()) {
    std::optional<BinaryOp> op;
    for (const auto& [text, id] : ops) {
      if (is_op(text))
        op = id;
    }
    if (!op)
      break;
    take();
    if (!node) {
      node = make_at(NodeKind::chain, *first);
      node->children.push_back(std::move(first));
    }
    node->ops.push_back(*op);
    node->children.push_back((this->*next)());
  }
  if (failed())
    return nullptr;
  return node ? done(std::move(node)) : std::move(first);
}

NodePtr Parser::parse_sum() {
  return chain(parse_concat(), &Parser::parse_concat, {{"+", BinaryOp::add}, {"-", BinaryOp::sub}});
}

NodePtr Parser::parse_concat() {
  NodePtr first = parse_product();
  if (failed() || !is_op("~"))
    return first;
  NodePtr node = make_at(NodeKind::concat, *first);
  node->children.push_back(std::move(first));
  while (!failed() && skip_op("~"))
    node->children.push_back(parse_product());
  return done(std::move(node));
}

NodePtr Parser::parse_product() {
  return chain(parse_power(),
               &Parser::parse_power,
               {{"*", BinaryOp::mul},
                {"/", BinaryOp::div},
                {"//", BinaryOp::floor_div},
                {"%", BinaryOp::mod}});
}

NodePtr Parser::parse_power() {
  NodePtr first = parse_unary(true);
  NodePtr node;
  while (!failed() && skip_op("**")) {
    if (!node) {
      node = make_at(NodeKind::chain, *first);
      node->children.push_back(std::move(first));
    }
    node->ops.push_back(BinaryOp::power);
    node->children.push_back(parse_unary(true));
  }
  if (failed())
    return nullptr;
  return node ? done(std::move(node)) : std::move(first);
}

NodePtr Parser::parse_unary(bool allows_filters) {
  const Nesting nesting(*this);
  if (failed())
    return nullptr;
  NodePtr node;
  if (is_op("-") || is_op("+")) {
    node = make(is_op("-") ? NodeKind::negative : NodeKind::positive);
    take();
    node->children.push_back(parse_unary(false));
    node = done(std::move(node));
  } else {
    node = parse_postfix(parse_primary());
  }
  if (failed() || !allows_filters)
    return node;
  // A filter on a negated number applies to the whole; on anything else postfixes came first.
  return parse_filters(parse_postfix(std::move(node)));
}

NodePtr Parser::parse_name_or_constant() {
  NodePtr node = make(NodeKind::literal);
  const std::string& text = peek().text;
  if (text == "true" || text == "True") {
    node->value = Value::of(true);
  } else if (text == "false" || text == "False") {
    node->value = Value::of(false);
  } else if (text == "none" || text == "None") {
    node->value = Value::none();
  } else {
    node->kind = NodeKind::name;
    node->text = text;
    result_.names.push_back(text);
  }
  take();
  return node;
}

NodePtr Parser::parse_primary() {
  switch (peek().kind) {
    case TokenKind::name:
      return parse_name_or_constant();
    case TokenKind::string: {
      NodePtr node = make(NodeKind::text_literal);
      while (peek().kind == TokenKind::string)
        node->text += take().text;
      node->literal_index = result_.num_literals++;
      return node;
    }
    case TokenKind::integer: {
      NodePtr node = make(NodeKind::literal);
      node->value = Value::of(take().integer);
      return node;
    }
    case TokenKind::real: {
      NodePtr node = make(NodeKind::literal);
      node->value = Value::of(take().real);
      return node;
    }
    default:
      break;
  }
  if (skip_op("(")) {
    NodePtr node = parse_tuple(true, true);
    return expect_op(")") ? std::move(node) : nullptr;
  }
  if (is_op("["))
    return parse_list();
  if (is_op("{"))
    return parse_dict();
  return fail("expected an expression, got " + describe(peek()));
}

NodePtr Parser::parse_list() {
  NodePtr node = make(NodeKind::list);
  take();
  while (!failed() && !is_op("]")) {
    node->children.push_back(parse_expression());
    if (failed() || !skip_op(","))
      break;
  }
  return !failed() && expect_op("]") ? done(std::move(node)) : nullptr;
}

NodePtr Parser::parse_dict() {
  NodePtr node = make(NodeKind::dict);
  take();
  while (!failed() && !is_op("}")) {
    node->children.push_back(parse_expression());
    if (failed() || !expect_op(":"))
      return nullptr;
    node->children.push_back(parse_expression());
    if (failed() || !skip_op(","))
      break;
  }
  return !failed() && expect_op("}") ? done(std::move(node)) : nullptr;
}

NodePtr Parser::parse_postfix(NodePtr node) {
  while (!failed()) {
    if (is_op("."))
      node = parse_dot(std::move(node));
    else if (is_op("["))
      node = parse_subscript(std::move(node));
    else if (is_op("("))
      node = parse_call(std::move(node));
    else
      return node;
  }
  return nullptr;
}

NodePtr Parser::parse_dot(NodePtr object) {
  NodePtr node = make(NodeKind::attribute);
  take();
  node->children.push_back(std::move(object));
  if (peek().kind == TokenKind::name) {
    node->text = take().text;
  } else if (peek().kind == TokenKind::integer) {
    node->kind = NodeKind::item;
    NodePtr index = make(NodeKind::literal);
    index->value = Value::of(take().integer);
    node->children.push_back(std::move(index));
  } else {
    return fail("expected a name or number after '.', got " + describe(peek()));
  }
  return done(std::move(node));
}

NodePtr Parser::parse_subscript(NodePtr object) {
  NodePtr node = make(NodeKind::slice);
  take();
  node->children.push_back(std::move(object));
  bool is_slice = false;
  for (int part = 0; part < 3 && !failed(); ++part) {
    const bool is_empty = is_op(":") || is_op("]");
    node->children.push_back(is_empty ? nullptr : parse_expression());
    if (failed() || !skip_op(":"))
      break;
    is_slice = true;
  }
  if (failed())
    return nullptr;
  if (is_op(","))
    return fail("subscripts of several values are not supported");
  if (!expect_op("]"))
    return nullptr;
  node->children.resize(is_slice ? 4 : 2);
  if (!is_slice) {
    node->kind = NodeKind::item;
    if (!node->children[1])
      return fail("expected an expression in '[]'");
  }
  return done(std::move(node));
}

bool Parser::parse_arguments(Node& node) {
  if (!expect_op("("))
    return false;
  while (!failed() && !is_op(")")) {
    if (is_op("*") || is_op("**")) {
      fail("unpacking arguments with '*' is not supported");
    } else if (peek().kind == TokenKind::name && is_op("=", 1)) {
      std::string name = take().text;
      take();
      NodePtr value = parse_expression();
      if (!failed())
        node.named_arguments.emplace_back(std::move(name), std::move(value));
    } else if (!node.named_arguments.empty()) {
      fail("a positional argument after a named one");
    } else {
      NodePtr value = parse_expression();
      if (!failed())
        node.arguments.push_back(std::move(value));
    }
    if (failed() || !skip_op(","))
      break;
  }
  return !failed() && expect_op(")");
}

NodePtr Parser::parse_call(NodePtr callee) {
  NodePtr node = make_at(NodeKind::call, *callee);
  node->children.push_back(std::move(callee));
  return parse_arguments(*node) ? done(std::move(node)) : nullptr;
}

NodePtr Parser::parse_filters(NodePtr node) {
  while (!failed()) {
    if (is_op("|"))
      node = parse_filter(std::move(node));
    else if (is_name("is"))
      node = parse_test(std::move(node));
    else if (is_op("("))  // calls what a filter gave
      node = parse_call(std::move(node));
    else
      return node;
  }
  return nullptr;
}

NodePtr Parser::parse_filter(NodePtr input) {
  take();  // '|', or the word before the first filter of a block
  NodePtr node = make(NodeKind::filter);
  if (peek().kind != TokenKind::name)
    return fail("expected the name of a filter, got " + describe(peek()));
  const std::optional<FilterId> id = filter_by_name(peek().text);
  if (!id)
    return fail("no filter named '" + peek().text.substr(0, 100) + "'");
  take();
  node->filter = *id;
  node->children.push_back(std::move(input));
  if (is_op("(") && !parse_arguments(*node))
    return nullptr;
  return done(std::move(node));
}

NodePtr Parser::parse_test(NodePtr input) {
  take();  // 'is'
  const bool is_negated = skip_name("not");
  NodePtr node = make(NodeKind::test);
  if (peek().kind != TokenKind::name)
    return fail("expected the name of a test, got " + describe(peek()));
  const std::optional<TestId> id = test_by_name(peek().text);
  if (!id)
    return fail("no test named '" + peek().text.substr(0, 100) + "'");
  take();
  node->test = *id;
  node->children.push_back(std::move(input));
  const TokenKind next = peek().kind;
  if (is_op("(")) {
    if (!parse_arguments(*node))
      return nullptr;
  } else if ((next == TokenKind::name || next == TokenKind::string || next == TokenKind::integer ||
              next == TokenKind::real || is_op("[") || is_op("{")) &&
             !is_name("else") && !is_name("or") && !is_name("and")) {
    if (is_name("is"))
      return fail("tests cannot be chained with 'is'");
    const Nesting nesting(*this);
    NodePtr argument = failed() ? nullptr : parse_postfix(parse_primary());
    if (failed())
      return nullptr;
    node->arguments.push_back(std::move(argument));
  }
  node = done(std::move(node));
  if (!is_negated || failed())
    return node;
  NodePtr negated = make_at(NodeKind::logic_not, *node);
  negated->children.push_back(std::move(node));
  return done(std::move(negated));
}

}  // namespace hadal::jinja
