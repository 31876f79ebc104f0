// `hadal shard`: the model, cut for one layout, as a directory that loads with sequential reads.
#include <cstdio>

#include "assembly.h"
#include "commands.h"
#include "exit_code.h"

namespace hadal {

namespace {

int fail(int code, const Error& error) {
  log_error(error.message);
  return code;
}

}  // namespace

int run_shard(const Config& config, const Environment& environment) {
  if (config.runner.null_step_us) {
    return fail(kExitUsage,
                Error{ErrorCode::unsupported, "--runner null: there is no model to shard"});
  }
  auto model_dir = find_model_dir(config.model.query, environment);
  if (!model_dir) {
    return fail(model_exit_code(model_dir.error()), model_dir.error());
  }
  ModelRunnerConfig runner = runner_config(config, model_dir.value());
  runner.progress = [](const LoadProgress& progress) {
    log_info("Sharding: " + progress_text(progress));
  };
  const Status written = shard_model(runner, config.shard.output_dir);
  if (!written) {
    const bool is_usage = written.error().code == ErrorCode::invalid_argument;
    return fail(is_usage ? kExitUsage : model_exit_code(written.error()), written.error());
  }
  log_info("Wrote " + config.shard.output_dir.string() + " for --tp " +
           std::to_string(config.layout.tp_size) + " --ep-size " +
           std::to_string(config.layout.ep_size));
  return kExitOk;
}

}  // namespace hadal
