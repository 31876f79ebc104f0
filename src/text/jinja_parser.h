// Tokens to a tree; recursion and tree height are bounded whatever the source.
#pragma once

#include <hadal/base/result.h>

#include "jinja_ast.h"
#include "jinja_lexer.h"

namespace hadal::jinja {

struct ParseLimits {
  int32_t nesting_max = 64;  ///< open brackets, operators and blocks inside each other
  int32_t height_max = 256;  ///< of the tree, which chains like `a.b.c|d|e` make high, too
};

Result<Template> parse(const std::vector<Token>& tokens, const ParseLimits& limits);

}  // namespace hadal::jinja
