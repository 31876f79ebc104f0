// What chats and completions share: limits, seeds, the life of a choice, usage, stream framing.
#include "generation_job.h"

#include <algorithm>

namespace hadal::api {

namespace {

std::string context_message(size_t prompt, int64_t output, int64_t most) {
  return "the model's context is " + std::to_string(most) + " tokens, but " +
         std::to_string(static_cast<int64_t>(prompt) + output) + " were requested (" +
         std::to_string(prompt) + " in the prompt, " + std::to_string(output) +
         " in the completion)";
}

}  // namespace

std::optional<ApiError> check_model_name(const ServingContext& context, const std::string& name) {
  if (!context.config.strict_model_name || name.empty() ||
      name == context.config.served_model_name) {
    return std::nullopt;
  }
  return ApiError{404, "the model does not exist", "model", "model_not_found"};
}

std::vector<std::string_view> split_text(std::string_view text, size_t bytes_max) {
  std::vector<std::string_view> pieces;
  while (text.size() > bytes_max) {
    size_t end = bytes_max;
    while (end > 1 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) {
      --end;
    }
    pieces.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  pieces.push_back(text);
  return pieces;
}

GenerationJob::GenerationJob(const ServingContext& context, GenerationFields fields, Setup setup)
    : context_(context),
      fields_(std::move(fields)),
      setup_(std::move(setup)),
      id_(setup_.id),
      created_(unix_time()),
      model_(fields_.model.empty() ? context.config.served_model_name : fields_.model) {
  setup_.text.stops = fields_.stops;
  setup_.text.keeps_stop = fields_.keeps_stop;
  setup_.text.parser.skips_special_tokens = fields_.skips_special_tokens;
  JsonWriter json;
  json.begin_object().key("id").string(id_);
  json.key("object").string(fields_.is_stream ? setup_.stream_object : setup_.object);
  json.key("created").integer(created_).key("model").string(model_);
  json.key("system_fingerprint").string("hadal-" + context.config.version);
  event_start_ = json.take();
}

std::optional<ApiError> GenerationJob::add_prompt(std::vector<TokenId> prompt) {
  const char* const param = setup_.object == "chat.completion" ? "messages" : "prompt";
  const int64_t most = context_.context_tokens_max();
  const auto prompt_size = static_cast<int64_t>(prompt.size());
  if (prompt.empty()) {
    return invalid_field(param, "the prompt has no tokens");
  }
  const int64_t least = fields_.max_tokens.value_or(1);
  if (prompt_size + std::min<int64_t>(least, 1) > most || prompt_size + least > most) {
    return ApiError{
        400, context_message(prompt.size(), least, most), param, "context_length_exceeded"};
  }
  const int64_t rest = most - prompt_size;
  int64_t if_absent = rest;
  for (const int32_t limit : {setup_.max_tokens_if_absent, context_.max_tokens_if_absent}) {
    if_absent = limit > 0 ? std::min<int64_t>(limit, if_absent) : if_absent;
  }

  GenerateRequest request;
  request.sampling = fields_.sampling;
  request.max_new_tokens =
      static_cast<int32_t>(fields_.max_tokens.value_or(static_cast<int32_t>(if_absent)));
  request.stop_token_ids = context_.model.eos_token_ids;
  request.stop_token_ids.insert(
      request.stop_token_ids.end(), fields_.stop_token_ids.begin(), fields_.stop_token_ids.end());
  request.sampling.stop_tokens = request.stop_token_ids;
  request.ignore_stop_tokens = fields_.ignores_eos;
  request.wants_prompt_logprobs = setup_.wants_prompt_logprobs;
  request.priority = fields_.priority;
  request.cache_namespace = context_.ids.cache_namespace(fields_.cache_salt);
  request.prompt = std::move(prompt);
  const uint64_t seed = fields_.seed ? *fields_.seed : context_.ids.next_seed();
  for (int32_t k = 0; k < fields_.num_choices; ++k) {
    Choice& choice =
        choices_.emplace_back(TextStream(*context_.model.tokenizer, request.prompt, setup_.text));
    choice.is_first_of_prompt = k == 0;
    request.sampling.seed = k == 0 ? seed : mix_bits(seed + static_cast<uint64_t>(k));
    requests_.push_back(request);
  }
  prompt_tokens_ += prompt_size;
  num_open_ = choices_.size();
  return std::nullopt;
}

int64_t GenerationJob::completion_tokens() const {
  int64_t sum = 0;
  for (const Choice& choice : choices_) {
    sum += choice.num_tokens;
  }
  return sum;
}

void GenerationJob::on_first_event(size_t /*index*/,
                                   Choice& /*choice*/,
                                   const TokenEvent& /*event*/) {}

void GenerationJob::add_token(Choice& choice, const TokenEvent& event) {
  ++choice.num_tokens;
  ++choice.num_pending_tokens;
  if (!event.matched_stop_token || fields_.keeps_stop) {
    choice.pending.append(choice.text.push(*event.token));
  }
  if (wants_logprobs() && event.logprob) {
    choice.entries.push_back({*event.token, event.logprob->logprob, event.top_logprobs});
  }
}

void GenerationJob::on_event(size_t index, TokenEvent event) {
  HADAL_CHECK(index < choices_.size(), "event of a choice that does not exist");
  Choice& choice = choices_[index];
  if (error_ || !choice.finish_reason.empty()) {
    return;
  }
  if (!choice.has_events) {
    choice.has_events = true;
    choice.num_cached_tokens = event.num_cached_tokens;
    on_first_event(index, choice, event);
  }
  if (event.token) {
    add_token(choice, event);
  }
  if (choice.text.is_ended()) {
    if (const auto matched = choice.text.matched_stop()) {
      choice.matched_stop.clear();
      append_json_string(choice.matched_stop, fields_.stops[static_cast<size_t>(*matched)]);
    }
    if (!event.finish) {
      cancels_.push_back(index);
    }
    finish_choice(index, "stop");
  } else if (event.finish) {
    finish_by_engine(index, event);
  }
  if (error_ || !fields_.is_stream) {
    return;
  }
  const bool is_due = !choice.has_sent || !choice.finish_reason.empty() ||
                      choice.num_pending_tokens >= context_.config.stream_interval;
  if (is_due) {
    write_pending(index, choice);
    choice.has_sent = true;
    choice.pending = {};
    choice.entries.clear();
    choice.num_pending_tokens = 0;
  }
}

void GenerationJob::finish_by_engine(size_t index, const TokenEvent& event) {
  Choice& choice = choices_[index];
  switch (*event.finish) {
    case FinishReason::stop:
    case FinishReason::length:
      if (event.matched_stop_token) {
        choice.matched_stop = std::to_string(*event.matched_stop_token);
      }
      choice.pending.append(choice.text.finish());
      finish_choice(index, *event.finish == FinishReason::stop ? "stop" : "length");
      return;
    case FinishReason::cancelled:
      fail({503, "the request was cancelled by the server", {}, "cancelled"});
      return;
    case FinishReason::deadline:
      fail({504, "the request was not finished within its time", {}, "deadline_exceeded"});
      return;
    case FinishReason::error:
      fail({503,
            event.error.empty() ? "the engine could not finish the request" : event.error,
            {},
            "engine_error"});
      return;
  }
}

void GenerationJob::finish_choice(size_t index, std::string reason) {
  Choice& choice = choices_[index];
  const bool has_calls = reason == "stop" && choice.text.num_tool_calls() > 0;
  choice.finish_reason = has_calls ? "tool_calls" : std::move(reason);
  --num_open_;
}

void GenerationJob::fail(ApiError error) {
  if (!is_done()) {
    error_ = std::move(error);
  }
}

void GenerationJob::end_event(JsonWriter json) {
  stream_ += "data: ";
  stream_ += json.end_object().take();
  stream_ += "\n\n";
}

void GenerationJob::write_usage_details(JsonWriter& /*json*/) const {}

void GenerationJob::write_usage(JsonWriter& json) const {
  int64_t cached = 0;
  for (const Choice& choice : choices_) {
    cached += choice.is_first_of_prompt ? choice.num_cached_tokens : 0;
  }
  json.begin_object().key("prompt_tokens").integer(prompt_tokens_);
  json.key("completion_tokens").integer(completion_tokens());
  json.key("total_tokens").integer(prompt_tokens_ + completion_tokens());
  json.key("prompt_tokens_details")
      .begin_object()
      .key("cached_tokens")
      .integer(cached)
      .end_object();
  write_usage_details(json);
  json.end_object();
}

void GenerationJob::end_stream() {
  if (error_) {
    stream_ += "data: " + error_body(*error_) + "\n\n";
  } else if (fields_.includes_usage) {
    JsonWriter json = begin_event();
    json.key("choices").begin_array().end_array().key("usage");
    write_usage(json);
    end_event(std::move(json));
  }
  stream_ += "data: [DONE]\n\n";
}

std::string GenerationJob::response() const {
  JsonWriter json = begin_event();
  json.key("choices").begin_array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    write_choice(json, i, choices_[i]);
  }
  json.end_array().key("usage");
  write_usage(json);
  return json.end_object().take();
}

}  // namespace hadal::api
