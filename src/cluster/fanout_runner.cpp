// Publish, run, compare. The hashes of a step are only known after the step before has retired, so
// they are taken in wait().
#include <deque>
#include <mutex>

#include <hadal/cluster/fanout_runner.h>
#include <hadal/cluster/plan_ledger.h>
#include <hadal/cluster/step_deadline.h>

namespace hadal {
namespace {

using Seconds = std::chrono::duration<double>;

std::string step_name(uint64_t step_id) {
  return "step " + std::to_string(step_id);
}

struct StepInFlight {
  BatchPlan plan;
  TimePoint start;
  double allowed_s = 0;
};

class Fanout final : public FanoutRunner {
 public:
  Fanout(std::unique_ptr<Runner> own, Board& board, const FanoutConfig& config)
      : own_(std::move(own)), board_(board), deadline_(config.watchdog_s, config.floor_s) {}

  const RunnerLimits& limits() const override { return own_->limits(); }

  Status submit(const BatchPlan& plan) override {
    if (board_.end_reason() != EndReason::none) {
      return ended();
    }
    const uint64_t digest = ledger_.apply(plan);
    const std::vector<std::byte> record = encode_plan_record(plan, digest);
    if (std::ssize(record) > kPlanBytesMax) {
      return Error{ErrorCode::resource_exhausted,
                   "a plan of " + std::to_string(record.size()) + " bytes, at most " +
                       std::to_string(kPlanBytesMax) + " can be sent"};
    }
    if (!board_.publish(record)) {
      return fail(EndReason::rank_hung, "the plan stream is full: " + late_ranks(plan.step_id));
    }
    {
      const std::lock_guard lock(mutex_);
      steps_.push_back({plan,
                        system_clock().now(),
                        deadline_.allowed_s(static_cast<int64_t>(plan.tokens.size()))});
    }
    return own_->submit(plan);
  }

  double launch_seconds() const override { return own_->launch_seconds(); }

  StepCounts step_counts() const override { return own_->step_counts(); }

  Result<StepResult> wait() override {
    auto result = own_->wait();
    if (!result) {
      return board_.end_reason() != EndReason::none ? ended() : result.error();
    }
    const BatchPlan& plan = steps_.front().plan;  // only this thread removes it
    StepAck own;
    own.step_id = plan.step_id;
    own.consumed = ledger_.consumed(plan);
    own.produced = ledger_.record(result.value());
    board_.set_ack(0, own);
    // The last rank is woken last: when it has answered, the others mostly have too.
    for (int32_t rank = board_.shape().world_size - 1; rank >= 1; --rank) {
      HADAL_RETURN_IF_ERROR(compare(rank, own));
    }
    const std::lock_guard lock(mutex_);
    const TimePoint now = system_clock().now();
    deadline_.measured(static_cast<int64_t>(plan.tokens.size()),
                       Seconds(now - steps_.front().start).count());
    steps_.pop_front();
    if (!steps_.empty()) {
      steps_.front().start = now;  // steps run one after another
    }
    return result;
  }

  std::optional<std::string> hung_step(TimePoint now) const override {
    const std::lock_guard lock(mutex_);
    if (steps_.empty() || Seconds(now - steps_.front().start).count() < steps_.front().allowed_s) {
      return std::nullopt;
    }
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%.1f s", steps_.front().allowed_s);
    const uint64_t step_id = steps_.front().plan.step_id;
    return step_name(step_id) + " did not end within " + seconds + ": " + late_ranks(step_id);
  }

 private:
  /// Waits for the rank's answer; whoever watches the group ends the wait.
  Status compare(int32_t rank, const StepAck& own) {
    std::optional<StepAck> ack;
    while (!(ack = board_.ack_of(rank, own.step_id))) {
      const uint32_t seen = board_.ack_count();
      if (board_.end_reason() != EndReason::none) {
        return ended();
      }
      if (!board_.ack_of(rank, own.step_id)) {
        board_.wait_ack(seen, rank, system_clock().now() + std::chrono::seconds(1));
      }
    }
    const bool is_consumed = ack->consumed != own.consumed;
    if (is_consumed || ack->produced != own.produced) {
      return fail(EndReason::disagreement,
                  "rank " + std::to_string(rank) + " disagrees with rank 0 at " +
                      step_name(own.step_id) + ": it " + (is_consumed ? "consumed" : "sampled") +
                      " other ids");
    }
    return ok_status();
  }

