// Messages arrive in many dialects: content as parts, null beside tool calls, `developer` and
// `function` roles. The template sees one.
#include "chat_request.h"

#include <algorithm>
#include <array>

namespace hadal::api {

namespace {

template <size_t kSize>
bool is_one_of(std::string_view text, const std::array<std::string_view, kSize>& names) {
  return std::find(names.begin(), names.end(), text) != names.end();
}

TemplateValue content_string(std::string text) {
  return TemplateValue{std::move(text), true};
}

/// Text parts joined by line breaks; nullopt after an error.
std::optional<std::string> join_parts(const TemplateValue::List& parts,
                                      const std::string& where,
                                      std::optional<ApiError>& error) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string part_name = where + "[" + std::to_string(i) + "]";
    const TemplateValue::Object* part = as_object(parts[i]);
    if (part == nullptr) {
      error = invalid_field(part_name, "expected an object with type and text");
      return std::nullopt;
    }
    FieldReader reader(*part, part_name + ".", error);
    const std::optional<std::string> type = reader.string("type", 64);
    if (!type || *type != "text") {
      const bool is_image = type && type->starts_with("image");
      reader.fail(
          "type",
          is_image ? "images are not supported, this model reads text only" : "expected \"text\"",
          "unsupported_content");
      return std::nullopt;
    }
    const std::optional<std::string> piece = reader.string("text", SIZE_MAX);
    if (!piece) {
      reader.fail("text", "expected a string");
      return std::nullopt;
    }
    text += i == 0 ? "" : "\n";
    text += *piece;
  }
  return text;
}

/// The content as a string, or null where an assistant message may have none.
TemplateValue normal_content(const TemplateValue* content,
                             std::string_view role,
                             const std::string& where,
                             std::optional<ApiError>& error) {
  if (content == nullptr) {
    if (role != "assistant") {
      error = invalid_field(where, "expected a string or a list of text parts, got null");
    }
    return {};
  }
  if (const std::string* text = as_string(*content)) {
    return content_string(*text);
  }
  const TemplateValue::List* parts = as_list(*content);
  if (parts == nullptr || parts->empty()) {
    error = invalid_field(where, "expected a string or a list of text parts");
    return {};
  }
  std::optional<std::string> text = join_parts(*parts, where, error);
  return text ? content_string(std::move(*text)) : TemplateValue{};
}

void check_tool_calls(FieldReader& message, const std::string& where) {
  const TemplateValue::List* calls = message.list("tool_calls", kToolsMax);
  if (calls == nullptr) {
    return;
  }
  for (size_t i = 0; i < calls->size(); ++i) {
    std::optional<ApiError> error;
    const TemplateValue::Object* call = as_object((*calls)[i]);
    const TemplateValue::Object* function =
        call == nullptr ? nullptr : FieldReader(*call, where, error).object("function");
    const bool has_name =
        function != nullptr && FieldReader(*function, where, error).string("name", 256);
    const TemplateValue* arguments =
        function == nullptr ? nullptr : FieldReader(*function, where, error).find("arguments");
    const bool has_arguments = arguments != nullptr && (as_string(*arguments) != nullptr ||
                                                        as_object(*arguments) != nullptr);
    if (!has_name || !has_arguments) {
      message.fail("tool_calls",
                   "entry " + std::to_string(i) +
                       " must be an object with function.name and function.arguments");
      return;
    }
  }
}

/// Templates read `tool_calls[].type`; clients may leave it out.
TemplateValue normal_tool_calls(const TemplateValue& calls) {
  TemplateValue::List list = *as_list(calls);
  for (TemplateValue& entry : list) {
    TemplateValue::Object call = *as_object(entry);
    const bool has_type = std::any_of(
        call.begin(), call.end(), [](const auto& member) { return member.first == "type"; });
    if (!has_type) {
      call.emplace_back("type", content_string("function"));
    }
    entry.value = std::make_shared<const TemplateValue::Object>(std::move(call));
  }
  return {std::make_shared<const TemplateValue::List>(std::move(list)), true};
}

