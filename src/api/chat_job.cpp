// /v1/chat/completions: messages in, message or deltas out.
#include <hadal/base/check.h>

#include "chat_prompt.h"
#include "generation_job.h"
#include "request_json.h"

namespace hadal::api {

namespace {

void write_token(JsonWriter& json, std::string_view bytes, float logprob) {
  json.begin_object().key("token").string(bytes).key("logprob").number(logprob);
  json.key("bytes").begin_array();
  for (const char c : bytes) {
    json.integer(static_cast<unsigned char>(c));
  }
  json.end_array();
}

class ChatJob final : public GenerationJob {
 public:
  static ApiResult<std::unique_ptr<GenerationJob>> make(const ServingContext& context,
                                                        ChatRequest request,
                                                        ChatPrompt prompt) {
    const bool is_split = request.separates_reasoning.value_or(context.config.separates_reasoning);
    Setup setup;
    setup.id = "chatcmpl-" + context.ids.next_hex();
    setup.object = "chat.completion";
    setup.stream_object = "chat.completion.chunk";
    setup.max_tokens_if_absent = context.model.default_max_tokens;
    setup.text.parser.reasoning = is_split ? ReasoningFormat::split : ReasoningFormat::inline_tags;
    setup.text.parser.parses_tool_calls = request.parses_tool_calls;
    setup.text.parser.restores_think_open = !prompt.is_continued;
    setup.text.has_single_tool_call = request.has_single_tool_call;
    std::unique_ptr<ChatJob> job(new ChatJob(context, std::move(request.fields), std::move(setup)));
    job->is_split_ = is_split;
    job->includes_reasoning_ = request.includes_reasoning;
    if (auto error = job->add_prompt(std::move(prompt.tokens))) {
      return std::move(*error);
    }
    return std::unique_ptr<GenerationJob>(std::move(job));
  }

 private:
  ChatJob(const ServingContext& context, GenerationFields fields, Setup setup)
      : GenerationJob(context, std::move(fields), std::move(setup)) {}

  void write_logprobs(JsonWriter& json, const std::vector<TokenEntry>& entries) const {
    json.key("logprobs");
    if (!wants_logprobs() || entries.empty()) {
      json.null();
      return;
    }
    const Tokenizer& tokenizer = *context().model.tokenizer;
    json.begin_object().key("content").begin_array();
    for (const TokenEntry& entry : entries) {
      write_token(json, tokenizer.bytes(entry.token), entry.logprob.value_or(0));
      json.key("top_logprobs").begin_array();
      for (const TokenLogprob& top : entry.top) {
        write_token(json, tokenizer.bytes(top.token), top.logprob);
        json.end_object();
      }
      json.end_array().end_object();
    }
    json.end_array().key("refusal").null().end_object();
  }

  std::string call_id() const { return "call_" + context().ids.next_hex().substr(0, 24); }

  /// One event whose delta holds what `write_members` writes.
  template <class WriteMembers>
  void write_event(size_t index,
                   const Choice& choice,
                   bool has_logprobs,
                   WriteMembers write_members) {
    JsonWriter json = begin_event();
    json.key("choices").begin_array().begin_object();
    json.key("index").integer(static_cast<int64_t>(index)).key("delta").begin_object();
    write_members(json);
    json.end_object();
    write_logprobs(json, has_logprobs ? choice.entries : std::vector<TokenEntry>{});
    json.key("finish_reason").null().key("matched_stop").null().end_object().end_array();
    if (fields().includes_continuous_usage) {
      json.key("usage");
      write_usage(json);
    }
    end_event(std::move(json));
  }

  void write_text(size_t index,
                  const Choice& choice,
                  std::string_view name,
                  std::string_view text) {
    for (const std::string_view piece : split_text(text, kEventTextBytesMax)) {
      write_event(index, choice, false, [&](JsonWriter& json) { json.key(name).string(piece); });
    }
  }

  void write_call(size_t index, const Choice& choice, const ParsedToolCall& call) {
    bool is_first = true;
    for (const std::string_view piece : split_text(call.arguments, kEventTextBytesMax)) {
      write_event(index, choice, false, [&](JsonWriter& json) {
        json.key("tool_calls").begin_array().begin_object().key("index").integer(call.index);
        if (is_first) {
          json.key("id").string(call_id()).key("type").string("function");
        }
        json.key("function").begin_object();
        if (is_first) {
          json.key("name").string(call.name);
        }
        json.key("arguments").string(piece).end_object().end_object().end_array();
      });
      is_first = false;
    }
  }

