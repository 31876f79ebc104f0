// Building the template's context, and what templates leave to the server.
//
// A continued message is request data, but its think markers must become tokens: the model wrote
// them, and without them the state "inside thinking" would be lost. Only those two are let through.
#include "chat_prompt.h"

#include <algorithm>

#include "json_writer.h"

namespace hadal::api {

namespace {

constexpr std::string_view kThinkOpen = "<think>";
constexpr std::string_view kThinkClose = "</think>";

constexpr std::string_view kToolPreamble =
    "You can call the functions listed below. To call some, end your answer with exactly this "
    "block and nothing after it, one call for each function:\n"
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n"
    "```json\n"
    "{\"argument\": \"value\"}\n"
    "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n"
    "Give the arguments as a JSON object that follows the function's parameters. If no function "
    "fits, answer without the block.\n\nFunctions, as a JSON list:\n";

TemplateValue list_value(TemplateValue::List items) {
  return {std::make_shared<const TemplateValue::List>(std::move(items)), true};
}

TemplateValue token_text(const Tokenizer& tokenizer, std::optional<TokenId> id) {
  return {id ? std::string(tokenizer.bytes(*id)) : std::string(), false};
}

const std::string* member_text(const TemplateValue& message, std::string_view name) {
  for (const auto& [key, value] : *as_object(message)) {
    if (key == name) {
      return as_string(value);
    }
  }
  return nullptr;
}

bool has_member(const TemplateValue& message, std::string_view name) {
  const TemplateValue::Object& members = *as_object(message);
  return std::any_of(
      members.begin(), members.end(), [&](const auto& member) { return member.first == name; });
}

class Renderer {
 public:
  Renderer(const ChatTemplate& chat_template,
           const Tokenizer& tokenizer,
           const ChatRequest& request)
      : template_(&chat_template), tokenizer_(&tokenizer), request_(&request) {}

  Result<PromptText> render(TemplateValue::List messages, const TemplateValue::List& tools) const {
    TemplateValue::Object context = {{"messages", list_value(std::move(messages))},
                                     {"tools", tools.empty() ? TemplateValue{} : list_value(tools)},
                                     {"documents", {}},
                                     {"add_generation_prompt", {true}},
                                     {"bos_token", token_text(*tokenizer_, tokenizer_->bos_id())},
                                     {"eos_token", token_text(*tokenizer_, tokenizer_->eos_id())}};
    context.insert(
        context.end(), request_->template_kwargs.begin(), request_->template_kwargs.end());
    return template_->render(
        {std::make_shared<const TemplateValue::Object>(std::move(context)), false});
  }