TemplateValue normal_message(const TemplateValue& value,
                             size_t index,
                             std::optional<ApiError>& error) {
  constexpr std::array<std::string_view, 6> kRoles = {
      "system", "developer", "user", "assistant", "tool", "function"};
  const std::string where = "messages[" + std::to_string(index) + "]";
  const TemplateValue::Object* message = as_object(value);
  if (message == nullptr) {
    error = invalid_field(where, "expected an object with role and content");
    return {};
  }
  FieldReader reader(*message, where + ".", error);
  std::optional<std::string> role = reader.string("role", 64);
  if (!role || !is_one_of(*role, kRoles)) {
    reader.fail("role", "expected system, developer, user, assistant, tool or function");
    return {};
  }
  *role = *role == "developer" ? "system" : *role == "function" ? "tool" : *role;
  TemplateValue content = normal_content(reader.find("content"), *role, where + ".content", error);
  if (*role == "assistant") {
    check_tool_calls(reader, where);
  }
  if (reader.failed()) {
    return {};
  }
  TemplateValue::Object normal = {{"role", content_string(*role)}, {"content", std::move(content)}};
  for (const auto& [key, member] : *message) {
    if (key == "role" || key == "content" || std::holds_alternative<std::monostate>(member.value)) {
      continue;
    }
    if (key == "tool_calls") {
      const bool has_calls = *role == "assistant" && !as_list(member)->empty();
      if (has_calls) {
        normal.emplace_back(key, normal_tool_calls(member));
      }
      continue;
    }
    normal.emplace_back(key, member);
  }
  return {std::make_shared<const TemplateValue::Object>(std::move(normal)), true};
}

void read_messages(FieldReader& fields, ChatRequest& request, std::optional<ApiError>& error) {
  const TemplateValue::List* messages = fields.list("messages", kMessagesMax);
  if (messages == nullptr || messages->empty()) {
    fields.fail("messages", "expected at least one message");
    return;
  }
  if (fields.has("prompt")) {
    fields.fail("prompt", "a chat takes messages; prompt belongs to /v1/completions");
    return;
  }
  request.messages.reserve(messages->size());
  for (size_t i = 0; i < messages->size() && !error; ++i) {
    request.messages.push_back(normal_message((*messages)[i], i, error));
  }
}

void check_tools(FieldReader& fields, const TemplateValue::List& tools) {
  std::vector<std::string> names;
  for (size_t i = 0; i < tools.size(); ++i) {
    std::optional<ApiError> error;
    const TemplateValue::Object* tool = as_object(tools[i]);
    const TemplateValue::Object* function =
        tool == nullptr ? nullptr : FieldReader(*tool, "", error).object("function");
    std::optional<std::string> name;
    if (function != nullptr) {
      name = FieldReader(*function, "", error).string("name", 256);
    }
    if (!name || name->empty() || error) {
      fields.fail("tools",
                  "entry " + std::to_string(i) +
                      " must be {\"type\": \"function\", \"function\": {\"name\": ...}}");
      return;
    }
    names.push_back(std::move(*name));
  }
  std::sort(names.begin(), names.end());
  if (std::adjacent_find(names.begin(), names.end()) != names.end()) {
    fields.fail("tools", "two functions have the same name");
  }
}

void read_tools(FieldReader& fields, ChatRequest& request) {
  const TemplateValue::List* tools = fields.list("tools", kToolsMax);
  std::string choice = "auto";
  if (const TemplateValue* value = fields.find("tool_choice")) {
    const std::string* text = as_string(*value);
    if (text == nullptr || *text == "required") {
      fields.fail(
          "tool_choice",
          "only \"auto\" and \"none\" are available; forcing a call needs structured output",
          "unsupported_parameter");
      return;
    }
    if (*text != "auto" && *text != "none") {
      fields.fail("tool_choice", "expected \"auto\" or \"none\"");
      return;
    }
    choice = *text;
  }
  request.has_single_tool_call = !fields.boolean("parallel_tool_calls").value_or(true);
  if (tools == nullptr || tools->empty()) {
    return;
  }
  check_tools(fields, *tools);
  if (choice == "auto") {
    request.tools = *tools;
    request.parses_tool_calls = true;
  }
}

