// `hadal check`: everything `serve` would look at before it opens a port, told in plain words.
#include <cstdio>

#include "assembly.h"
#include "cli.h"
#include "commands.h"
#include "device.h"
#include "exit_code.h"
#include "generation_config.h"
#include "group_setup.h"

namespace hadal {

namespace {

void print(const char* name, const std::string& text) {
  std::printf("%-12s %s\n", name, text.c_str());
}

std::string layout_text(const Config& config) {
  const LayoutOptions& layout = config.layout;
  std::string text = "tp " + std::to_string(layout.tp_size);
  if (layout.ep_size > 1) {
    text += " (experts over " + std::to_string(layout.ep_size) + " groups)";
  }
  if (layout.num_nodes == 1) {
    return text + ", one node, " +
           (has_rank_processes(config) ? "each rank a process" : "all ranks in one process");
  }
  const int32_t first = layout.node_rank * layout.ranks_per_node();
  return text + " over " + std::to_string(layout.num_nodes) + " nodes; this is node " +
         std::to_string(layout.node_rank) + " with ranks " + std::to_string(first) + ".." +
         std::to_string(first + layout.ranks_per_node() - 1) + "; they meet at " +
         layout.rendezvous_host + ":" + std::to_string(layout.rendezvous_port) + " within " +
         std::to_string(layout.rendezvous_timeout_s) + " s";
}

std::string engine_text(const EngineConfig& engine) {
  return std::to_string(engine.max_running_requests) + " running, " +
         std::to_string(engine.max_queued_requests) + " queued, prefill chunks of " +
         (engine.chunked_prefill_tokens > 0 ? std::to_string(engine.chunked_prefill_tokens)
                                            : std::string("a whole prompt")) +
         " in steps of " + std::to_string(engine.max_prefill_tokens) + " tokens, radix cache " +
         (engine.enable_radix_cache ? "on" : "off");
}

void print_config(const Config& config) {
  print("version", version_text().substr(0, version_text().size() - 1));
  print("model", config.model.query.name.empty() ? "none" : config.model.query.name);
  print("served as", config.model.served_name);
  print("address", config.api.host + ":" + std::to_string(config.api.port));
  if (config.api.admin_port) {
    print("admin", config.api.admin_host + ":" + std::to_string(*config.api.admin_port));
  }
  print("layout", layout_text(config));
  print("engine", engine_text(config.engine));
  print("device", config.runner.null_step_us ? "none" : device_text(config));
  for (const std::string& note : config.notes) {
    print("note", note);
  }
  for (const std::string& warning : config.warnings) {
    print("warning", warning);
  }
}

int fail(const Error& error) {
  print("error", error.message);
  return model_exit_code(error);
}

Status check_text(const Config& config, const std::filesystem::path& model_dir) {
  auto parts = load_text_parts(config, model_dir);
  if (!parts) {
    return parts.error();
  }
  print("tokenizer", std::to_string(parts.value().tokenizer.vocab_size()) + " tokens");
  auto generation = load_generation_config(model_dir);
  if (!generation) {
    return generation.error();
  }
  std::string stops;
  for (const TokenId id : generation.value().eos_token_ids) {
    stops += (stops.empty() ? "" : ", ") + std::to_string(id);
  }
  print("stop tokens", stops.empty() ? "as config.json says" : stops);
  return ok_status();
}

/// Every node has the memory of this one; a model that does not fit still gets its weights listed.
Status check_memory(const Config& config, const std::filesystem::path& model_dir) {
  HADAL_RETURN_IF_ERROR(check_quantization(config, model_dir));
  const ModelRunnerConfig runner = runner_config(config, model_dir);
  const auto free_bytes = free_memory_bytes(config);
  if (!free_bytes) {
    return free_bytes.error();
  }
  auto plan = plan_model_memory(runner, free_bytes.value());
  if (plan) {
    std::printf("%s", to_text(plan.value()).c_str());
    return ok_status();
  }
  if (plan.error().code == ErrorCode::resource_exhausted) {
    auto unbounded = plan_model_memory(runner, int64_t{1} << 55);
    if (unbounded) {
      std::printf("needed by one rank:\n");
      for (const WeightGroupBytes& group : unbounded.value().weights) {
        std::printf(
            "  %-24s %10.3f GB\n", group.group.c_str(), static_cast<double>(group.bytes) / 1e9);
      }
      std::printf(
          "  %-24s %10.3f GB\n",
          "work space",
          static_cast<double>(unbounded.value().work_bytes + unbounded.value().ops_bytes) / 1e9);
      std::printf("  %-24s %10lld bytes\n",
                  "KV of one token",
                  static_cast<long long>(unbounded.value().kv_bytes_per_token));
    }
  }
  return plan.error();
}

}  // namespace

int run_check(const Config& config, const Environment& environment) {
  print_config(config);
  if (config.runner.null_step_us) {
    print("runner", "null: no model, no memory");
    return kExitOk;
  }
  auto model_dir = find_model_dir(config.model.query, environment);
  if (!model_dir) {
    return fail(model_dir.error());
  }
  print("directory", model_dir.value().string());
  if (Status memory = check_memory(config, model_dir.value()); !memory) {
    return fail(memory.error());
  }
  if (Status text = check_text(config, model_dir.value()); !text) {
    return fail(text.error());
  }
  print("result", "ready to serve");
  return kExitOk;
}

}  // namespace hadal
