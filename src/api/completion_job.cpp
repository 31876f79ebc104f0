// /v1/completions: raw prompts in, text out; echo and prompt logprobs for scoring.
#include <map>

#include "completion_request.h"
#include "generation_job.h"
#include "request_json.h"

namespace hadal::api {

namespace {

constexpr int32_t kDefaultMaxTokens = 16;

int64_t num_characters(std::string_view text) {
  int64_t count = 0;
  for (const char c : text) {
    count += (static_cast<unsigned char>(c) & 0xC0U) != 0x80U ? 1 : 0;
  }
  return count;
}

class CompletionJob final : public GenerationJob {
 public:
  static ApiResult<std::unique_ptr<GenerationJob>> make(const ServingContext& context,
                                                        CompletionRequest request) {
    Setup setup;
    setup.id = "cmpl-" + context.ids.next_hex();
    setup.object = "text_completion";
    setup.stream_object = "text_completion";
    setup.max_tokens_if_absent = kDefaultMaxTokens;
    setup.wants_prompt_logprobs = request.echoes && request.fields.sampling.num_top_logprobs >= 0;
    setup.text.parser.restores_think_open = false;
    const int32_t num_choices = request.fields.num_choices;
    std::unique_ptr<CompletionJob> job(
        new CompletionJob(context, std::move(request.fields), std::move(setup)));
    const Tokenizer& tokenizer = *context.model.tokenizer;
    for (auto& prompt : request.prompts) {
      std::vector<TokenId> tokens = to_tokens(context, prompt);
      if (request.echoes) {
        Echo echo{tokens, echo_text(tokenizer, prompt)};
        for (int32_t k = 0; k < num_choices; ++k) {
          job->echoes_.push_back(echo);
        }
      }
      if (auto error = job->add_prompt(std::move(tokens))) {
        return std::move(*error);
      }
    }
    job->offsets_.resize(job->choices().size());
    return std::unique_ptr<GenerationJob>(std::move(job));
  }

 private:
  using Prompt = std::variant<std::string, std::vector<TokenId>>;

  struct Echo {
    std::vector<TokenId> tokens;
    std::string text;
  };

  CompletionJob(const ServingContext& context, GenerationFields fields, Setup setup)
      : GenerationJob(context, std::move(fields), std::move(setup)) {}

  static std::vector<TokenId> to_tokens(const ServingContext& context, const Prompt& prompt) {
    if (const auto* ids = std::get_if<std::vector<TokenId>>(&prompt)) {
      return *ids;
    }
    const Tokenizer& tokenizer = *context.model.tokenizer;
    std::vector<TokenId> tokens =
        tokenizer.encode(std::get<std::string>(prompt),
                         context.config.raw_prompts_may_hold_special_tokens ? AddedTokens::parse
                                                                            : AddedTokens::as_text);
    const std::optional<TokenId> bos = tokenizer.bos_id();
    if (tokenizer.adds_bos() && bos) {
      tokens.insert(tokens.begin(), *bos);
    }
    return tokens;
  }

  static std::string echo_text(const Tokenizer& tokenizer, const Prompt& prompt) {
    if (const auto* text = std::get_if<std::string>(&prompt)) {
      return *text;
    }
    TokenDecoder decoder(tokenizer);
    std::string text;
    for (const TokenId id : std::get<std::vector<TokenId>>(prompt)) {
      text += decoder.push(id);
    }
    return text + decoder.flush();
  }

  void on_first_event(size_t index, Choice& choice, const TokenEvent& event) override {
    if (echoes_.empty()) {
      return;
    }
    Echo& echo = echoes_[index];
    choice.pending.content = std::move(echo.text);
    if (!wants_logprobs()) {
      return;
    }
    choice.entries.push_back({echo.tokens.front(), std::nullopt, {}});
    for (size_t i = 0; i < event.prompt_logprobs.size() && i + 1 < echo.tokens.size(); ++i) {
      TokenEntry entry{echo.tokens[i + 1], event.prompt_logprobs[i].logprob, {}};
      if (i < event.prompt_top_logprobs.size()) {
        entry.top = event.prompt_top_logprobs[i];
      }
      choice.entries.push_back(std::move(entry));
    }
  }

