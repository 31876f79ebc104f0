// The control plane between nodes: node 0 listens, the others connect, everyone proves the secret
// and shows the same identity, and from then on frames and heartbeats go both ways.
//
// The hard thing is the time before that: nodes start in any order and minutes apart, names do not
// resolve yet, and the port is open to scanners and damaged peers while the group forms. A stranger
// costs one of a few pending handshakes with a deadline each and learns nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include <hadal/auth/group_secret.h>
#include <hadal/base/result.h>
#include <hadal/cluster/group_end.h>
#include <hadal/cluster/identity.h>

namespace hadal {

struct NodeGroupConfig {
  std::string host;   ///< of node 0, a name or an address
  uint16_t port = 0;  ///< 0 = any free one (node 0 only; for tests)
  int32_t num_nodes = 1;
  int32_t node_rank = 0;
  double timeout_s = 600;  ///< to form the group
  GroupSecret secret;
  Identity identity;
  double heartbeat_s = 1;
  double silence_s = 4;    ///< a peer that says nothing for this long is lost
  double handshake_s = 5;  ///< of one connection
};

/// Frames of the users of a group; types below 100 are the group's own.
using GroupFrameType = uint16_t;
inline constexpr GroupFrameType kFirstUserFrame = 100;
/// Largest payload of one frame.
inline constexpr int64_t kGroupFrameBytesMax = int64_t{16} << 20;

/// Called from the group's threads; calls about one node never overlap.
class NodeGroupListener {
 public:
  virtual ~NodeGroupListener() = default;
  virtual void on_frame(int32_t node, GroupFrameType type, std::span<const std::byte> payload) = 0;
  /// Once a node, after the group has formed; the connection is closed.
  virtual void on_lost(int32_t node, const std::string& why) = 0;
};

class NodeGroup {
 public:
  virtual ~NodeGroup() = default;

  /// To node 0's peers or, on them, to node 0. Never blocks; false when the node is lost or
  /// does not read (its connection is then closed and reported).
  virtual bool send(int32_t node, GroupFrameType type, std::span<const std::byte> payload) = 0;
  /// To every connected node.
  virtual void broadcast(GroupFrameType type, std::span<const std::byte> payload) = 0;
  /// Sends what is queued for at most `seconds`, then closes every connection.
  virtual void close(double seconds) = 0;
  /// This node's own address, without a port, as the other nodes reach it.
  virtual std::string host() const = 0;
  /// Node 0's port.
  virtual uint16_t port() const = 0;
};

struct FormedGroup {
  std::unique_ptr<NodeGroup> group;  ///< nullptr: see failure
  GroupEnd failure;
};

/// Blocks until every node has joined; `is_cancelled` is asked now and then and ends the wait with
/// EndReason::drained. `on_port` is told node 0's port once it listens. `listener` must outlive the
/// group.
FormedGroup form_node_group(const NodeGroupConfig& config,
                            NodeGroupListener& listener,
                            const std::function<bool()>& is_cancelled,
                            const std::function<void(uint16_t)>& on_port = {});

}  // namespace hadal
