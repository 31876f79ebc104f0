// What a rank process has of its group: the node's board, and a thread that shows that it lives and
// ends it with the group.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include <hadal/cluster/board.h>
#include <hadal/cluster/fanout_runner.h>
#include <hadal/runtime/runner.h>

#include "assembly.h"
#include "config.h"

namespace hadal {

class RankSeat {
 public:
  /// Maps the board and starts the thread. Errors name --rank or --rank-board.
  static Result<std::unique_ptr<RankSeat>> take(const Config& config);
  RankSeat(const RankSeat&) = delete;
  RankSeat& operator=(const RankSeat&) = delete;

  int32_t rank() const { return rank_; }

  Board& board() { return *board_; }

  /// This rank's runner: the null runner or its shard of the model, with collectives to the other
  /// ranks. Rank 0's publishes its plans, and its null runner's vocabulary is everyone's. Loads;
  /// errors as make_runner.
  Result<std::unique_ptr<Runner>> make_runner(const Config& config,
                                              const std::filesystem::path& model_dir,
                                              int32_t null_vocab_size,
                                              const PhaseFn& on_phase = {});

  /// Rank 0, once clients are served: they are told before the process ends with the group.
  void begin_serving() { is_serving_.store(true); }

  /// Before the runner that make_runner gave is destroyed.
  void forget_runner();
  /// Ready, and until every other rank is.
  Status wait_all_ready();

 private:
  RankSeat(std::unique_ptr<Board> board, int32_t rank);
  void watch(const std::stop_token& stop);
  Result<int32_t> agree_on_vocabulary(int32_t own);

  std::unique_ptr<Board> board_;
  int32_t rank_;
  std::mutex fanout_mutex_;
  const FanoutRunner* fanout_ = nullptr;  ///< rank 0; owned by the engine
  std::atomic<bool> is_serving_{false};
  std::jthread thread_;
};

}  // namespace hadal
