// The thread never waits for the rank's other threads: it must end a process that hangs.
#include "rank_seat.h"

#include <cstdlib>
#include <cstring>

#include "assembly.h"
#include "group_comm.h"
#include "group_setup.h"

#include <unistd.h>

namespace hadal {
namespace {

using namespace std::chrono_literals;
using Seconds = std::chrono::duration<double>;

constexpr auto kBeatInterval = 50ms;
constexpr int32_t kVocabularyRound = kBlobRounds - 1;
constexpr double kSupervisorSilenceSeconds = 3;
/// Rank 0 has this long to tell its clients.
constexpr double kLastWordsSeconds = 1.5;

}  // namespace

RankSeat::RankSeat(std::unique_ptr<Board> board, int32_t rank)
    : board_(std::move(board)), rank_(rank) {
  board_->set_pid(rank_, getpid());
  board_->set_phase(rank_, RankPhase::loading);
  thread_ = std::jthread([this](const std::stop_token& stop) { watch(stop); });
}

Result<std::unique_ptr<RankSeat>> RankSeat::take(const Config& config) {
  if (config.rank.rank < 0 || config.rank.board.empty()) {
    return Error{ErrorCode::invalid_argument,
                 "hadal rank needs --rank and --rank-board, as `hadal serve` prints them for "
                 "--ranks-by-hand"};
  }
  auto board = Board::attach(config.rank.board);
  if (!board) {
    return board.error();
  }
  const BoardShape& shape = board.value()->shape();
  const int32_t last = shape.first_rank + shape.num_local - 1;
  if (config.rank.rank < shape.first_rank || config.rank.rank > last) {
    return Error{ErrorCode::invalid_argument,
                 "--rank: this node has ranks " + std::to_string(shape.first_rank) + " to " +
                     std::to_string(last) + ", got " + std::to_string(config.rank.rank)};
  }
  return std::unique_ptr<RankSeat>(new RankSeat(std::move(board).value(), config.rank.rank));
}

void RankSeat::watch(const std::stop_token& stop) {
  uint64_t supervisor_beats = board_->beats(Board::kSupervisorReader);
  TimePoint heard = system_clock().now();
  TimePoint turned = heard;
  TimePoint ended{};
  while (!stop.stop_requested()) {
    std::this_thread::sleep_for(kBeatInterval);
    board_->beat(rank_);
    const TimePoint now = system_clock().now();
    const uint64_t beats = board_->beats(Board::kSupervisorReader);
    if (beats != supervisor_beats || now - turned > 1s) {
      supervisor_beats = beats;
      heard = now;
    }
    turned = now;
    if (Seconds(now - heard).count() > kSupervisorSilenceSeconds) {
      board_->set_end(
          EndReason::rank_hung,
          "a supervisor is stopped: rank " + std::to_string(rank_) + " does not hear it");
    }
    {
      const std::lock_guard lock(fanout_mutex_);
      const auto why = fanout_ == nullptr ? std::nullopt : fanout_->hung_step(now);
      if (why) {
        board_->set_end(EndReason::rank_hung, *why);
      }
    }
    const EndReason reason = board_->end_reason();
    if (reason == EndReason::none) {
      continue;
    }
    ended = ended == TimePoint{} ? now : ended;
    const bool has_last_words = rank_ == 0 && is_serving_.load();
    if (!has_last_words || Seconds(now - ended).count() > kLastWordsSeconds) {
      std::_Exit(group_exit_code(reason));
    }
  }
}

Result<std::unique_ptr<Runner>> RankSeat::make_runner(const Config& config,
                                                      const std::filesystem::path& model_dir,
                                                      int32_t null_vocab_size,
                                                      const PhaseFn& on_phase) {
  int32_t vocab_size = null_vocab_size;
  if (config.runner.null_step_us) {
    auto agreed = agree_on_vocabulary(null_vocab_size);
    if (!agreed) {
      return agreed.error();
    }
    vocab_size = agreed.value();
  }
  auto own = config.runner.null_step_us
                 ? hadal::make_runner(config, model_dir, vocab_size)
                 : make_group_rank_runner(config, model_dir, *board_, rank_, on_phase);
  if (!own || rank_ != 0) {
    return own;
  }
  auto fanout = make_fanout_runner(
      std::move(own).value(), *board_, {.watchdog_s = config.watchdog_timeout_s});
  {
    const std::lock_guard lock(fanout_mutex_);
    fanout_ = fanout.get();
  }
  return std::unique_ptr<Runner>(std::move(fanout));
}

/// Ranks hold no tokenizer: rank 0 tells them how many ids there are.
Result<int32_t> RankSeat::agree_on_vocabulary(int32_t own) {
  if (rank_ == 0) {
    board_->set_blob(0, kVocabularyRound, std::as_bytes(std::span(&own, 1)));
    return own;
  }
  while (board_->end_reason() == EndReason::none) {
    const auto blob = board_->blob(0, kVocabularyRound);
    if (blob && blob->size() == sizeof own) {
      std::memcpy(&own, blob->data(), sizeof own);
      return own;
    }
    std::this_thread::sleep_for(10ms);
  }
  return Error{ErrorCode::unavailable, board_->end().text};
}

void RankSeat::forget_runner() {
  const std::lock_guard lock(fanout_mutex_);
  fanout_ = nullptr;
}

Status RankSeat::wait_all_ready() {
  board_->set_phase(rank_, RankPhase::ready);
  while (!board_->is_all_ready()) {
    if (board_->end_reason() != EndReason::none) {
      return Error{ErrorCode::unavailable, board_->end().text};
    }
    std::this_thread::sleep_for(10ms);
  }
  return ok_status();
}

}  // namespace hadal