  std::string late_ranks(uint64_t step_id) const {
    std::string text;
    for (int32_t rank = 0; rank < board_.shape().world_size; ++rank) {
      if (board_.last_acked(rank) < step_id) {
        text += (text.empty() ? "no answer from rank " : ", ") + std::to_string(rank);
      }
    }
    return text.empty() ? "every rank has answered" : text;
  }

  Error fail(EndReason reason, const std::string& text) {
    board_.set_end(reason, text);
    return ended();
  }

  Error ended() const { return {ErrorCode::unavailable, board_.end().text}; }

  std::unique_ptr<Runner> own_;
  Board& board_;
  PlanLedger ledger_;
  mutable std::mutex mutex_;
  std::deque<StepInFlight> steps_;  ///< under mutex_, except that wait() reads the front
  StepDeadline deadline_;           ///< under mutex_
};

constexpr std::chrono::microseconds kIdlePoll = std::chrono::seconds(1);
constexpr std::chrono::microseconds kBusyPoll{200};  ///< most that an answer is late by

/// The rank's end of one plan stream.
class Follower {
 public:
  Follower(Runner& runner, Board& board, int32_t rank)
      : runner_(runner), board_(board), rank_(rank) {}

  Status run() {
    std::vector<std::byte> bytes;
    const auto max_in_flight = static_cast<size_t>(runner_.limits().max_steps_in_flight);
    while (board_.end_reason() == EndReason::none) {
      const TimePoint now = system_clock().now();
      const bool has_room = in_flight_.size() < max_in_flight;
      if (has_room && board_.read(rank_, bytes, now)) {
        HADAL_RETURN_IF_ERROR(submit(bytes));
      } else if (!in_flight_.empty() && (!has_room || runner_.has_result())) {
        HADAL_RETURN_IF_ERROR(retire());
      } else if (board_.read(rank_, bytes, now + (in_flight_.empty() ? kIdlePoll : kBusyPoll))) {
        // While a step runs its successor mostly comes: it should be on the device before that
        // ends.
        HADAL_RETURN_IF_ERROR(submit(bytes));
      }
    }
    return ok_status();
  }

 private:
  Status submit(std::span<const std::byte> bytes) {
    auto record = decode_plan_record(bytes);
    if (!record) {
      return fail(record.error().message);
    }
    const uint64_t digest = ledger_.apply(record.value().plan);
    if (digest != record.value().digest) {
      return fail("the plan of " + step_name(record.value().plan.step_id) +
                  " does not fit this rank's page tables");
    }
    in_flight_.push_back(std::move(record).value().plan);
    return runner_.submit(in_flight_.back());
  }

  Status retire() {
    const auto result = runner_.wait();
    if (!result) {
      return result.error();
    }
    StepAck ack;
    ack.step_id = in_flight_.front().step_id;
    ack.consumed = ledger_.consumed(in_flight_.front());
    ack.produced = ledger_.record(result.value());
    in_flight_.pop_front();
    board_.set_ack(rank_, ack);
    return ok_status();
  }

  Error fail(const std::string& why) {
    const std::string text = "rank " + std::to_string(rank_) + " disagrees with rank 0: " + why;
    board_.set_end(EndReason::disagreement, text);
    return {ErrorCode::data_loss, text};
  }

  Runner& runner_;
  Board& board_;
  int32_t rank_;
  PlanLedger ledger_;
  std::deque<BatchPlan> in_flight_;
};

}  // namespace

std::unique_ptr<FanoutRunner> make_fanout_runner(std::unique_ptr<Runner> own,
                                                 Board& board,
                                                 const FanoutConfig& config) {
  return std::make_unique<Fanout>(std::move(own), board, config);
}

Status follow_plans(Runner& runner, Board& board, int32_t rank) {
  return Follower(runner, board, rank).run();
}

}  // namespace hadal
