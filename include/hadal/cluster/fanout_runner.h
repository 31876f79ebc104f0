// Rank 0's runner in a group, and the loop of every other rank.
//
// Rank 0 publishes each plan on the node's board and runs it itself; a step retires when rank 0's
// own result is there and every rank has acknowledged it with the same hashes.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <hadal/base/result.h>
#include <hadal/cluster/board.h>
#include <hadal/runtime/runner.h>

namespace hadal {

struct FanoutConfig {
  double watchdog_s = 300;  ///< most a step may ever take
  /// Least that is allowed to any step: longer than the silence by which a lost network is known,
  /// so that the network is named and not the ranks behind it.
  double floor_s = 4.5;
};

/// The engine's runner; `hung_step` may be called from any thread.
class FanoutRunner : public Runner {
 public:
  /// Names the ranks that have not answered when the oldest step in flight is overdue.
  virtual std::optional<std::string> hung_step(TimePoint now) const = 0;
};

/// `board` is node 0's and outlives the runner. A disagreement ends the group (EndReason::
/// disagreement) and is an Error of wait(); after the group has ended, submit and wait answer
/// unavailable with its text.
std::unique_ptr<FanoutRunner> make_fanout_runner(std::unique_ptr<Runner> own,
                                                 Board& board,
                                                 const FanoutConfig& config);

/// A rank other than 0: runs every plan until the group ends, then ok. data_loss: a plan that is
/// damaged or whose digest differs from this rank's, after the group was told so; else the runner's
/// error.
Status follow_plans(Runner& runner, Board& board, int32_t rank);

}  // namespace hadal
