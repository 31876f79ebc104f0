// Puts the transports of a group of processes together.
#include <bit>
#include <string>
#include <utility>

#include <hadal/comm/process_communicator.h>

#include "cross_comm.h"
#include "node_comm.h"
#include "node_memory.h"
#include "peer_links.h"

#include <unistd.h>

namespace hadal {

namespace {

Error bad_config(const std::string& what) {
  return Error{ErrorCode::invalid_argument, "process communicator: " + what};
}

Status check_config(const ProcessCommConfig& config) {
  const int32_t world = config.world_size;
  const int32_t node_size = config.node_size;
  if (world < 1 || world > 1024 || node_size < 1 || world % node_size != 0) {
    return bad_config("nodes of " + std::to_string(node_size) + " ranks do not make a world of " +
                      std::to_string(world) + ", at most 1024");
  }
  if (config.rank < 0 || config.rank >= world) {
    return bad_config("rank " + std::to_string(config.rank) + " is outside a world of " +
                      std::to_string(world));
  }
  if (config.deadline_ms < 1) {
    return bad_config("deadline_ms " + std::to_string(config.deadline_ms) + ", expected above 0");
  }
  const auto nodes = static_cast<size_t>(world / node_size);
  if (nodes == 1) {
    return ok_status();
  }
  if (config.peer_fds.size() != nodes) {
    return bad_config(std::to_string(config.peer_fds.size()) + " peer_fds for " +
                      std::to_string(nodes) + " nodes");
  }
  for (size_t node = 0; node < nodes; ++node) {
    const bool is_own = static_cast<int32_t>(node) == config.rank / node_size;
    if (is_own != (config.peer_fds[node] < 0)) {
      return bad_config("peer_fds[" + std::to_string(node) + "] is " +
                        std::to_string(config.peer_fds[node]));
    }
  }
  if (config.all_reduce == AllReduce::hier &&
      !std::has_single_bit(static_cast<unsigned>(node_size))) {
    return bad_config(
        "--all-reduce hier sums in the order of flat only on nodes of 2^k ranks, not " +
        std::to_string(node_size) + "; take --all-reduce flat");
  }
  return ok_status();
}

Result<std::unique_ptr<Communicator>> make_within_node(const ProcessCommConfig& config,
                                                       std::shared_ptr<NodeMemory>& memory) {
  if (config.node_size == 1) {
    return make_self_communicator();
  }
  const int32_t local_rank = config.rank % config.node_size;
  auto mapped = NodeMemory::map(config.node_memory_fd,
                                {.first_rank = config.rank - local_rank,
                                 .local_rank = local_rank,
                                 .num_ranks = config.node_size,
                                 .deadline_ms = config.deadline_ms});
  if (!mapped) {
    return mapped.error();
  }
  memory = std::move(mapped).value();
  return make_node_communicator(memory);
}

}  // namespace

Result<int> create_node_memory(int32_t num_ranks, int64_t slot_bytes) {
  return NodeMemory::create(num_ranks, slot_bytes);
}

Result<std::unique_ptr<Communicator>> make_process_communicator(ProcessCommConfig config) {
  const Status status = check_config(config);
  std::shared_ptr<NodeMemory> memory;
  auto node = status ? make_within_node(config, memory)
                     : Result<std::unique_ptr<Communicator>>(status.error());
  if (!node) {
    for (const int fd : config.peer_fds) {
      if (fd >= 0) {
        ::close(fd);
      }
    }
    return node.error();
  }
  if (config.world_size == config.node_size) {
    return std::move(node).value();
  }
  // A rank that waits for its counterpart learns of a failure in its own node.
  auto interrupt = [memory] { return memory ? memory->status() : ok_status(); };
  auto links =
      std::make_unique<PeerLinks>(std::move(config.peer_fds),
                                  PeerLinksOptions{.own_node = config.rank / config.node_size,
                                                   .node_size = config.node_size,
                                                   .local_rank = config.rank % config.node_size,
                                                   .deadline_ms = config.deadline_ms,
                                                   .interrupt = std::move(interrupt)});
  return make_two_level_communicator(
      std::move(node).value(), make_cross_communicator(std::move(links)), config.all_reduce);
}

}  // namespace hadal
