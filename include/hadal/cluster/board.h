// Shared memory of one node: the plan stream from its producer to the node's ranks, their answers,
// and the reason why the group ends. On node 0 the producer is rank 0; on the others it is the
// supervisor, which takes plans from the network.
//
// The hard thing is to cost rank 0 the same for 1 rank and for 16: it writes a plan once and rings
// two bells, and every rank that wakes rings two more.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <hadal/base/clock.h>
#include <hadal/base/result.h>
#include <hadal/cluster/group_end.h>

namespace hadal {

inline constexpr int32_t kBoardRanksMax = 256;
/// Largest plan with its digest; two of them fit into the stream.
inline constexpr int64_t kPlanBytesMax = int64_t{16} << 20;
/// Small values that ranks show each other while they start.
inline constexpr int64_t kBlobBytesMax = 1024;
inline constexpr int32_t kBlobRounds = 8;

struct BoardShape {
  int32_t world_size = 1;
  int32_t first_rank = 0;  ///< of this node
  int32_t num_local = 1;
  /// The supervisor reads the plan stream too: node 0 of several nodes.
  bool supervisor_reads = false;
};

enum class RankPhase : uint32_t { absent, loading, ready };

/// What a rank says about a step: hashes of the ids that the step consumed and sampled.
struct StepAck {
  uint64_t step_id = 0;
  uint64_t consumed = 0;
  uint64_t produced = 0;
};

/// Every method may be called from any process and thread, unless it says otherwise. Waits end
/// early when the group has ended.
class Board {
 public:
  /// Anonymous memory that children find under path_for_children().
  static Result<std::unique_ptr<Board>> create(const BoardShape& shape);
  /// Maps another process's board. not_found or data_loss (another version of hadal).
  static Result<std::unique_ptr<Board>> attach(const std::string& path);
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;
  ~Board();

  const BoardShape& shape() const;
  /// The descriptor is inherited; a process started by hand uses /proc/PID/fd/N instead.
  std::string path_for_children() const;
  std::string path_for_others() const;

  // The plan stream.

  /// Producer only, one thread. False when the stream is full: a reader is two large plans behind.
  bool publish(std::span<const std::byte> plan);
  /// The next plan for this reader: a rank of this node, or kSupervisorReader. False at the
  /// deadline or when the group has ended. One thread a reader.
  bool read(int32_t reader, std::vector<std::byte>& plan, TimePoint deadline);
  static constexpr int32_t kSupervisorReader = -1;

  // What ranks answer; `rank` counts over all nodes.

  void set_ack(int32_t rank, const StepAck& ack);
  uint64_t last_acked(int32_t rank) const;
  /// nullopt: not yet, or more than 16 steps ago.
  std::optional<StepAck> ack_of(int32_t rank, uint64_t step_id) const;
  /// Sleeps until set_ack was called after `seen` was taken: by `rank`, or by any with kAnyRank.
  /// One thread of one process.
  uint32_t ack_count() const;
  void wait_ack(uint32_t seen, int32_t rank, TimePoint deadline) const;
  static constexpr int32_t kAnyRank = -1;

  void set_phase(int32_t rank, RankPhase phase);
  RankPhase phase(int32_t rank) const;
  void set_pid(int32_t rank, int32_t pid);
  int32_t pid(int32_t rank) const;
  /// Called a few times a second by every process, kSupervisorReader included.
  void beat(int32_t rank);
  uint64_t beats(int32_t rank) const;
  /// True once the supervisor knows that every rank of the group is ready.
  void set_all_ready();
  bool is_all_ready() const;

  // Values that all ranks show each other, round after round.

  void set_blob(int32_t rank, int32_t round, std::span<const std::byte> bytes);
  std::optional<std::vector<std::byte>> blob(int32_t rank, int32_t round) const;

  // The end.

  /// The first reason stays.
  void set_end(EndReason reason, const std::string& text);
  EndReason end_reason() const;
  GroupEnd end() const;

 private:
  struct Memory;
  struct Reader;
  Board(int fd, Memory* memory);
  Reader& reader(int32_t index) const;
  void ring_readers(size_t from) const;
  void copy_in(uint64_t at, std::span<const std::byte> bytes) const;
  void copy_out(uint64_t at, std::span<std::byte> bytes) const;

  int fd_;
  Memory* memory_;
  std::vector<int32_t> readers_;  ///< in the order in which they are woken
};

}  // namespace hadal