  void write_pending(size_t index, Choice& choice) override {
    const TextDelta& delta = choice.pending;
    if (!choice.has_sent) {
      write_event(index, choice, false, [](JsonWriter& json) {
        json.key("role").string("assistant").key("content").string("");
      });
    }
    if (!delta.reasoning.empty() && includes_reasoning_) {
      write_text(index, choice, "reasoning_content", delta.reasoning);
    }
    if (wants_logprobs() && !choice.entries.empty()) {
      // With logprobs, text and entries travel together, even when the text is held back.
      write_event(index, choice, true, [&](JsonWriter& json) {
        json.key("content").string(delta.content);
      });
    } else if (!delta.content.empty()) {
      write_text(index, choice, "content", delta.content);
    }
    for (const ParsedToolCall& call : delta.tool_calls) {
      write_call(index, choice, call);
    }
    if (!choice.finish_reason.empty()) {
      JsonWriter json = begin_event();
      json.key("choices").begin_array().begin_object();
      json.key("index").integer(static_cast<int64_t>(index));
      json.key("delta").begin_object().end_object().key("logprobs").null();
      json.key("finish_reason").string(choice.finish_reason);
      json.key("matched_stop").raw(choice.matched_stop).end_object().end_array();
      if (fields().includes_continuous_usage) {
        json.key("usage");
        write_usage(json);
      }
      end_event(std::move(json));
    }
  }

  void write_choice(JsonWriter& json, size_t index, const Choice& choice) const override {
    const TextDelta& text = choice.pending;
    json.begin_object().key("index").integer(static_cast<int64_t>(index));
    json.key("message").begin_object().key("role").string("assistant").key("content");
    if (text.content.empty() && !text.tool_calls.empty()) {
      json.null();
    } else {
      json.string(text.content);
    }
    if (is_split_ && includes_reasoning_) {
      json.key("reasoning_content");
      if (text.reasoning.empty()) {
        json.null();
      } else {
        json.string(text.reasoning);
      }
    }
    if (!text.tool_calls.empty()) {
      json.key("tool_calls").begin_array();
      for (const ParsedToolCall& call : text.tool_calls) {
        json.begin_object().key("id").string(call_id()).key("type").string("function");
        json.key("function").begin_object().key("name").string(call.name);
        json.key("arguments").string(call.arguments).end_object().end_object();
      }
      json.end_array();
    }
    json.key("refusal").null().end_object();
    write_logprobs(json, choice.entries);
    json.key("finish_reason").string(choice.finish_reason);
    json.key("matched_stop").raw(choice.matched_stop).end_object();
  }

  void write_usage_details(JsonWriter& json) const override {
    int64_t reasoning = 0;
    for (const Choice& choice : choices()) {
      reasoning += choice.text.reasoning_tokens();
    }
    json.key("completion_tokens_details").begin_object();
    json.key("reasoning_tokens").integer(reasoning).end_object();
  }

  bool is_split_ = false;
  bool includes_reasoning_ = true;
};

}  // namespace

ApiResult<std::unique_ptr<GenerationJob>> make_chat_job(const ServingContext& context,
                                                        std::string_view body) {
  ApiResult<TemplateValue> json = parse_request_json(body);
  if (!json) {
    return json.error();
  }
  ApiResult<ChatRequest> request =
      parse_chat_request(json.value(), {context.model.sampling, context.vocab_size()});
  if (!request) {
    return request.error();
  }
  if (auto error = check_model_name(context, request.value().fields.model)) {
    return std::move(*error);
  }
  if (context.model.chat_template == nullptr) {
    return invalid_field("messages",
                         "this model has no chat template; use /v1/completions or --chat-template");
  }
  ApiResult<ChatPrompt> prompt =
      build_chat_prompt(*context.model.chat_template, *context.model.tokenizer, request.value());
  if (!prompt) {
    return prompt.error();
  }
  return ChatJob::make(context, std::move(request).value(), std::move(prompt).value());
}

}  // namespace hadal::api
