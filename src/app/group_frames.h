// What the supervisors tell each other, and the threads that carry it between a node's board and
// the network: plans and ends from node 0, answers to it, and what ranks show each other both ways.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include <hadal/cluster/board.h>
#include <hadal/cluster/node_group.h>

namespace hadal {

class GroupCarrier final : public NodeGroupListener {
 public:
  GroupCarrier(Board& board, int32_t node_rank);
  ~GroupCarrier() override;

  /// Takes the formed group and starts to carry. A single node never calls it.
  void begin(std::unique_ptr<NodeGroup> group);
  /// Phases, blobs and, on node 0, "all ready". Main thread, many times a second.
  void turn();
  void send_end(const GroupEnd& end);
  /// A worker's SIGTERM.
  void send_stop_request();

  /// True once after a worker reported one.
  bool take_stop_request() { return stop_requested_.exchange(false); }

  /// Stays for `linger_s` on node 0, then closes the connections.
  void finish(double linger_s);

  void on_frame(int32_t node, GroupFrameType type, std::span<const std::byte> payload) override;
  void on_lost(int32_t node, const std::string& why) override;

 private:
  void carry_plans(const std::stop_token& stop);
  void carry_acks(const std::stop_token& stop);
  void take_ack(int32_t node, std::span<const std::byte> payload);
  void take_phase(int32_t node, std::span<const std::byte> payload);
  void take_blob(int32_t node, std::span<const std::byte> payload);
  void take_end(std::span<const std::byte> payload);
  void tell(GroupFrameType type, std::span<const std::byte> payload);
  void tell_blob(int32_t rank, int32_t round, std::span<const std::byte> bytes);
  bool is_of_node(int32_t rank, int32_t node) const;

  Board& board_;
  int32_t node_rank_;
  bool is_leader_;
  std::shared_ptr<NodeGroup> group_;
  std::vector<RankPhase> told_phases_;
  std::vector<uint32_t> told_blobs_;  ///< rounds told, as bits, by rank
  std::atomic<bool> stop_requested_{false};
  std::jthread thread_;
};

}  // namespace hadal
