// Connections to this rank's counterparts on other nodes, and the exchange of messages over all of
// them at once.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include <hadal/base/result.h>

#include "node_memory.h"

namespace hadal {

/// What goes to and comes from one peer in an exchange. A zero size sends or expects nothing, not
/// even a header.
struct PeerTransfer {
  const std::byte* out = nullptr;
  int64_t out_bytes = 0;
  std::byte* in = nullptr;
  int64_t in_bytes = 0;
};

struct PeerLinksOptions {
  int32_t own_node = 0;
  int32_t node_size = 1;   ///< ranks a node
  int32_t local_rank = 0;  ///< place within every node: the counterparts'
  int32_t deadline_ms = 0;
  /// Asked every few milliseconds while waiting: an error ends the exchange. May be empty.
  std::function<Status()> interrupt;
};

/// One rank's links. The stepping thread calls exchange; fail and status belong to any thread.
class PeerLinks {
 public:
  /// fds: [nodes], -1 for the own node; owned.
  PeerLinks(std::vector<int> fds, PeerLinksOptions options);
  ~PeerLinks();
  PeerLinks(const PeerLinks&) = delete;
  PeerLinks& operator=(const PeerLinks&) = delete;

  int32_t num_nodes() const { return static_cast<int32_t>(fds_.size()); }

  int32_t own_node() const { return options_.own_node; }

  /// transfers: [nodes]; the own node's is ignored. Every message carries the stamp and a sequence
  /// number, which must equal the peer's. False when the group has failed.
  bool exchange(const std::vector<PeerTransfer>& transfers, const RoundStamp& stamp);

  /// The first failure wins; the peers see the connections end.
  void fail(const Error& error) noexcept;
  Status status() const;

 private:
  struct Header;
  struct Flow;

  std::string name(size_t node) const;
  bool send_some(size_t node, Flow& flow);
  bool receive_some(size_t node, Flow& flow);
  bool check_header(size_t node, const Flow& flow);
  bool wait(std::vector<Flow>& flows, int timeout_ms);
  void fail_late(const std::vector<Flow>& flows);

  std::vector<int> fds_;
  PeerLinksOptions options_;
  int eager_turns_ = 0;
  uint64_t sequence_ = 0;
  mutable std::mutex mutex_;
  std::optional<Error> error_;
  std::atomic<bool> has_failed_{false};
};

}  // namespace hadal
