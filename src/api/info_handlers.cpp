// Small handlers; the probes read atomics and one engine snapshot.
#include "info_handlers.h"

#include <algorithm>
#include <cmath>

#include "chat_prompt.h"
#include "completion_request.h"
#include "generation_job.h"
#include "request_json.h"

namespace hadal::api {

namespace {

HttpReply json_reply(JsonWriter& json) {
  return {200, json.take()};
}

HttpReply probe_reply(bool is_good, std::string_view status) {
  JsonWriter json;
  json.begin_object().key("status").string(status).end_object();
  return {is_good ? 200 : 503, json.take()};
}

std::string_view state_name(ServerCore& core) {
  if (core.failure()) {
    return "failed";
  }
  switch (core.state()) {
    case ServerState::loading:
      return "loading";
    case ServerState::ready:
      if (core.is_stuck()) {
        return "stuck";
      }
      return core.traffic().is_open() ? "engine_unavailable" : "ready";
    case ServerState::draining:
      return "draining";
    case ServerState::failed:
      return "failed";
  }
  return "failed";
}

HttpReply answer_livez(const ServerCore& core) {
  if (const auto why = core.failure()) {
    return probe_reply(false, "failed: " + *why);
  }
  return core.is_stuck() ? probe_reply(false, "stuck: no step ends") : probe_reply(true, "alive");
}

/// Overload alone leaves it ready.
HttpReply answer_readyz(ServerCore& core) {
  const TrafficControl& traffic = core.traffic();
  JsonWriter json;
  json.begin_object().key("status").string(state_name(core));
  json.key("breaker").string(breaker_state_name(traffic.breaker_state()));
  json.key("level").integer(traffic.level()).end_object();
  return {core.is_ready() ? 200 : 503, json.take()};
}

HttpReply answer_startupz(ServerCore& core) {
  const bool has_started =
      (core.model() != nullptr || core.state() == ServerState::ready) && !core.failure();
  return probe_reply(has_started, state_name(core));
}

void write_model(JsonWriter& json, ServerCore& core) {
  const std::string& name = core.config().served_model_name;
  json.begin_object().key("id").string(name).key("object").string("model");
  json.key("created").integer(unix_time()).key("owned_by").string("hadal");
  json.key("root").string(name).key("parent").null();
  json.key("max_model_len").integer(core.context().context_tokens_max()).end_object();
}

HttpReply answer_models(ServerCore& core) {
  JsonWriter json;
  json.begin_object().key("object").string("list").key("data").begin_array();
  write_model(json, core);
  json.end_array().end_object();
  return json_reply(json);
}

HttpReply answer_model(ServerCore& core, const RequestHead& head) {
  const auto id = percent_decode(std::string_view(head.path).substr(sizeof("/v1/models/") - 1));
  if (!id || *id != core.config().served_model_name) {
    return error_reply({404, "the model does not exist", "model", "model_not_found"});
  }
  JsonWriter json;
  write_model(json, core);
  return json_reply(json);
}

HttpReply answer_model_info(ServerCore& core) {
  const ServedModel& model = *core.model();
  JsonWriter json;
  json.begin_object().key("model_path").string(model.model_path);
  json.key("tokenizer_path").string(model.tokenizer_path).key("is_generation").boolean(true);
  json.key("preferred_sampling_params").null().end_object();
  return json_reply(json);
}

HttpReply answer_server_info(ServerCore& core) {
  const ServedModel& model = *core.model();
  const EngineStats stats = model.engine->stats();
  const RunnerLimits& limits = model.engine->limits();
  const int64_t kv_tokens = static_cast<int64_t>(limits.num_pages) * kPageTokens;
  JsonWriter json;
  json.begin_object().key("version").string(core.config().version);
  json.key("status").string(state_name(core));
  json.key("served_model_name").string(core.config().served_model_name);
  json.key("context_length").integer(core.context().context_tokens_max());
  json.key("max_total_num_tokens").integer(kv_tokens);
  json.key("max_req_input_len").integer(core.context().context_tokens_max() - 1);
  json.key("max_running_requests").integer(limits.max_slots);
  json.key("page_size").integer(kPageTokens);
  json.key("absorbed_chunk_tokens").integer(limits.absorbed_chunk_tokens);
  json.key("vocab_size").integer(core.context().vocab_size());
  json.key("server_args").raw(model.server_args_json);
  json.key("internal_states").begin_array().begin_object();
  json.key("num_running_reqs").integer(stats.num_running);
  json.key("num_queue_reqs").integer(stats.num_queued);
  json.key("num_retractions").integer(stats.num_retractions);
  json.key("cached_tokens_total").integer(stats.cached_tokens_total);
  json.key("pages_total").integer(stats.pages_total).key("pages_free").integer(stats.pages_free);
  json.key("pages_cached").integer(stats.pages_cached);
  json.key("pages_leased").integer(stats.pages_leased);
  json.key("last_step_id").integer(static_cast<int64_t>(stats.last_step_id));
  json.end_object().end_array().end_object();
  return json_reply(json);
}

HttpReply answer_flush_cache(ServerCore& core) {
  if (!core.model()->engine->flush_cache()) {
    return error_reply({400, "the cache is not flushed: requests are running", {}, "not_idle"});
  }
  HttpReply reply{200, "Cache flushed.\n", "text/plain; charset=utf-8"};
  return reply;
}

void write_tokens(JsonWriter& json, const std::vector<std::vector<TokenId>>& lists, bool is_batch) {
  const auto write = [&](const std::vector<TokenId>& tokens) {
    json.begin_array();
    for (const TokenId id : tokens) {
      json.integer(id);
    }
    json.end_array();
  };
  json.begin_object().key("tokens");
  if (!is_batch) {
    write(lists.front());
    json.key("count").integer(std::ssize(lists.front()));
    return;
  }
  json.begin_array();
  for (const auto& tokens : lists) {
    write(tokens);
  }
  json.end_array().key("count").begin_array();
  for (const auto& tokens : lists) {
    json.integer(std::ssize(tokens));
  }
  json.end_array();
}

/// The text of `prompt` or `content`: one string or a list of them.
std::vector<std::string> read_texts(FieldReader& fields, bool& is_batch) {
  const std::string_view name = fields.has("content") ? "content" : "prompt";
  std::vector<std::string> texts;
  const TemplateValue* value = fields.find(name);
  const TemplateValue::List* list = value == nullptr ? nullptr : as_list(*value);
  is_batch = list != nullptr;
  if (value != nullptr && as_string(*value) != nullptr) {
    texts.push_back(*as_string(*value));
  }
  for (size_t i = 0; list != nullptr && i < list->size() && i < kPromptsMax; ++i) {
    const std::string* text = as_string((*list)[i]);
    if (text == nullptr) {
      texts.clear();
      break;
    }
    texts.push_back(*text);
  }
  if (texts.empty() || (list != nullptr && list->size() > kPromptsMax)) {
    fields.fail(name,
                "expected a string or a list of 1 to " + std::to_string(kPromptsMax) + " strings");
  }
  return texts;
}

ApiResult<std::vector<TokenId>> tokenize_chat(ServerCore& core, const TemplateValue& body) {
  const ServedModel& model = *core.model();
  ApiResult<ChatRequest> request =
      parse_chat_request(body, {model.sampling, core.context().vocab_size()});
  if (!request) {
    return request.error();
  }
  if (model.chat_template == nullptr) {
    return invalid_field("messages", "this model has no chat template");
  }
  ApiResult<ChatPrompt> prompt =
      build_chat_prompt(*model.chat_template, *model.tokenizer, request.value());
  if (!prompt) {
    return prompt.error();
  }
  return std::move(prompt.value().tokens);
}

ApiResult<std::vector<std::vector<TokenId>>> tokenize_texts(ServerCore& core,
                                                            const TemplateValue& body,
                                                            bool& is_batch) {
  std::optional<ApiError> error;
  FieldReader fields(*as_object(body), "", error);
  const std::vector<std::string> texts = read_texts(fields, is_batch);
  const bool adds_special = fields.boolean("add_special_tokens").value_or(true);
  if (error) {
    return std::move(*error);
  }
  const Tokenizer& tokenizer = *core.model()->tokenizer;
  const AddedTokens added =
      core.config().raw_prompts_may_hold_special_tokens ? AddedTokens::parse : AddedTokens::as_text;
  std::vector<std::vector<TokenId>> lists;
  for (const std::string& text : texts) {
    std::vector<TokenId>& tokens = lists.emplace_back(tokenizer.encode(text, added));
    if (adds_special && tokenizer.adds_bos() && tokenizer.bos_id()) {
      tokens.insert(tokens.begin(), *tokenizer.bos_id());
    }
  }
  return lists;
}

HttpReply answer_tokenize(ServerCore& core, std::string_view body) {
  ApiResult<TemplateValue> json = parse_request_json(body);
  if (!json) {
    return error_reply(json.error());
  }
  std::optional<ApiError> error;
  bool is_batch = false;
  std::vector<std::vector<TokenId>> lists;
  if (FieldReader(*as_object(json.value()), "", error).has("messages")) {
    ApiResult<std::vector<TokenId>> tokens = tokenize_chat(core, json.value());
    if (!tokens) {
      return error_reply(tokens.error());
    }
    lists.push_back(std::move(tokens).value());
  } else {
    auto tokens = tokenize_texts(core, json.value(), is_batch);
    if (!tokens) {
      return error_reply(tokens.error());
    }
    lists = std::move(tokens).value();
  }
  JsonWriter out;
  write_tokens(out, lists, is_batch);
  out.key("max_model_len").integer(core.context().context_tokens_max()).end_object();
  return json_reply(out);
}

HttpReply answer_detokenize(ServerCore& core, std::string_view body) {
  ApiResult<TemplateValue> json = parse_request_json(body);
  if (!json) {
    return error_reply(json.error());
  }
  std::optional<ApiError> error;
  FieldReader fields(*as_object(json.value()), "", error);
  const FieldContext context{core.model()->sampling, core.context().vocab_size()};
  const bool skips_special = fields.boolean("skip_special_tokens").value_or(true);
  std::vector<TokenId> tokens;
  const TemplateValue::List* list = fields.list("tokens", kPromptTokensMax);
  if (list == nullptr) {
    fields.fail("tokens", "expected a list of token ids");
  } else if (!list->empty()) {
    for (auto& prompt : read_prompts(fields, "tokens", context)) {
      if (auto* ids = std::get_if<std::vector<TokenId>>(&prompt);
          ids != nullptr && tokens.empty()) {
        tokens = std::move(*ids);
      } else {
        fields.fail("tokens", "expected one list of token ids");
      }
    }
  }
  if (error) {
    return error_reply(*error);
  }
  TokenDecoder decoder(*core.model()->tokenizer, {.skip_special_tokens = skips_special});
  std::string text;
  for (const TokenId id : tokens) {
    text += decoder.push(id);
  }
  text += decoder.flush();
  JsonWriter out;
  out.begin_object().key("text").string(text).key("prompt").string(text).end_object();
  return json_reply(out);
}

}  // namespace

HttpReply error_reply(const ApiError& error) {
  HttpReply reply{error.status, error_body(error)};
  reply.gate = error.gate == Gate::none ? gate_of_status(error.status) : error.gate;
  if (reply.gate != Gate::none) {
    reply.fields.emplace_back("x-hadal-gate", gate_name(reply.gate));
  }
  if (error.status == 429 || error.status == 503) {
    const double wait_s = std::max(error.retry_after_s, 1.0);
    reply.fields.emplace_back("Retry-After", std::to_string(std::lround(std::ceil(wait_s))));
    reply.fields.emplace_back("retry-after-ms", std::to_string(std::lround(wait_s * 1e3)));
  }
  if (error.status == 401) {
    reply.fields.emplace_back("WWW-Authenticate", "Bearer");
  }
  return reply;
}

HttpReply answer_info(ServerCore& core,
                      RouteId route,
                      const RequestHead& head,
                      std::string_view body) {
  switch (route) {
    case RouteId::models:
      return answer_models(core);
    case RouteId::model:
      return answer_model(core, head);
    case RouteId::tokenize:
      return answer_tokenize(core, body);
    case RouteId::detokenize:
      return answer_detokenize(core, body);
    case RouteId::flush_cache:
      return answer_flush_cache(core);
    case RouteId::model_info:
      return answer_model_info(core);
    case RouteId::server_info:
      return answer_server_info(core);
    case RouteId::health:
    case RouteId::readyz:
      return answer_readyz(core);
    case RouteId::livez:
      return answer_livez(core);
    case RouteId::startupz:
      return answer_startupz(core);
    case RouteId::metrics:
      return {
          200, core.metrics().to_prometheus_text(), "text/plain; version=0.0.4; charset=utf-8", {}};
    case RouteId::chat_completions:
    case RouteId::completions:
    case RouteId::health_generate:
      break;
  }
  HADAL_CHECK(false, "a generating route was asked for information");
  return {};  // without optimisation a compiler does not see that it never comes here
}

}  // namespace hadal::api
