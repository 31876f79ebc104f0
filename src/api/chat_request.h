// The body of /v1/chat/completions, validated and normalised to what chat templates expect.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "generation_fields.h"

namespace hadal::api {

struct ChatRequest {
  GenerationFields fields;
  /// Objects with role, content (a string or null) and whatever else the client sent.
  TemplateValue::List messages;
  TemplateValue::List tools;  ///< empty = none
  bool parses_tool_calls = false;
  bool has_single_tool_call = false;            ///< `parallel_tool_calls: false`
  TemplateValue::Object template_kwargs;        ///< variables for the template
  std::optional<bool> continues_final_message;  ///< as sent
  std::optional<bool> separates_reasoning;
  bool includes_reasoning = true;
};

inline constexpr size_t kMessagesMax = 10'000;
inline constexpr size_t kToolsMax = 1'000;
inline constexpr size_t kTemplateKwargsMax = 16;

ApiResult<ChatRequest> parse_chat_request(const TemplateValue& body, const FieldContext& context);

}  // namespace hadal::api
