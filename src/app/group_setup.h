// From the configuration to what the nodes of a group agree on.
#pragma once

#include <hadal/cluster/board.h>
#include <hadal/cluster/node_group.h>

#include "config.h"

namespace hadal {

/// Ranks are processes: several nodes, or --rank-processes.
bool has_rank_processes(const Config& config);

BoardShape board_shape(const LayoutOptions& layout);

/// From --group-secret-file, or from the default file where there is one. invalid_argument.
Result<GroupSecret> group_secret(const Config& config);

/// The secret and what every node must have in common: version, flags that change what a
/// step does, and the model's files. invalid_argument, not_found and data_loss as their readers.
Result<NodeGroupConfig> node_group_config(const Config& config, const Environment& environment);

/// Blob rounds of a node's supervisor: its address as other nodes reach it, and the path of the
/// memory for collectives.
inline constexpr int32_t kHostRound = 0;
inline constexpr int32_t kNodeMemoryRound = 1;

/// What a process of the group ends with for this reason.
int group_exit_code(EndReason reason);

}  // namespace hadal
