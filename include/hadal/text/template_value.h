// The values a chat template sees: JSON with ordered objects, and strings that know whether they
// are request data.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace hadal {

/// A JSON-like value. Lists and objects are shared and immutable once built, so that copies are
/// cheap.
struct TemplateValue {
  using List = std::vector<TemplateValue>;
  using Object =
      std::vector<std::pair<std::string, TemplateValue>>;  // insertion order, unique keys

  std::variant<std::monostate,
               bool,
               int64_t,
               double,
               std::string,
               std::shared_ptr<const List>,
               std::shared_ptr<const Object>>
      value;
  /// For strings, lists and objects: the bytes came from a request (PromptText::content).
  bool is_content = false;
};

}  // namespace hadal
