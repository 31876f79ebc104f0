// The parsed template: a tree of nodes of bounded height, shared by all renders and never changed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "jinja_value.h"

namespace hadal::jinja {

enum class Builtin : uint8_t {
  range,
  name_space,
  dict,
  raise_exception,
  strftime_now,
};

enum class FilterId : uint8_t;
enum class TestId : uint8_t;

enum class NodeKind : uint8_t {
  // Expressions
  literal,       // value
  text_literal,  // text
  name,          // text
  list,          // children
  tuple,         // children
  dict,          // children: key, value, key, value...
  chain,         // children with ops between them, left to right (arithmetic)
  concat,        // children (~)
  logic_and,     // children
  logic_or,      // children
  logic_not,     // children[0]
  negative,      // children[0]
  positive,      // children[0]
  comparison,    // children with compare_ops between them
  conditional,   // children: then, condition, else (may be null)
  attribute,     // children[0], text
  item,          // children[0], children[1]
  slice,         // children[0], then start, stop, step (may be null)
  call,          // children[0]; arguments
  filter,        // children[0] (null inside a filter block); filter; arguments
  test,          // children[0]; test; arguments
  // Statements
  data,          // text
  output,        // children[0]
  if_block,      // children: condition, body, condition, body, ..., [else body]
  for_block,     // targets; children: iterable, filter (may be null), body, else body (may be null)
  set,           // targets; children[0] value
  set_block,     // targets; children: body, then filters as filter nodes around null
  macro,         // text name; targets parameters; children: body, defaults of the last parameters
  with_block,    // targets; children: body, values
  filter_block,  // children: body, filter expression around null
  body,          // children
  break_loop,
  continue_loop,
};

enum class CompareOp : uint8_t { eq, ne, lt, le, gt, ge, in, not_in };

struct Node;
using NodePtr = std::unique_ptr<Node>;

/// Where a value is stored: a name, `namespace.attribute`, or a tuple of targets.
struct Target {
  std::string name;
  std::string attribute;
  std::vector<Target> parts;
};

struct Node {
  NodeKind kind = NodeKind::body;
  int32_t line = 0;
  int32_t column = 0;
  int32_t height = 1;
  Value value;
  std::string text;
  int32_t literal_index = 0;  // of a text_literal
  std::vector<NodePtr> children;
  std::vector<BinaryOp> ops;
  std::vector<CompareOp> compare_ops;
  std::vector<NodePtr> arguments;
  std::vector<std::pair<std::string, NodePtr>> named_arguments;
  FilterId filter{};
  TestId test{};
  std::vector<Target> targets;
};

struct Template {
  NodePtr root;
  int32_t num_literals = 0;
  std::vector<std::string> names;  // every variable that is read somewhere, sorted
};

}  // namespace hadal::jinja
