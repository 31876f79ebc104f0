// The body of /v1/completions, validated.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "generation_fields.h"

namespace hadal::api {

struct CompletionRequest {
  GenerationFields fields;
  /// One entry per prompt: text, or token ids taken as they are.
  std::vector<std::variant<std::string, std::vector<TokenId>>> prompts;
  bool echoes = false;
};

inline constexpr size_t kPromptsMax = 128;
inline constexpr size_t kPromptTokensMax = 1 << 20;
inline constexpr int64_t kCompletionLogprobsMax = 5;

ApiResult<CompletionRequest> parse_completion_request(const TemplateValue& body,
                                                      const FieldContext& context);

/// A prompt in any of OpenAI's four forms (text, texts, ids, lists of ids) from the field `name`.
std::vector<std::variant<std::string, std::vector<TokenId>>> read_prompts(
    FieldReader& fields, std::string_view name, const FieldContext& context);

}  // namespace hadal::api
