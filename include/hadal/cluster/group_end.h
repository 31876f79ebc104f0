// Why a group of ranks ends: one reason and one line of text, the same on every node.
#pragma once

#include <cstdint>
#include <string>

namespace hadal {

/// Travels as one byte; a new reason goes to the end.
enum class EndReason : uint8_t {
  none,            ///< the group has not ended
  drained,         ///< rank 0 was asked to stop and has answered everything
  rank_failed,     ///< a rank ended by itself or by a signal
  rank_hung,       ///< a rank is stopped or a step does not end
  node_lost,       ///< a node's connection broke or fell silent
  disagreement,    ///< ranks consumed or produced different ids, or hold different page tables
  secret_refused,  ///< a peer does not know the group's secret
  mismatch,        ///< version, configuration or model differ between nodes
  join_timeout,    ///< not all nodes came in time
  bad_setup,       ///< an address, file or flag of this node is wrong
};

struct GroupEnd {
  EndReason reason = EndReason::none;
  std::string text;  ///< one line; names the rank or node and the cause
};

}  // namespace hadal