  /// Writes the object and returns the offset after the last entry.
  int64_t write_logprobs(JsonWriter& json,
                         const std::vector<TokenEntry>& entries,
                         int64_t offset) const {
    json.key("logprobs");
    if (!wants_logprobs() || entries.empty()) {
      json.null();
      return offset;
    }
    const Tokenizer& tokenizer = *context().model.tokenizer;
    JsonWriter offsets;
    offsets.begin_array();
    json.begin_object().key("tokens").begin_array();
    for (const TokenEntry& entry : entries) {
      json.string(tokenizer.bytes(entry.token));
      offsets.integer(offset);
      offset += num_characters(tokenizer.bytes(entry.token));
    }
    json.end_array().key("token_logprobs").begin_array();
    for (const TokenEntry& entry : entries) {
      entry.logprob ? json.number(*entry.logprob) : json.null();
    }
    json.end_array().key("top_logprobs").begin_array();
    for (const TokenEntry& entry : entries) {
      write_top(json, entry);
    }
    json.end_array().key("text_offset").raw(offsets.end_array().take()).end_object();
    return offset;
  }

  void write_top(JsonWriter& json, const TokenEntry& entry) const {
    if (!entry.logprob || entry.top.empty()) {
      json.null();
      return;
    }
    std::map<std::string, float> by_text;  // keys must differ: the best of equal texts stays
    for (const TokenLogprob& top : entry.top) {
      std::string text;
      append_json_string(text, context().model.tokenizer->bytes(top.token));
      by_text.emplace(std::move(text), top.logprob);
    }
    json.begin_object();
    for (const auto& [text, logprob] : by_text) {
      json.raw(text + ":").number(logprob);
    }
    json.end_object();
  }

  void write_pending(size_t index, Choice& choice) override {
    std::vector<std::string_view> pieces = split_text(choice.pending.content, kEventTextBytesMax);
    const bool is_end = !choice.finish_reason.empty();
    if (pieces.size() == 1 && pieces[0].empty() && choice.entries.empty() && !is_end) {
      return;
    }
    for (size_t i = 0; i < pieces.size(); ++i) {
      const bool is_last = i + 1 == pieces.size();
      JsonWriter json = begin_event();
      json.key("choices").begin_array().begin_object();
      json.key("index").integer(static_cast<int64_t>(index)).key("text").string(pieces[i]);
      offsets_[index] = write_logprobs(
          json, is_last ? choice.entries : std::vector<TokenEntry>{}, offsets_[index]);
      json.key("finish_reason");
      if (is_last && is_end) {
        json.string(choice.finish_reason).key("matched_stop").raw(choice.matched_stop);
      } else {
        json.null().key("matched_stop").null();
      }
      json.end_object().end_array();
      if (fields().includes_continuous_usage) {
        json.key("usage");
        write_usage(json);
      }
      end_event(std::move(json));
    }
  }

  void write_choice(JsonWriter& json, size_t index, const Choice& choice) const override {
    json.begin_object().key("index").integer(static_cast<int64_t>(index));
    json.key("text").string(choice.pending.content);
    write_logprobs(json, choice.entries, 0);
    json.key("finish_reason").string(choice.finish_reason);
    json.key("matched_stop").raw(choice.matched_stop).end_object();
  }

  std::vector<Echo> echoes_;      // one per choice, or none
  std::vector<int64_t> offsets_;  // stream: where each choice's next token starts, in characters
};

}  // namespace

ApiResult<std::unique_ptr<GenerationJob>> make_completion_job(const ServingContext& context,
                                                              std::string_view body) {
  ApiResult<TemplateValue> json = parse_request_json(body);
  if (!json) {
    return json.error();
  }
  ApiResult<CompletionRequest> request =
      parse_completion_request(json.value(), {context.model.sampling, context.vocab_size()});
  if (!request) {
    return request.error();
  }
  if (auto error = check_model_name(context, request.value().fields.model)) {
    return std::move(*error);
  }
  return CompletionJob::make(context, std::move(request).value());
}

}  // namespace hadal::api