 private:
  const ChatTemplate* template_;
  const Tokenizer* tokenizer_;
  const ChatRequest* request_;
};

void append_json_value(const TemplateValue& value, std::string& out);

/// Depth is bounded by the request parser.
void append_json_members(const TemplateValue::Object& members, std::string& out) {
  out += '{';
  for (size_t i = 0; i < members.size(); ++i) {
    out += i == 0 ? "" : ", ";
    append_json_string(out, members[i].first);
    out += ": ";
    append_json_value(members[i].second, out);
  }
  out += '}';
}

void append_json_value(const TemplateValue& value, std::string& out) {
  if (const TemplateValue::Object* object = as_object(value)) {
    append_json_members(*object, out);
  } else if (const TemplateValue::List* list = as_list(value)) {
    out += '[';
    for (size_t i = 0; i < list->size(); ++i) {
      out += i == 0 ? "" : ", ";
      append_json_value((*list)[i], out);
    }
    out += ']';
  } else if (const std::string* text = as_string(value)) {
    append_json_string(out, *text);
  } else {
    JsonWriter json;
    if (const bool* boolean = std::get_if<bool>(&value.value)) {
      json.boolean(*boolean);
    } else if (const auto* integer = std::get_if<int64_t>(&value.value)) {
      json.integer(*integer);
    } else if (const auto* number = std::get_if<double>(&value.value)) {
      json.number(*number);
    } else {
      json.null();
    }
    out += json.take();
  }
}

/// The conversation with a system message that describes the tools; joined to the last system
/// message, because some templates keep only that one.
TemplateValue::List describe_tools(TemplateValue::List messages, const TemplateValue::List& tools) {
  std::string text(kToolPreamble);
  append_json_value(list_value(tools), text);
  const auto last_system = std::find_if(messages.rbegin(), messages.rend(), [](const auto& m) {
    const std::string* role = member_text(m, "role");
    return role != nullptr && *role == "system";
  });
  if (last_system != messages.rend()) {
    const std::string* old_text = member_text(*last_system, "content");
    text = (old_text == nullptr ? std::string() : *old_text + "\n\n") + text;
  }
  TemplateValue::Object system = {{"role", {std::string("system"), true}},
                                  {"content", {std::move(text), true}}};
  TemplateValue message{std::make_shared<const TemplateValue::Object>(std::move(system)), true};
  if (last_system != messages.rend()) {
    *last_system = std::move(message);
  } else {
    messages.insert(messages.begin(), std::move(message));
  }
  return messages;
}

bool is_continuation(const ChatRequest& request) {
  const TemplateValue& last = request.messages.back();
  const std::string* role = member_text(last, "role");
  const std::string* content = member_text(last, "content");
  return role != nullptr && *role == "assistant" && content != nullptr && !content->empty() &&
         !has_member(last, "tool_calls") && request.continues_final_message.value_or(true);
}

/// Removes a `<think>` that the template opened at the end of the prompt.
void drop_forced_think(PromptText& prompt) {
  std::string_view text = prompt.text;
  while (!text.empty() && text.back() == '\n') {
    text.remove_suffix(1);
  }
  const bool is_content =
      !prompt.content.empty() &&
      prompt.content.back().end >
          static_cast<int64_t>(text.size() - std::min(text.size(), kThinkOpen.size()));
  if (text.ends_with(kThinkOpen) && !is_content) {
    prompt.text.resize(text.size() - kThinkOpen.size());
  }
}

/// Appends the answer so far; every byte is content except whole think markers.
void append_answer(PromptText& prompt, const std::string& answer) {
  const auto base = static_cast<int64_t>(prompt.text.size());
  prompt.text += answer;
  size_t begin = 0;
  const auto mark = [&](size_t end) {
    if (end > begin) {
      prompt.content.push_back(
          {base + static_cast<int64_t>(begin), base + static_cast<int64_t>(end)});
    }
  };
  for (size_t i = answer.find('<'); i != std::string::npos; i = answer.find('<', i)) {
    const std::string_view rest = std::string_view(answer).substr(i);
    const size_t length = rest.starts_with(kThinkOpen)    ? kThinkOpen.size()
                          : rest.starts_with(kThinkClose) ? kThinkClose.size()
                                                          : 0;
    if (length == 0) {
      ++i;
      continue;
    }
    mark(i);
    i += length;
    begin = i;
  }
  mark(answer.size());
}

}  // namespace

ApiResult<ChatPrompt> build_chat_prompt(const ChatTemplate& chat_template,
                                        const Tokenizer& tokenizer,
                                        const ChatRequest& request) {
  const bool is_continued = is_continuation(request);
  const bool asks_continuation = request.continues_final_message.value_or(false);
  if (asks_continuation && !is_continued) {
    return invalid_field("continue_final_message",
                         "the last message must be an assistant's, with text and no tool_calls");
  }
  const Renderer renderer(chat_template, tokenizer, request);
  TemplateValue::List messages = request.messages;
  std::string answer;
  if (is_continued) {
    answer = *member_text(messages.back(), "content");
    messages.pop_back();
    if (messages.empty()) {
      return invalid_field("messages", "an assistant's message cannot be the only one");
    }
  }
  Result<PromptText> rendered = renderer.render(messages, request.tools);
  if (rendered && !request.tools.empty()) {
    const Result<PromptText> without_tools = renderer.render(messages, {});
    if (without_tools && without_tools.value().text == rendered.value().text) {
      rendered = renderer.render(describe_tools(messages, request.tools), {});
    }
  }
  if (!rendered) {
    return from_error(rendered.error(), "messages");
  }
  PromptText prompt = std::move(rendered).value();
  if (is_continued) {
    drop_forced_think(prompt);
    append_answer(prompt, answer);
  }
  return ChatPrompt{tokenizer.encode(prompt), is_continued};
}

}  // namespace hadal::api
