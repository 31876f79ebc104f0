// For which decode steps a rank captures graphs at start, and what that took.
#pragma once

#include <cstdint>
#include <vector>

namespace hadal {

/// Only backends with graphs follow it.
struct GraphConfig {
  bool is_enabled = true;
  int32_t max_batch = 0;  ///< largest captured batch; 0 = 256, or what runs at once if less
  std::vector<int32_t> batches = {};  ///< the captured ones; empty = chosen up to max_batch
  bool pads = true;  ///< false: a step replays a graph only when its batch is a captured one
};

/// Of one rank.
struct CaptureReport {
  std::vector<int32_t> batches;  ///< ascending; empty = nothing was captured
  std::vector<int32_t>
      lengths;  ///< longest sequences, ascending; each batch has one graph for each
  double seconds = 0.0;
  int64_t bytes = 0;  ///< of device memory that was free before and is not now
};

/// How a rank's steps have run so far.
struct StepCounts {
  int64_t replayed = 0;       ///< forward passes that were graphs
  int64_t plain_decodes = 0;  ///< one generated token a row, yet op by op
  int64_t plain_others = 0;   ///< with prompt tokens or several tokens of a row, op by op
};

}  // namespace hadal
