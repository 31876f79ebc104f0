// Statements. Blocks nest, so each counts as a level of nesting.
#include "jinja_parser.h"

#include <algorithm>

#include "jinja_filters.h"
#include "jinja_parser_impl.h"

namespace hadal::jinja {

void Parser::parse_template() {
  result_.root = parse_body({});
  std::vector<std::string>& names = result_.names;
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
}

/// Ends before the name of one of `ends` (after its "{%"), or at the end of the template.
NodePtr Parser::parse_body(std::initializer_list<std::string_view> ends) {
  const Nesting nesting(*this);
  NodePtr body = make(NodeKind::body);
  while (!failed()) {
    const Token& token = peek();
    if (token.kind == TokenKind::end) {
      if (ends.size() != 0)
        fail("end of template where '" + std::string(*(ends.end() - 1)) + "' was expected");
      break;
    }
    if (token.kind == TokenKind::data) {
      NodePtr data = make(NodeKind::data);
      data->text = take().text;
      body->children.push_back(std::move(data));
    } else if (token.kind == TokenKind::variable_begin) {
      NodePtr output = make(NodeKind::output);
      take();
      output->children.push_back(parse_tuple(true));
      if (!failed() && expect(TokenKind::variable_end, "'}}'"))
        body->children.push_back(done(std::move(output)));
    } else {
      take();  // block_begin
      for (const std::string_view end : ends) {
        if (is_name(end))
          return done(std::move(body));
      }
      NodePtr statement = parse_statement();
      if (!failed())
        body->children.push_back(std::move(statement));
    }
  }
  return done(std::move(body));
}

NodePtr Parser::parse_statement() {
  if (peek().kind != TokenKind::name)
    return fail("expected the name of a tag, got " + describe(peek()));
  const std::string& tag = peek().text;
  if (tag == "if")
    return parse_if();
  if (tag == "for")
    return parse_for();
  if (tag == "set")
    return parse_set();
  if (tag == "macro")
    return parse_macro();
  if (tag == "with")
    return parse_with();
  if (tag == "filter")
    return parse_filter_block();
  if (tag == "generation")
    return parse_generation();
  if (tag == "break")
    return parse_loop_control(NodeKind::break_loop);
  if (tag == "continue")
    return parse_loop_control(NodeKind::continue_loop);
  for (const std::string_view known : {"call",
                                       "block",
                                       "extends",
                                       "include",
                                       "import",
                                       "from",
                                       "autoescape",
                                       "do",
                                       "print",
                                       "trans",
                                       "debug"}) {
    if (tag == known)
      return fail("the tag '" + tag + "' is not supported");
  }
  return fail("unknown tag '" + tag.substr(0, 100) + "'");
}

bool Parser::end_block() {
  take();  // the end tag's name
  return expect(TokenKind::block_end, "'%}'");
}

NodePtr Parser::parse_if() {
  NodePtr node = make(NodeKind::if_block);
  while (!failed()) {
    take();  // 'if' or 'elif'
    node->children.push_back(parse_tuple(false));
    if (failed() || !expect(TokenKind::block_end, "'%}'"))
      return nullptr;
    node->children.push_back(parse_body({"elif", "else", "endif"}));
    if (failed() || is_name("elif"))
      continue;
    if (is_name("else")) {
      if (!end_block())
        return nullptr;
      node->children.push_back(parse_body({"endif"}));
    }
    return !failed() && end_block() ? done(std::move(node)) : nullptr;
  }
  return nullptr;
}

bool Parser::parse_target_part(Target& target, bool allows_attribute) {
  const Nesting nesting(*this);
  if (failed())
    return false;
  if (skip_op("("))
    return parse_target(target, false) && expect_op(")");
  if (peek().kind != TokenKind::name) {
    fail("expected a name to assign to, got " + describe(peek()));
    return false;
  }
  for (const std::string_view constant :
       {"true", "True", "false", "False", "none", "None", "loop"}) {
    if (peek().text == constant) {
      fail("cannot assign to '" + peek().text + "'");
      return false;
    }
  }
  target.name = take().text;
  if (allows_attribute && skip_op(".")) {
    if (peek().kind != TokenKind::name) {
      fail("expected the name of an attribute, got " + describe(peek()));
      return false;
    }
    target.attribute = take().text;
  }
  return true;
}

bool Parser::parse_target(Target& target, bool allows_attribute) {
  Target first;
  if (!parse_target_part(first, allows_attribute))
    return false;
  if (!is_op(",")) {
    target = std::move(first);
    return true;
  }
  target.parts.push_back(std::move(first));
  while (skip_op(",")) {
    if (peek().kind != TokenKind::name && !is_op("("))
      break;  // a trailing comma
    if (is_name("in"))
      break;
    Target part;
    if (!parse_target_part(part, allows_attribute))
      return false;
    target.parts.push_back(std::move(part));
  }
  return true;
}

NodePtr Parser::parse_for() {
  NodePtr node = make(NodeKind::for_block);
  take();
  node->targets.emplace_back();
  if (!parse_target(node->targets[0], false))
    return nullptr;
  if (!skip_name("in"))
    return fail("expected 'in', got " + describe(peek()));
  node->children.push_back(parse_tuple(false));
  node->children.push_back(!failed() && skip_name("if") ? parse_expression() : nullptr);
  if (failed())
    return nullptr;
  if (is_name("recursive"))
    return fail("recursive loops are not supported");
  if (!expect(TokenKind::block_end, "'%}'"))
    return nullptr;
  ++loops_;
  node->children.push_back(parse_body({"else", "endfor"}));
  --loops_;
  const bool has_else = !failed() && is_name("else");
  if (failed() || (has_else && !end_block()))
    return nullptr;
  node->children.push_back(has_else ? parse_body({"endfor"}) : nullptr);
  return !failed() && end_block() ? done(std::move(node)) : nullptr;
}

NodePtr Parser::parse_set() {
  NodePtr node = make(NodeKind::set);
  take();
  node->targets.emplace_back();
  if (!parse_target(node->targets[0], true))
    return nullptr;
  if (skip_op("=")) {
    node->children.push_back(parse_tuple(true));
    return !failed() && expect(TokenKind::block_end, "'%}'") ? done(std::move(node)) : nullptr;
  }
  node->kind = NodeKind::set_block;
  node->children.push_back(nullptr);  // the body
  NodePtr filters;
  while (!failed() && is_op("|"))
    filters = parse_filter(std::move(filters));
  if (failed() || !expect(TokenKind::block_end, "'%}'"))
    return nullptr;
  node->children.push_back(std::move(filters));
  node->children[0] = parse_body({"endset"});
  return !failed() && end_block() ? done(std::move(node)) : nullptr;
}

NodePtr Parser::parse_macro() {
  NodePtr node = make(NodeKind::macro);
  take();
  if (peek().kind != TokenKind::name)
    return fail("expected the name of a macro, got " + describe(peek()));
  node->text = take().text;
  if (!expect_op("("))
    return nullptr;
  std::vector<NodePtr> defaults;
  while (!failed() && !is_op(")")) {
    Target parameter;
    if (!parse_target_part(parameter, false))
      return nullptr;
    if (!parameter.parts.empty())
      return fail("expected the name of a parameter");
    node->targets.push_back(std::move(parameter));
    if (skip_op("="))
      defaults.push_back(parse_expression());
    else if (!defaults.empty())
      return fail("a parameter without default after one with");
    if (failed() || !skip_op(","))
      break;
  }
  if (failed() || !expect_op(")") || !expect(TokenKind::block_end, "'%}'"))
    return nullptr;
  const int32_t loops_outside = loops_;
  loops_ = 0;
  node->children.push_back(parse_body({"endmacro"}));
  loops_ = loops_outside;
  for (NodePtr& value : defaults)
    node->children.push_back(std::move(value));
  return !failed() && end_block() ? done(std::move(node)) : nullptr;
}

NodePtr Parser::parse_with() {
  NodePtr node = make(NodeKind::with_block);
  take();
  node->children.push_back(nullptr);  // the body
  while (!failed() && peek().kind != TokenKind::block_end) {
    node->targets.emplace_back();
    if (!parse_target_part(node->targets.back(), false) || !expect_op("="))
      return nullptr;
    node->children.push_back(parse_expression());
    if (failed() || !skip_op(","))
      break;
  }
  if (failed() || !expect(TokenKind::block_end, "'%}'"))
    return nullptr;
  node->children[0] = parse_body({"endwith"});
  return !failed() && end_block() ? done(std::move(node)) : nullptr;
}

NodePtr Parser::parse_filter_block() {
  NodePtr node = make(NodeKind::filter_block);
  NodePtr filters = parse_filter(nullptr);
  while (!failed() && is_op("|"))
    filters = parse_filter(std::move(filters));
  if (failed() || !expect(TokenKind::block_end, "'%}'"))
    return nullptr;
  node->children.push_back(parse_body({"endfilter"}));
  node->children.push_back(std::move(filters));
  return !failed() && end_block() ? done(std::move(node)) : nullptr;
}

/// Marks what the model said, for training; renders as its body, whose assignments stay inside.
NodePtr Parser::parse_generation() {
  NodePtr node = make(NodeKind::with_block);
  take();
  if (!expect(TokenKind::block_end, "'%}'"))
    return nullptr;
  const int32_t loops_outside = loops_;
  loops_ = 0;
  node->children.push_back(parse_body({"endgeneration"}));
  loops_ = loops_outside;
  return !failed() && end_block() ? done(std::move(node)) : nullptr;
}

NodePtr Parser::parse_loop_control(NodeKind kind) {
  if (loops_ == 0)
    return fail("'" + peek().text + "' outside of a loop");
  NodePtr node = make(kind);
  take();
  return expect(TokenKind::block_end, "'%}'") ? std::move(node) : nullptr;
}

Result<Template> parse(const std::vector<Token>& tokens, const ParseLimits& limits) {
  Parser parser(tokens, limits);
  parser.parse_template();
  if (parser.error())
    return *parser.error();
  return parser.take_result();
}

}  // namespace hadal::jinja
