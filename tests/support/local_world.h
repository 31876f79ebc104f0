// Ranks of one machine that are to be forked: the memories of their nodes and the sockets between
// nodes exist before the fork, and each child joins with what it inherited. "Nodes" are separate
// memories, joined over loopback TCP.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include <hadal/comm/process_communicator.h>

#include <unistd.h>

namespace hadal::testing {

struct LocalWorldConfig {
  int32_t world_size = 2;
  int32_t node_size = 2;  ///< ranks a node
  AllReduce all_reduce = AllReduce::hier;
  int32_t deadline_ms = 60000;
  int64_t slot_bytes = kNodeSlotBytes;
};

class LocalWorld {
 public:
  /// Before the first fork. Errors as create_node_memory and PeerListener::listen_on.
  static Result<LocalWorld> create(const LocalWorldConfig& config) {
    LocalWorld world(config);
    for (int32_t node = 0; node < config.world_size / config.node_size; ++node) {
      const auto memory = create_node_memory(config.node_size, config.slot_bytes);
      if (!memory) {
        return memory.error();
      }
      world.memories_.push_back(memory.value());
    }
    for (int32_t rank = 0; rank < config.world_size; ++rank) {
      auto listener = PeerListener::listen_on({"127.0.0.1", 0});
      if (!listener) {
        return listener.error();
      }
      world.listeners_.push_back(std::move(listener).value());
    }
    return world;
  }

  LocalWorld(LocalWorld&& other) noexcept = default;
  LocalWorld& operator=(LocalWorld&&) = delete;

  ~LocalWorld() {
    for (const int memory : memories_) {
      ::close(memory);
    }
  }

  const LocalWorldConfig& config() const { return config_; }

  /// In the process of `rank`; blocks until its counterparts on other nodes have joined.
  Result<std::unique_ptr<Communicator>> join(int32_t rank) const {
    ProcessCommConfig comm;
    comm.rank = rank;
    comm.world_size = config_.world_size;
    comm.node_size = config_.node_size;
    comm.all_reduce = config_.all_reduce;
    comm.deadline_ms = config_.deadline_ms;
    comm.node_memory_fd = memories_[static_cast<size_t>(rank / config_.node_size)];
    if (config_.world_size > config_.node_size) {
      PeerConnectConfig connect;
      connect.rank = rank;
      connect.world_size = config_.world_size;
      connect.node_size = config_.node_size;
      for (int32_t peer = rank % config_.node_size; peer < config_.world_size;
           peer += config_.node_size) {
        connect.addresses.push_back({"127.0.0.1", listeners_[static_cast<size_t>(peer)].port()});
      }
      auto fds = connect_peers(connect, listeners_[static_cast<size_t>(rank)]);
      if (!fds) {
        return fds.error();
      }
      comm.peer_fds = std::move(fds).value();
    }
    return make_process_communicator(std::move(comm));
  }

 private:
  explicit LocalWorld(const LocalWorldConfig& config) : config_(config) {}

  LocalWorldConfig config_;
  std::vector<int> memories_;
  std::vector<PeerListener> listeners_;
};

}  // namespace hadal::testing
