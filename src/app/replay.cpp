// `hadal replay FILE`: the plans of a recorded run again, on one rank of this process, with the
// model's flags; says whether every step sampled the same tokens.
#include <cstdio>

#include <hadal/cluster/plan_log.h>

#include "assembly.h"
#include "commands.h"
#include "exit_code.h"

namespace hadal {
namespace {

int fail(int code, const Error& error) {
  std::fprintf(stderr, "hadal replay: %s\n", error.message.c_str());
  return code;
}

/// The same pages, slots and steps as the recorded run.
Config config_for(Config config, const RunnerLimits& limits) {
  config.layout.tp_size = 1;
  config.layout.ep_size = 1;
  config.runner.kv_tokens_max = static_cast<int64_t>(limits.num_pages) * kPageTokens;
  config.model.context_length = limits.max_context_tokens;
  config.engine.max_running_requests = limits.max_slots;
  config.engine.chunked_prefill_tokens = -1;
  config.engine.max_prefill_tokens = std::max(1, limits.max_step_tokens - limits.max_slots);
  return config;
}

}  // namespace

int run_replay(const Config& config, const Environment& environment, const std::string& file) {
  const auto limits = read_plan_log_limits(file);
  if (!limits) {
    return fail(limits.error().code == ErrorCode::not_found ? kExitModel : kExitData,
                limits.error());
  }
  std::filesystem::path model_dir;
  if (!config.runner.null_step_us) {
    auto found = find_model_dir(config.model.query, environment);
    if (!found) {
      return fail(model_exit_code(found.error()), found.error());
    }
    model_dir = std::move(found).value();
  }
  auto runner =
      make_runner(config_for(config, limits.value()), model_dir, limits.value().vocab_size);
  if (!runner) {
    return fail(model_exit_code(runner.error()), runner.error());
  }
  const auto report = replay_plan_log(file, *runner.value());
  if (!report) {
    return fail(kExitData, report.error());
  }
  std::printf("%lld steps, %lld tokens: %s\n",
              static_cast<long long>(report.value().num_steps),
              static_cast<long long>(report.value().num_tokens),
              report.value().first_difference.empty() ? "the same tokens"
                                                      : report.value().first_difference.c_str());
  return report.value().first_difference.empty() ? kExitOk : kExitDisagreement;
}

}  // namespace hadal
