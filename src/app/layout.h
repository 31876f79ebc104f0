// From flags and LeaderWorkerSet's environment to the parallel layout.
#pragma once

#include <optional>
#include <string>

#include "config.h"

namespace hadal {

struct LayoutFlags {
  int32_t tp_size = 1;
  std::optional<int32_t> num_nodes;
  std::optional<int32_t> node_rank;
  std::optional<std::string> address;  ///< host:port
};

/// Flags win; then LWS_GROUP_SIZE, LWS_WORKER_INDEX (or the host name against LWS_LEADER_ADDRESS)
/// and LWS_LEADER_ADDRESS:20000. invalid_argument names the flag or variable at fault.
Result<LayoutOptions> resolve_layout(const LayoutFlags& flags, const Environment& environment);

}  // namespace hadal
