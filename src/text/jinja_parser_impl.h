// The parser's inside, shared by the expression half and the statement half. The first error
// sticks; after it every function returns null at once.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>

#include "jinja_parser.h"

namespace hadal::jinja {

class Parser {
 public:
  Parser(const std::vector<Token>& tokens, const ParseLimits& limits)
      : tokens_(tokens), limits_(limits) {}

  Template take_result() { return std::move(result_); }

  void parse_template();

  const std::optional<Error>& error() const { return error_; }

 private:
  /// Counts one level of nesting for its lifetime.
  class Nesting {
   public:
    explicit Nesting(Parser& parser) : parser_(parser) {
      if (++parser_.nesting_ > parser_.limits_.nesting_max)
        parser_.fail("nested deeper than " + std::to_string(parser_.limits_.nesting_max) +
                     " levels");
    }

    ~Nesting() { --parser_.nesting_; }

    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    Parser& parser_;
  };

  const Token& peek(size_t ahead = 0) const {
    const size_t index = at_ + ahead;
    return index < tokens_.size() ? tokens_[index] : tokens_.back();
  }

  const Token& take() { return at_ + 1 < tokens_.size() ? tokens_[at_++] : tokens_.back(); }

  bool failed() const { return error_.has_value(); }

  NodePtr fail(const std::string& message);
  bool is_op(std::string_view op, size_t ahead = 0) const;
  bool is_name(std::string_view name, size_t ahead = 0) const;
  bool skip_op(std::string_view op);
  bool skip_name(std::string_view name);
  bool expect_op(std::string_view op);
  bool expect(TokenKind kind, const char* what);
  std::string describe(const Token& token) const;

  NodePtr make(NodeKind kind) const;
  NodePtr make_at(NodeKind kind, const Node& place) const;
  /// Sets the height from the children; fails if it is too large.
  NodePtr done(NodePtr node);

  // Expressions
  NodePtr parse_tuple(bool allows_conditional, bool in_parentheses = false);
  NodePtr parse_expression(bool allows_conditional = true);
  NodePtr parse_or();
  NodePtr parse_and();
  NodePtr parse_not();
  NodePtr parse_compare();
  NodePtr parse_sum();
  NodePtr parse_concat();
  NodePtr parse_product();
  NodePtr parse_power();
  NodePtr parse_unary(bool allows_filters);
  NodePtr parse_primary();
  NodePtr parse_name_or_constant();
  NodePtr parse_list();
  NodePtr parse_dict();
  NodePtr parse_postfix(NodePtr node);
  NodePtr parse_dot(NodePtr node);
  NodePtr parse_subscript(NodePtr node);
  NodePtr parse_call(NodePtr node);
  bool parse_arguments(Node& node);
  NodePtr parse_filters(NodePtr node);
  NodePtr parse_filter(NodePtr node);
  NodePtr parse_test(NodePtr node);
  NodePtr chain(NodePtr first,
                NodePtr (Parser::*next)(),
                std::initializer_list<std::pair<std::string_view, BinaryOp>> ops);

  // Statements
  NodePtr parse_body(std::initializer_list<std::string_view> ends);
  NodePtr parse_statement();
  NodePtr parse_if();
  NodePtr parse_for();
  NodePtr parse_set();
  NodePtr parse_macro();
  NodePtr parse_with();
  NodePtr parse_filter_block();
  NodePtr parse_generation();
  NodePtr parse_loop_control(NodeKind kind);
  bool end_block();
  bool parse_target(Target& target, bool allows_attribute);
  bool parse_target_part(Target& target, bool allows_attribute);

  const std::vector<Token>& tokens_;
  ParseLimits limits_;
  size_t at_ = 0;
  int32_t nesting_ = 0;
  int32_t loops_ = 0;
  Template result_;
  std::optional<Error> error_;
};

}  // namespace hadal::jinja
