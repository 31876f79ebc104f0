// The identity holds flags as they were resolved, so that a default and the same value given by
// hand are equal.
#include "group_setup.h"

#include <cmath>

#include "exit_code.h"
#include "model_path.h"
#include "version.h"

namespace hadal {
namespace {

void add(Identity& identity, std::string name, int64_t value) {
  identity.push_back({std::move(name), std::to_string(value)});
}

Identity flags_identity(const Config& config) {
  Identity identity;
  identity.push_back({"hadal version", std::string(kVersion) + " (" + kCommit + ")"});
  const LayoutOptions& layout = config.layout;
  add(identity, "--nnodes", layout.num_nodes);
  add(identity, "--tp-size", layout.tp_size);
  add(identity, "--ep-size", layout.ep_size);
  add(identity, "--context-length", config.model.context_length);
  add(identity, "--max-total-tokens", config.runner.kv_tokens_max);
  add(identity, "--max-running-requests", config.engine.max_running_requests);
  add(identity, "--chunked-prefill-size", config.engine.chunked_prefill_tokens);
  add(identity, "--max-prefill-tokens", config.engine.max_prefill_tokens);
  add(identity, "--mem-fraction-static", std::lround(config.runner.memory_fraction * 1000));
  add(identity, "--load-format", static_cast<int64_t>(config.model.load_format));
  add(identity, "--device", static_cast<int64_t>(config.runner.device));
  add(identity, "HADAL_KERNEL_FAMILY", static_cast<int64_t>(config.runner.kernel_family));
  add(identity, "--fp8-activations", config.runner.fp8_activations ? 1 : 0);
  add(identity, "--deterministic", config.runner.is_deterministic ? 1 : 0);
  add(identity, "--cpu-mode", static_cast<int64_t>(config.runner.cpu_mode));
  add(identity, "--kv-cache-dtype", static_cast<int64_t>(config.runner.kv_dtype));
  identity.push_back({"--runner",
                      config.runner.null_step_us
                          ? "null:" + std::to_string(*config.runner.null_step_us)
                          : std::string("model")});
  return identity;
}

}  // namespace

bool has_rank_processes(const Config& config) {
  return config.layout.num_nodes > 1 || config.rank.uses_processes;
}

BoardShape board_shape(const LayoutOptions& layout) {
  return {.world_size = layout.tp_size,
          .first_rank = layout.node_rank * layout.ranks_per_node(),
          .num_local = layout.ranks_per_node(),
          .supervisor_reads = layout.node_rank == 0 && layout.num_nodes > 1};
}

Result<GroupSecret> group_secret(const Config& config) {
  const bool is_given = !config.rank.secret_file.empty();
  return read_group_secret(
      is_given ? config.rank.secret_file : std::filesystem::path(kDefaultSecretFile), is_given);
}

Result<NodeGroupConfig> node_group_config(const Config& config, const Environment& environment) {
  NodeGroupConfig result;
  result.host = config.layout.rendezvous_host;
  result.port = config.layout.rendezvous_port;
  result.num_nodes = config.layout.num_nodes;
  result.node_rank = config.layout.node_rank;
  result.timeout_s = config.layout.rendezvous_timeout_s;
  auto secret = group_secret(config);
  if (!secret) {
    return secret.error();
  }
  result.secret = std::move(secret).value();
  result.identity = flags_identity(config);
  if (config.runner.null_step_us && config.model.query.name.empty()) {
    return result;
  }
  auto model_dir = find_model_dir(config.model.query, environment);
  if (!model_dir) {
    return model_dir.error();
  }
  auto model =
      model_identity(model_dir.value(),
                     config.model.load_format != LoadFormat::dummy && !config.runner.null_step_us);
  if (!model) {
    return model.error();
  }
  result.identity.insert(result.identity.end(), model.value().begin(), model.value().end());
  return result;
}

int group_exit_code(EndReason reason) {
  switch (reason) {
    case EndReason::drained:
      return kExitOk;
    case EndReason::none:
    case EndReason::rank_failed:
      return kExitRankFailed;
    case EndReason::rank_hung:
      return kExitRankHung;
    case EndReason::node_lost:
      return kExitNodeLost;
    case EndReason::disagreement:
      return kExitDisagreement;
    case EndReason::secret_refused:
      return kExitSecret;
    case EndReason::mismatch:
      return kExitMismatch;
    case EndReason::join_timeout:
      return kExitRetry;
    case EndReason::bad_setup:
      return kExitUsage;
  }
  return kExitInternal;
}

}  // namespace hadal
