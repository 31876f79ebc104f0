// Strict accessors for the tokenizer files' JSON: no coercion, every error names its field.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <hadal/base/result.h>

#include "tokenizer_added.h"

namespace hadal {

/// A JSON value and the path that leads to it ("tokenizer.json: model.vocab").
struct JsonField {
  const nlohmann::json* value = nullptr;  ///< null: absent
  std::string path;

  bool is_absent() const { return value == nullptr || value->is_null(); }

  JsonField member(std::string_view name) const;
  JsonField element(size_t index) const;

  Error expected(std::string_view what) const;  ///< data_loss
  Error refused(std::string_view why) const;    ///< unsupported

  Result<std::string> string() const;
  Result<bool> boolean_or(bool fallback) const;
  Result<int64_t> integer(int64_t min, int64_t max) const;
  Status require_object() const;
  Status require_array() const;
};

/// An entry of `added_tokens` or `added_tokens_decoder`; single_word is refused.
Result<AddedToken> read_added_token(const JsonField& item, TokenId id);

}  // namespace hadal