void read_template_kwargs(FieldReader& fields, ChatRequest& request) {
  constexpr std::array<std::string_view, 10> kReserved = {"messages",
                                                          "tools",
                                                          "documents",
                                                          "add_generation_prompt",
                                                          "continue_final_message",
                                                          "bos_token",
                                                          "eos_token",
                                                          "tokenize",
                                                          "chat_template",
                                                          "self"};
  const TemplateValue::Object* kwargs = fields.object("chat_template_kwargs");
  if (kwargs != nullptr) {
    if (kwargs->size() > kTemplateKwargsMax) {
      fields.fail("chat_template_kwargs",
                  "expected at most " + std::to_string(kTemplateKwargsMax) + " variables");
      return;
    }
    for (const auto& [name, value] : *kwargs) {
      if (is_one_of(name, kReserved)) {
        fields.fail("chat_template_kwargs", "one of the names is reserved for the server");
        return;
      }
    }
    request.template_kwargs = *kwargs;
  }
  constexpr std::array<std::string_view, 7> kEfforts = {
      "none", "minimal", "low", "medium", "high", "xhigh", "max"};
  const std::optional<std::string> effort = fields.string("reasoning_effort", 64);
  if (effort && !is_one_of(*effort, kEfforts)) {
    fields.fail("reasoning_effort", "expected none, minimal, low, medium, high, xhigh or max");
    return;
  }
  if (effort && *effort == "none") {
    for (const char* name : {"thinking", "enable_thinking"}) {
      const bool is_given = std::any_of(request.template_kwargs.begin(),
                                        request.template_kwargs.end(),
                                        [&](const auto& member) { return member.first == name; });
      if (!is_given) {
        request.template_kwargs.emplace_back(name, TemplateValue{false});
      }
    }
  }
}

void read_logprobs(FieldReader& fields, GenerationFields& out) {
  const bool wants = fields.boolean("logprobs").value_or(false);
  const std::optional<int64_t> top = fields.integer("top_logprobs", 0, kTopLogprobsMax);
  if (top && *top > 0 && !wants) {
    fields.fail("top_logprobs", "needs logprobs: true");
  }
  out.sampling.num_top_logprobs = wants ? static_cast<int32_t>(top.value_or(0)) : -1;
}

void check_modalities(FieldReader& fields) {
  const TemplateValue::List* modalities = fields.list("modalities", 16);
  for (size_t i = 0; modalities != nullptr && i < modalities->size(); ++i) {
    const std::string* name = as_string((*modalities)[i]);
    if (name == nullptr || *name != "text") {
      fields.fail("modalities", "only \"text\" is available", "unsupported_parameter");
    }
  }
}

}  // namespace

ApiResult<ChatRequest> parse_chat_request(const TemplateValue& body, const FieldContext& context) {
  std::optional<ApiError> error;
  FieldReader fields(*as_object(body), "", error);
  ChatRequest request;
  request.fields = read_generation_fields(fields, context);
  if (request.fields.max_tokens && *request.fields.max_tokens < 1) {
    const bool is_new_name = fields.has("max_completion_tokens");
    fields.fail(is_new_name ? "max_completion_tokens" : "max_tokens", "expected at least 1, got 0");
  }
  read_logprobs(fields, request.fields);
  check_modalities(fields);
  read_tools(fields, request);
  read_template_kwargs(fields, request);
  request.continues_final_message = fields.boolean("continue_final_message");
  request.separates_reasoning = fields.boolean("separate_reasoning");
  request.includes_reasoning = fields.boolean("include_reasoning").value_or(true);
  read_messages(fields, request, error);
  if (error) {
    return std::move(*error);
  }
  return request;
}

}  // namespace hadal::api
