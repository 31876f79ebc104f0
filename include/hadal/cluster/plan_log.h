// A recorded plan stream: what rank 0 decided and what came of it, so that one rank can do the same
// again. The file is read as hostile: it may come from somebody else.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include <hadal/base/result.h>
#include <hadal/runtime/runner.h>

namespace hadal {

/// Wraps a runner: every plan and the tokens of every result are appended to `path`, which is
/// replaced. A file that cannot be written any more is reported once and the runner goes on.
/// not_found when it cannot be opened.
Result<std::unique_ptr<Runner>> make_recording_runner(std::unique_ptr<Runner> runner,
                                                      const std::filesystem::path& path);

/// The limits that the recorded plans were made for.
Result<RunnerLimits> read_plan_log_limits(const std::filesystem::path& path);

struct ReplayReport {
  int64_t num_steps = 0;
  int64_t num_tokens = 0;  ///< sampled
  /// The first step whose tokens differ; empty when all are the same.
  std::string first_difference;
};

/// Runs every whole recorded step on `runner`, whose limits must hold the recorded ones. data_loss
/// names what is damaged; a last record cut short (the process was killed) is not.
Result<ReplayReport> replay_plan_log(const std::filesystem::path& path, Runner& runner);

}  // namespace hadal
