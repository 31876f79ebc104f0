// A prompt is a string, a list of strings, a list of ids or a list of lists of ids; mixtures are
// refused.
#include "completion_request.h"

namespace hadal::api {

namespace {

using Prompt = std::variant<std::string, std::vector<TokenId>>;

constexpr std::string_view kExpected =
    "expected a string, a list of strings, a list of token ids, or a list of those";

std::optional<std::vector<TokenId>> read_ids(FieldReader& fields,
                                             std::string_view name,
                                             const TemplateValue::List& items,
                                             const FieldContext& context) {
  if (items.empty()) {
    fields.fail(name, "a list of token ids is empty");
    return std::nullopt;
  }
  std::vector<TokenId> ids;
  ids.reserve(items.size());
  for (const TemplateValue& item : items) {
    const auto* integer = std::get_if<int64_t>(&item.value);
    if (integer == nullptr || *integer < 0 || *integer >= context.vocab_size) {
      fields.fail(
          name,
          "every token id must be an integer from 0 to " + std::to_string(context.vocab_size - 1));
      return std::nullopt;
    }
    ids.push_back(static_cast<TokenId>(*integer));
  }
  return ids;
}

std::vector<Prompt> read_prompt_list(FieldReader& fields,
                                     std::string_view name,
                                     const TemplateValue::List& items,
                                     const FieldContext& context) {
  std::vector<Prompt> prompts;
  if (items.size() > kPromptsMax) {
    fields.fail(name,
                "expected at most " + std::to_string(kPromptsMax) + " prompts, got " +
                    std::to_string(items.size()));
    return prompts;
  }
  const bool is_text = as_string(items.front()) != nullptr;
  for (const TemplateValue& item : items) {
    const std::string* text = as_string(item);
    const TemplateValue::List* ids = as_list(item);
    if (is_text && text != nullptr) {
      prompts.emplace_back(*text);
    } else if (!is_text && ids != nullptr) {
      auto read = read_ids(fields, name, *ids, context);
      if (!read) {
        break;
      }
      prompts.emplace_back(std::move(*read));
    } else {
      fields.fail(name, std::string(kExpected));
      break;
    }
  }
  return prompts;
}

}  // namespace

std::vector<Prompt> read_prompts(FieldReader& fields,
                                 std::string_view name,
                                 const FieldContext& context) {
  std::vector<Prompt> prompts;
  const TemplateValue* value = fields.find(name);
  if (value == nullptr) {
    fields.fail(name, std::string(kExpected) + ", got nothing");
    return prompts;
  }
  if (const std::string* text = as_string(*value)) {
    prompts.emplace_back(*text);
    return prompts;
  }
  const TemplateValue::List* items = as_list(*value);
  if (items == nullptr || items->empty() || items->size() > kPromptTokensMax) {
    fields.fail(name, std::string(kExpected));
    return prompts;
  }
  if (as_string(items->front()) != nullptr || as_list(items->front()) != nullptr) {
    return read_prompt_list(fields, name, *items, context);
  }
  if (auto ids = read_ids(fields, name, *items, context)) {
    prompts.emplace_back(std::move(*ids));
  }
  return prompts;
}

ApiResult<CompletionRequest> parse_completion_request(const TemplateValue& body,
                                                      const FieldContext& context) {
  std::optional<ApiError> error;
  FieldReader fields(*as_object(body), "", error);
  CompletionRequest request;
  request.fields = read_generation_fields(fields, context);
  if (fields.has("messages")) {
    fields.fail("messages", "a completion takes prompt; messages belong to /v1/chat/completions");
  }
  request.prompts = read_prompts(fields, "prompt", context);
  request.echoes = fields.boolean("echo").value_or(false);
  if (const auto top = fields.integer("logprobs", 0, kCompletionLogprobsMax)) {
    request.fields.sampling.num_top_logprobs = static_cast<int32_t>(*top);
  }
  if (request.fields.max_tokens && *request.fields.max_tokens == 0 && !request.echoes) {
    fields.fail("max_tokens", "expected at least 1 (0 needs echo: true), got 0");
  }
  const int64_t num_choices =
      static_cast<int64_t>(request.prompts.size()) * request.fields.num_choices;
  if (num_choices > kChoicesMax) {
    fields.fail("n",
                "prompts times n is " + std::to_string(num_choices) + ", expected at most " +
                    std::to_string(kChoicesMax));
  }
  if (error) {
    return std::move(*error);
  }
  return request;
}

}  // namespace hadal::api
