// Keys are SGLang's: flag names with underscores.
#include "server_args.h"

#include <algorithm>
#include <charconv>

#include <nlohmann/json.hpp>

namespace hadal {

namespace {

using nlohmann::json;

json flag_json(const FlagSpec& flag, const std::vector<std::string>& values) {
  if (flag.kind == FlagKind::toggle) {
    return true;
  }
  if (flag.kind == FlagKind::list) {
    return values;
  }
  const std::string& text = values.back();
  const bool is_literal = flag.kind == FlagKind::integer || flag.kind == FlagKind::number;
  if (is_literal) {
    json number = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (number.is_number()) {
      return number;
    }
  }
  return text;
}

}  // namespace

std::string server_args_json(const Config& config) {
  json args = {{"model_path", config.model.query.name},
               {"served_model_name", config.model.served_name},
               {"host", config.api.host},
               {"port", config.api.port},
               {"device", config.runner.device == DeviceType::cuda ? "cuda" : "cpu"},
               {"tp_size", config.layout.tp_size},
               {"ep_size", config.layout.ep_size},
               {"nnodes", config.layout.num_nodes},
               {"node_rank", config.layout.node_rank},
               {"max_running_requests", config.engine.max_running_requests},
               {"chunked_prefill_size", config.engine.chunked_prefill_tokens},
               {"max_prefill_tokens", config.engine.max_prefill_tokens},
               {"disable_radix_cache", !config.engine.enable_radix_cache}};
  for (const auto& [name, values] : config.given) {
    const FlagSpec* flag = find_flag(name);
    if (flag == nullptr || values.empty() || name == "api-key" || name == "device") {
      continue;
    }
    std::string key = name;
    std::replace(key.begin(), key.end(), '-', '_');
    args[key] = flag_json(*flag, values);
  }
  return args.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace hadal
