// One function per group of fields. Fields that hadal does not know are ignored; fields that it
// knows it cannot honour, and whose absence would change the answer, are refused.
#include "generation_fields.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace hadal::api {

namespace {

constexpr double kGreedyBelow = 1e-6;
constexpr double kTemperatureMax = 1e9;  // beyond any effect; keeps the float finite

void read_sampling(FieldReader& fields, const FieldContext& context, SamplingParams& sampling) {
  const SamplingDefaults& defaults = context.defaults;
  const double temperature =
      fields.number("temperature", {.min = 0}).value_or(static_cast<double>(defaults.temperature));
  sampling.temperature = temperature < kGreedyBelow
                             ? 0.0F
                             : static_cast<float>(std::min(temperature, kTemperatureMax));
  sampling.top_p =
      static_cast<float>(fields.number("top_p", {.min = 0, .max = 1, .excludes_min = true})
                             .value_or(static_cast<double>(defaults.top_p)));
  const int64_t top_k = fields.integer("top_k", -1, std::numeric_limits<int32_t>::max())
                            .value_or(static_cast<int64_t>(defaults.top_k));
  sampling.top_k = top_k <= 0 || top_k >= context.vocab_size ? 0 : static_cast<int32_t>(top_k);
  sampling.min_p = static_cast<float>(
      fields.number("min_p", {.min = 0, .max = 1}).value_or(static_cast<double>(defaults.min_p)));
  const FieldReader::Range additive{.min = -2, .max = 2};
  sampling.frequency_penalty =
      static_cast<float>(fields.number("frequency_penalty", additive).value_or(0));
  sampling.presence_penalty =
      static_cast<float>(fields.number("presence_penalty", additive).value_or(0));
  const FieldReader::Range factor{.min = 0, .max = 2, .excludes_min = true};
  const std::optional<double> alias = fields.number("repeat_penalty", factor);  // Ollama's name
  sampling.repetition_penalty = static_cast<float>(
      fields.number("repetition_penalty", factor)
          .value_or(alias.value_or(static_cast<double>(defaults.repetition_penalty))));
}

/// Token ids are written as decimal numbers without sign or leading zeros.
std::optional<int64_t> parse_token_key(const std::string& key) {
  int64_t id = -1;
  const auto result = std::from_chars(key.data(), key.data() + key.size(), id);
  const bool is_canonical = !key.empty() && key[0] != '-' && (key[0] != '0' || key.size() == 1);
  if (result.ec != std::errc{} || result.ptr != key.data() + key.size() || !is_canonical) {
    return std::nullopt;
  }
  return id;
}

void read_logit_bias(FieldReader& fields, const FieldContext& context, SamplingParams& sampling) {
  const TemplateValue::Object* entries = fields.object("logit_bias");
  if (entries == nullptr) {
    return;
  }
  if (entries->size() > kLogitBiasMax) {
    fields.fail("logit_bias",
                "expected at most " + std::to_string(kLogitBiasMax) + " entries, got " +
                    std::to_string(entries->size()));
    return;
  }
  for (const auto& [key, value] : *entries) {
    const std::optional<int64_t> id = parse_token_key(key);
    if (!id || *id >= context.vocab_size) {
      fields.fail("logit_bias",
                  "every key must be a token id below " + std::to_string(context.vocab_size));
      return;
    }
    const std::optional<double> bias = as_number(value);
    if (!bias || *bias < -100 || *bias > 100) {
      fields.fail("logit_bias", "every value must be a number from -100 to 100");
      return;
    }
    sampling.logit_bias.emplace_back(static_cast<TokenId>(*id), static_cast<float>(*bias));
  }
}

void read_stops(FieldReader& fields, GenerationFields& out) {
  const TemplateValue* stop = fields.find("stop");
  if (stop == nullptr) {
    return;
  }
  if (as_string(*stop) != nullptr) {
    if (auto text = fields.string("stop", kStopBytesMax)) {
      out.stops.push_back(std::move(*text));
    }
  } else if (as_list(*stop) != nullptr) {
    const TemplateValue::List* items = fields.list("stop", kStopsMax);
    if (items == nullptr) {
      return;
    }
    for (const TemplateValue& item : *items) {
      const std::string* text = as_string(item);
      if (text == nullptr || text->size() > kStopBytesMax) {
        fields.fail(
            "stop",
            "every entry must be a string of at most " + std::to_string(kStopBytesMax) + " bytes");
        return;
      }
      out.stops.push_back(*text);
    }
  } else {
    fields.fail("stop",
                "expected a string or a list of strings, got " + std::string(type_name(*stop)));
    return;
  }
  if (std::any_of(out.stops.begin(), out.stops.end(), [](const auto& s) { return s.empty(); })) {
    fields.fail("stop", "an empty string cannot stop anything");
  }
}

void read_stop_tokens(FieldReader& fields, const FieldContext& context, GenerationFields& out) {
  const TemplateValue::List* ids = fields.list("stop_token_ids", kStopTokensMax);
  if (ids == nullptr) {
    return;
  }
  for (const TemplateValue& item : *ids) {
    const std::optional<int64_t> id = as_integer(item);
    if (!id || *id < 0 || *id >= context.vocab_size) {
      fields.fail(
          "stop_token_ids",
          "every entry must be a token id from 0 to " + std::to_string(context.vocab_size - 1));
      return;
    }
    out.stop_token_ids.push_back(static_cast<TokenId>(*id));
  }
}

void read_lengths(FieldReader& fields, GenerationFields& out) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  const std::optional<int64_t> old_name = fields.integer("max_tokens", 0, kMax);
  const std::optional<int64_t> new_name = fields.integer("max_completion_tokens", 0, kMax);
  if (const auto tokens = new_name ? new_name : old_name) {
    out.max_tokens = static_cast<int32_t>(*tokens);
  }
  out.sampling.min_new_tokens =
      static_cast<int32_t>(fields.integer("min_tokens", 0, kMax).value_or(0));
  if (out.max_tokens && out.sampling.min_new_tokens > *out.max_tokens) {
    fields.fail("min_tokens", "expected at most max_tokens");
  }
}

