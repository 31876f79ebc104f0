// The memory that the ranks of a node share: a barrier, one failure for all, and two slots a rank.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <hadal/base/clock.h>
#include <hadal/base/result.h>

namespace hadal {

/// What a rank brings to a round; all ranks of a group bring the same.
struct RoundStamp {
  uint32_t op = 0;    ///< CommOp
  int32_t root = 0;   ///< broadcast only
  int64_t bytes = 0;  ///< of the whole tensor

  friend bool operator==(const RoundStamp&, const RoundStamp&) = default;
};

enum class CommOp : uint32_t { all_reduce = 1, reduce_scatter, all_gather, broadcast };

const char* to_string(CommOp op);
/// "all_reduce of 4096 bytes".
std::string to_string(const RoundStamp& stamp);

struct NodeMemoryOptions {
  int32_t first_rank = 0;   ///< of the node, for messages
  int32_t local_rank = 0;   ///< of this process
  int32_t num_ranks = 1;    ///< of the node
  int32_t deadline_ms = 0;  ///< of one wait
};

/// One rank's mapping. The stepping thread calls all but fail and status (any thread).
class NodeMemory {
 public:
  /// See create_node_memory.
  static Result<int> create(int32_t num_ranks, int64_t slot_bytes);
  /// invalid_argument when the memory was made for other sizes.
  static Result<std::unique_ptr<NodeMemory>> map(int fd, const NodeMemoryOptions& options);
  ~NodeMemory();
  NodeMemory(const NodeMemory&) = delete;
  NodeMemory& operator=(const NodeMemory&) = delete;

  int64_t slot_bytes() const;

  int32_t num_ranks() const { return options_.num_ranks; }

  int32_t local_rank() const { return options_.local_rank; }

  /// Slot of a rank for round `round()`. The own one may be written until meet(), every one read
  /// after it until meet() of the next round. Own reads of the next round but one are over by then:
  /// slots alternate between two sets.
  std::byte* slot(int32_t local_rank) const;

  /// Ends this rank's writing of the round and waits for all ranks. False when the group has
  /// failed. Compares stamps.
  bool meet(const RoundStamp& stamp);

  /// Begins the next round.
  void next_round() { ++round_; }

  /// The first failure of the node wins; wakes every rank that waits.
  void fail(const Error& error) noexcept;
  Status status() const;

 private:
  struct Header;
  struct RankState;

  static size_t size_of_memory(int64_t num_ranks, int64_t slot_bytes);
  NodeMemory(std::byte* memory, size_t size, const NodeMemoryOptions& options);
  Header& header() const;
  RankState& rank_state(int32_t local_rank) const;
  bool wait_for_phase(uint32_t old_word, const RoundStamp& stamp);
  bool check_stamps(const RoundStamp& stamp);
  bool has_died(int32_t local_rank);
  /// True when a missing rank is dead or the time is over; the group has failed then.
  bool give_up(TimePoint begin, const RoundStamp& stamp);
  std::string name(int32_t local_rank) const;

  std::byte* memory_;
  size_t size_;
  NodeMemoryOptions options_;
  std::vector<int> process_fds_;  ///< of the node's ranks; -1 = not opened
  uint64_t round_ = 0;
  int spins_ = 0;
};

}  // namespace hadal
