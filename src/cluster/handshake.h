// One connection from the first byte to a member of the group. The node that connects proves the
// secret first, so that a stranger on the port gets a nonce and nothing else; then node 0 proves
// it; then both show who they are.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

#include <hadal/base/clock.h>
#include <hadal/cluster/node_group.h>

namespace hadal {

inline constexpr uint32_t kGroupProtocol = 1;

/// Why a connection did not become a member.
struct HandshakeFailure {
  EndReason reason = EndReason::node_lost;
  std::string text;
  /// The peer may simply not be ready, or not be ours: worth another connection.
  bool is_passing = false;
};

/// Node 0's end: the rank of the node that came.
std::variant<int32_t, HandshakeFailure> admit_node(int fd,
                                                   const NodeGroupConfig& config,
                                                   TimePoint deadline);
/// The other nodes' end; EndReason::none = accepted.
HandshakeFailure enter_group(int fd, const NodeGroupConfig& config, TimePoint deadline);

}  // namespace hadal
