// Ranks that are processes, on one node or on several: shared memory within a node, one TCP
// connection per pair of corresponding ranks between nodes.
//
// Ranks count node by node: node n of L ranks each holds ranks n * L to n * L + L - 1. Who meets
// whom is agreed before (by the rendezvous); connect_peers below makes the connections once the
// addresses are known.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include <hadal/base/result.h>
#include <hadal/comm/communicator.h>

namespace hadal {

/// How a sum crosses nodes. On the host both give the same bits.
enum class AllReduce : uint8_t {
  flat,  ///< every rank's input goes to every rank
  hier,  ///< reduce-scatter in the node, exchange between nodes, all-gather in the node
};

/// Largest piece that a rank puts into shared memory at once; longer tensors go in several.
inline constexpr int64_t kNodeSlotBytes = int64_t{256} << 10;

/// A descriptor of new anonymous shared memory for the `num_ranks` ranks of one node: 2 x
/// slot_bytes a rank. It is inherited or sent to them, and closed by whoever made it; no name is
/// left behind. invalid_argument, or resource_exhausted with the system's reason.
Result<int> create_node_memory(int32_t num_ranks, int64_t slot_bytes = kNodeSlotBytes);

struct ProcessCommConfig {
  int32_t rank = 0;
  int32_t world_size = 1;
  int32_t node_size = 1;  ///< ranks a node; divides world_size
  /// From create_node_memory, the same memory in all ranks of a node. Mapped, not kept: the caller
  /// closes it.
  int node_memory_fd = -1;
  /// [world_size / node_size] connected stream sockets: element n leads to this rank's counterpart
  /// on node n, -1 for the own node. Owned by the communicator, also when it cannot be made.
  std::vector<int> peer_fds;
  AllReduce all_reduce = AllReduce::hier;
  /// Longest wait for another rank within one collective: what a working group never needs. Ranks
  /// start their first collective within this time of each other.
  int32_t deadline_ms = 30000;
};

/// This rank's end; needs no other rank to be there yet. Host tensors only.
///
/// A rank that exits is noticed within 50 ms by the ranks of its node, at once by its counterparts;
/// one that hangs after deadline_ms. poll_error is unavailable then and names the rank, data_loss
/// when a rank called another collective than this one, cancelled after abort(). abort() on any
/// rank ends the collectives of all. invalid_argument names the field at fault.
Result<std::unique_ptr<Communicator>> make_process_communicator(ProcessCommConfig config);

/// Two levels over any transport: `node` joins the ranks of a node, `cross` the ranks with the same
/// place in every node (its rank r is node r). Ranks count node by node. AllReduce::flat copies on
/// the host and needs host tensors; AllReduce::hier sums in place wherever the parts compute.
std::unique_ptr<Communicator> make_two_level_communicator(std::unique_ptr<Communicator> node,
                                                          std::unique_ptr<Communicator> cross,
                                                          AllReduce all_reduce);

struct PeerAddress {
  std::string host;  ///< name or number
  uint16_t port = 0;
};

/// A listening socket for the connections of other nodes. Movable.
class PeerListener {
 public:
  /// Port 0 lets the system choose. unavailable says why the address cannot be taken.
  static Result<PeerListener> listen_on(const PeerAddress& address);
  PeerListener(PeerListener&& other) noexcept;
  PeerListener& operator=(PeerListener&&) = delete;
  ~PeerListener();

  int fd() const { return fd_; }

  uint16_t port() const { return port_; }

 private:
  PeerListener(int fd, uint16_t port) : fd_(fd), port_(port) {}

  int fd_ = -1;
  uint16_t port_ = 0;
};

/// A secret that the ranks of one group share and nobody else knows: a connection that does not
/// begin with it is dropped.
using GroupToken = std::array<std::byte, 16>;

struct PeerConnectConfig {
  int32_t rank = 0;
  int32_t world_size = 1;
  int32_t node_size = 1;
  /// [world_size / node_size]: where this rank's counterpart on each node listens.
  std::vector<PeerAddress> addresses;
  GroupToken token{};
  int32_t deadline_ms = 30000;
};

/// Connects this rank to its counterparts: to those of lower nodes, accepting those of higher ones.
/// Returns ProcessCommConfig::peer_fds; the caller owns them. unavailable names the rank that was
/// not reached in time.
Result<std::vector<int>> connect_peers(const PeerConnectConfig& config,
                                       const PeerListener& listener);

}  // namespace hadal
