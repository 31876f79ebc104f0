// `hadal generate`: one prompt through the whole engine, the answer on standard output as it grows.
#include <cstdio>

#include <hadal/metrics/metrics.h>
#include <hadal/text/output_parser.h>

#include "assembly.h"
#include "commands.h"
#include "exit_code.h"
#include "generation_config.h"
#include "waiting_sink.h"

namespace hadal {

namespace {

int fail(int code, const Error& error) {
  std::fprintf(stderr, "hadal generate: %s\n", error.message.c_str());
  return code;
}

TemplateValue text_value(std::string text, bool is_content) {
  TemplateValue value;
  value.value = std::move(text);
  value.is_content = is_content;
  return value;
}

TemplateValue object_value(TemplateValue::Object object) {
  TemplateValue value;
  value.value = std::make_shared<const TemplateValue::Object>(std::move(object));
  return value;
}

std::string token_text(const Tokenizer& tokenizer, std::optional<TokenId> id) {
  return id ? std::string(tokenizer.bytes(*id)) : std::string();
}

Result<std::vector<TokenId>> encode_prompt(const Config& config,
                                           const TextParts& parts,
                                           const std::string& prompt) {
  const Tokenizer& tokenizer = parts.tokenizer;
  if (config.generate.is_raw) {
    std::vector<TokenId> ids = tokenizer.encode(prompt, AddedTokens::parse);
    if (const auto bos = tokenizer.bos_id(); bos && tokenizer.adds_bos()) {
      ids.insert(ids.begin(), *bos);
    }
    return ids;
  }
  TemplateValue message =
      object_value({{"role", text_value("user", false)}, {"content", text_value(prompt, true)}});
  TemplateValue messages;
  messages.value =
      std::make_shared<const TemplateValue::List>(TemplateValue::List{std::move(message)});
  TemplateValue add_generation_prompt;
  add_generation_prompt.value = true;
  const TemplateValue context =
      object_value({{"messages", std::move(messages)},
                    {"add_generation_prompt", std::move(add_generation_prompt)},
                    {"bos_token", text_value(token_text(tokenizer, tokenizer.bos_id()), false)},
                    {"eos_token", text_value(token_text(tokenizer, tokenizer.eos_id()), false)}});
  auto rendered = parts.chat_template.render(context);
  if (!rendered) {
    return rendered.error();
  }
  return tokenizer.encode(rendered.value());
}

int print_answer(WaitingSink& sink, OutputParser& parser) {
  while (true) {
    const TokenEvent event = sink.next();
    if (event.token && event.token != event.matched_stop_token) {
      std::fputs(parser.push(*event.token).content.c_str(), stdout);
      std::fflush(stdout);
    }
    if (event.finish) {
      std::fputs(parser.finish().content.c_str(), stdout);
      std::fputc('\n', stdout);
      if (*event.finish == FinishReason::error || *event.finish == FinishReason::deadline) {
        return fail(kExitInternal, Error{ErrorCode::unavailable, event.error});
      }
      return kExitOk;
    }
  }
}

}  // namespace

int run_generate(const Config& config, const Environment& environment, const std::string& prompt) {
  if (config.layout.num_nodes > 1) {
    return fail(kExitUsage, multi_node_error(config.layout));
  }
  auto model_dir = find_model_dir(config.model.query, environment);
  if (!model_dir) {
    return fail(model_exit_code(model_dir.error()), model_dir.error());
  }
  auto parts = load_text_parts(config, model_dir.value());
  if (!parts) {
    return fail(model_exit_code(parts.error()), parts.error());
  }
  auto generation = load_generation_config(model_dir.value());
  if (!generation) {
    return fail(model_exit_code(generation.error()), generation.error());
  }
  auto ids = encode_prompt(config, parts.value(), prompt);
  if (!ids) {
    return fail(kExitUsage, ids.error());
  }
  auto runner = make_runner(config, model_dir.value(), parts.value().tokenizer.vocab_size());
  if (!runner) {
    return fail(model_exit_code(runner.error()), runner.error());
  }
  MetricsRegistry metrics(config.model.served_name);
  Engine engine(config.engine, std::move(runner).value(), metrics.metrics());
  engine.start();

  OutputParser parser(parts.value().tokenizer, ids.value(), OutputParser::Options{});
  GenerateRequest request;
  request.prompt = std::move(ids).value();
  request.max_new_tokens = config.generate.max_new_tokens;
  request.sampling.temperature = config.generate.temperature;
  request.sampling.top_p = config.generate.top_p;
  request.sampling.seed = config.generate.seed;
  request.stop_token_ids = stop_tokens(generation.value(), parts.value().tokenizer);
  auto sink = std::make_shared<WaitingSink>();
  if (auto id = engine.submit(std::move(request), sink); !id) {
    return fail(kExitUsage, id.error());
  }
  const int code = print_answer(*sink, parser);
  engine.drain_and_stop(system_clock().now());
  return code;
}

}  // namespace hadal