void read_streaming(FieldReader& fields, GenerationFields& out) {
  out.is_stream = fields.boolean("stream").value_or(false);
  if (!out.is_stream) {
    return;  // stream_options without a stream are ignored, whatever they are
  }
  const TemplateValue::Object* options = fields.object("stream_options");
  if (options == nullptr) {
    return;
  }
  std::optional<ApiError> error;
  FieldReader reader(*options, "stream_options.", error);
  out.includes_usage = reader.boolean("include_usage").value_or(false);
  out.includes_continuous_usage =
      reader.boolean("continuous_usage_stats").value_or(false) && out.includes_usage;
  if (error) {
    fields.fail("stream_options", "expected {\"include_usage\": boolean}");
  }
}

/// Output that must follow a grammar: refused rather than answered without it.
void refuse_structured_output(FieldReader& fields) {
  constexpr std::array<std::string_view, 10> kFields = {"regex",
                                                        "ebnf",
                                                        "json_schema",
                                                        "structural_tag",
                                                        "structured_outputs",
                                                        "guided_json",
                                                        "guided_regex",
                                                        "guided_grammar",
                                                        "guided_choice",
                                                        "stop_regex"};
  for (const std::string_view name : kFields) {
    if (fields.has(name)) {
      fields.fail(name, "structured output is not available", "unsupported_parameter");
    }
  }
  const TemplateValue::Object* format = fields.object("response_format");
  if (format == nullptr) {
    return;
  }
  std::optional<ApiError> error;
  FieldReader reader(*format, "response_format.", error);
  const std::optional<std::string> type = reader.string("type", 64);
  if (!type) {
    fields.fail("response_format", "expected an object with the string \"type\"");
  } else if (*type != "text") {
    fields.fail("response_format",
                "only {\"type\": \"text\"} is available; structured output is not",
                "unsupported_parameter");
  }
}

void refuse_unsupported(FieldReader& fields) {
  constexpr std::array<std::string_view, 16> kFields = {"prompt_embeds",
                                                        "input_embeds",
                                                        "mm_hashes",
                                                        "kv_transfer_params",
                                                        "cache_key",
                                                        "custom_logit_processor",
                                                        "logits_processors",
                                                        "bad_words",
                                                        "allowed_token_ids",
                                                        "truncate_prompt_tokens",
                                                        "prompt_logprobs",
                                                        "lora_path",
                                                        "audio",
                                                        "chat_template",
                                                        "input_ids",
                                                        "length_penalty"};
  for (const std::string_view name : kFields) {
    if (fields.has(name)) {
      fields.fail(name, "this parameter is not available", "unsupported_parameter");
    }
  }
  for (const std::string_view name : {"use_beam_search", "return_hidden_states"}) {
    if (fields.boolean(name).value_or(false)) {
      fields.fail(name, "this parameter is not available", "unsupported_parameter");
    }
  }
  if (fields.integer("best_of", 1, kChoicesMax).value_or(1) > 1) {
    fields.fail("best_of", "only 1 is available; use n", "unsupported_parameter");
  }
}

}  // namespace

GenerationFields read_generation_fields(FieldReader& fields, const FieldContext& context) {
  GenerationFields out;
  out.model = fields.string("model", kModelNameBytesMax).value_or("");
  refuse_structured_output(fields);
  refuse_unsupported(fields);
  read_sampling(fields, context, out.sampling);
  read_logit_bias(fields, context, out.sampling);
  read_stops(fields, out);
  read_stop_tokens(fields, context, out);
  read_lengths(fields, out);
  read_streaming(fields, out);
  out.num_choices = static_cast<int32_t>(fields.integer("n", 1, kChoicesMax).value_or(1));
  if (const auto seed = fields.integer(
          "seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max())) {
    out.seed = static_cast<uint64_t>(*seed);
  }
  out.ignores_eos = fields.boolean("ignore_eos").value_or(false);
  out.keeps_stop = fields.boolean("no_stop_trim").value_or(false) ||
                   fields.boolean("include_stop_str_in_output").value_or(false);
  out.skips_special_tokens = fields.boolean("skip_special_tokens").value_or(true);
  out.priority = static_cast<int32_t>(fields.integer("priority", -1000, 1000).value_or(0));
  if (const auto salt = fields.string("cache_salt", 256)) {
    if (salt->empty()) {
      fields.fail("cache_salt", "expected a string that is not empty");
    }
    out.cache_salt = *salt;
  }
  return out;
}

}  // namespace hadal::api
