// The data plane of a group of processes, agreed on over the boards.
#pragma once

#include <filesystem>
#include <memory>

#include <hadal/cluster/board.h>
#include <hadal/runtime/runner.h>

#include "assembly.h"
#include "config.h"

namespace hadal {

/// Loads this rank's shard and joins its collectives. Every rank of the group calls it; it ends
/// early when the group does. `on_phase` as for make_runner. Errors as make_model_runner.
Result<std::unique_ptr<Runner>> make_group_rank_runner(const Config& config,
                                                       const std::filesystem::path& model_dir,
                                                       Board& board,
                                                       int32_t rank,
                                                       const PhaseFn& on_phase = {});

}  // namespace hadal
