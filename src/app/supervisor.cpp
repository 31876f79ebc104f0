// The supervisor of one node: it starts the node's ranks, carries plans and answers between their
// board and the other nodes, answers probes on nodes without rank 0, and sees to it that when one
// process of the group ends, all do, with one line that says why.
//
// It runs no model code, so it goes on whatever a rank does. The main thread starts and reaps the
// ranks and decides; the other threads only carry.
#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <thread>

#include <hadal/api/server.h>
#include <hadal/comm/process_communicator.h>
#include <hadal/metrics/rank_metrics.h>

#include "child_process.h"
#include "cli.h"
#include "commands.h"
#include "exit_code.h"
#include "group_frames.h"
#include "group_setup.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

namespace hadal {
namespace {

using namespace std::chrono_literals;
using Seconds = std::chrono::duration<double>;

constexpr int kTurnMs = 20;
constexpr auto kMeasureInterval = 500ms;
constexpr double kRankSilenceSeconds = 3;
/// What rank 0 has after the end of the group, to tell its clients, and what the others have.
constexpr double kLastWordsSeconds = 1.9;
constexpr double kFollowerEndSeconds = 0.5;
/// Node 0 stays this long after its last words, so that they are read before the connection ends.
constexpr double kLingerSeconds = 0.3;

sigset_t supervised_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) {
    sigaddset(&signals, signal);
  }
  return signals;
}

bool is_stop_pending() {
  sigset_t pending;
  sigpending(&pending);
  return sigismember(&pending, SIGTERM) != 0 || sigismember(&pending, SIGINT) != 0;
}

/// Host memory of a process; 0 when it has ended.
int64_t resident_bytes(int32_t pid) {
  std::ifstream statm("/proc/" + std::to_string(pid) + "/statm");
  int64_t size_pages = 0;
  int64_t resident_pages = 0;
  return statm >> size_pages >> resident_pages ? resident_pages * sysconf(_SC_PAGESIZE) : 0;
}

struct RankChild {
  int32_t rank = 0;
  std::optional<ChildProcess> process;  ///< nullopt: started by hand
  uint64_t beats = 0;
  TimePoint heard{};
};

class Supervisor {
 public:
  Supervisor(const Config& config, std::unique_ptr<Board> board)
      : config_(config),
        board_(std::move(board)),
        carrier_(*board_, config.layout.node_rank),
        metrics_(config.model.served_name,
                 config.layout.node_rank,
                 board_->shape().first_rank,
                 board_->shape().num_local),
        server_(config.api, metrics_),
        is_leader_(config.layout.node_rank == 0) {}

  int run(const NodeGroupConfig& group_config, const std::vector<std::string>& rank_arguments) {
    if (!is_leader_) {  // node 0's ports belong to rank 0
      if (Status started = server_.start(); !started) {
        log_error(started.error().message);
        return kExitRetry;
      }
    }
    oom_kills_ = out_of_memory_kills();
    if (config_.layout.num_nodes > 1) {
      FormedGroup formed = form_node_group(group_config, carrier_, is_stop_pending);
      if (formed.group == nullptr) {
        log(formed.failure.reason == EndReason::drained ? LogLevel::info : LogLevel::error,
            formed.failure.text);
        return group_exit_code(formed.failure.reason);
      }
      show(kHostRound, formed.group->host());
      carrier_.begin(std::move(formed.group));
    }
    if (Status made = make_node_memory(); !made) {
      log_error(made.error().message);
      return kExitModel;
    }
    if (Status started = start_ranks(rank_arguments); !started) {
      log_error(started.error().message);
      board_->set_end(EndReason::rank_failed, started.error().message);
    }
    loop();
    carrier_.finish(kLingerSeconds);
    server_.stop();
    return exit_code_;
  }

 private:
  void show(int32_t round, const std::string& text) {
    board_->set_blob(
        Board::kSupervisorReader, round, std::as_bytes(std::span(text.data(), text.size())));
  }

  /// What the node's ranks meet in for collectives.
  Status make_node_memory() {
    if (config_.runner.null_step_us) {
      return ok_status();
    }
    const auto fd = create_node_memory(board_->shape().num_local);
    if (!fd) {
      return fd.error();
    }
    node_memory_ = fd.value();
    show(kNodeMemoryRound,
         "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(node_memory_));
    return ok_status();
  }

  Status start_ranks(const std::vector<std::string>& arguments) {
    const BoardShape& shape = board_->shape();
    const TimePoint now = system_clock().now();
    for (int32_t rank = shape.first_rank; rank < shape.first_rank + shape.num_local; ++rank) {
      const auto& by_hand = config_.rank.ranks_by_hand;
      std::vector<std::string> words = {"rank", "--rank", std::to_string(rank), "--rank-board"};
      if (std::find(by_hand.begin(), by_hand.end(), rank) != by_hand.end()) {
        log_info("Waiting for: hadal rank --rank " + std::to_string(rank) + " --rank-board " +
                 board_->path_for_others() + " and the flags of this command");
        ranks_.push_back({rank, std::nullopt, 0, now});
        continue;
      }
      words.push_back(board_->path_for_children());
      words.insert(words.end(), arguments.begin(), arguments.end());
      auto process = ChildProcess::start(words);
      if (!process) {
        return process.error();
      }
      ranks_.push_back({rank, std::move(process).value(), 0, now});
    }
    return ok_status();
  }

  void loop() {
    const sigset_t signals = supervised_signals();
    const int signal_fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
    HADAL_CHECK(signal_fd >= 0, "signalfd failed");
    while (!is_over()) {
      std::vector<pollfd> entries = {{signal_fd, POLLIN, 0}};
      for (const RankChild& child : ranks_) {
        if (child.process && child.process->output_fd() >= 0) {
          entries.push_back({child.process->output_fd(), POLLIN, 0});
        }
      }
      poll(entries.data(), entries.size(), kTurnMs);
      signalfd_siginfo info{};
      while (read(signal_fd, &info, sizeof info) == sizeof info) {
        on_signal(static_cast<int>(info.ssi_signo));
      }
      turn();
    }
    close(signal_fd);
  }

  void turn() {
    const TimePoint now = system_clock().now();
    board_->beat(Board::kSupervisorReader);
    print_lines();
    reap();
    check_beats(now);
    if (!is_leader_ && now - measured_ > kMeasureInterval) {
      measured_ = now;
      show_ranks(now);
    }
    carrier_.turn();
    if (carrier_.take_stop_request()) {
      log_info("A worker node was asked to stop: draining");
      signal_rank_zero(SIGTERM);
    }
    if (!is_leader_) {
      serve_probes();
      if (stop_deadline_ != TimePoint{} && now > stop_deadline_) {
        board_->set_end(EndReason::drained,
                        "the grace of node " + std::to_string(config_.layout.node_rank) +
                            " ended before rank 0 had drained");
      }
    }
    if (ended_ == TimePoint{} && board_->end_reason() != EndReason::none) {
      begin_end(now);
    }
    for (RankChild& child : ranks_) {
      const double limit_s = child.rank == 0 ? kLastWordsSeconds : kFollowerEndSeconds;
      if (child.process && ended_ != TimePoint{} && Seconds(now - ended_).count() > limit_s) {
        child.process->send_signal(SIGKILL);
      }
    }
    turned_ = now;
  }

  void print_lines() {
    for (RankChild& child : ranks_) {
      if (!child.process) {
        continue;
      }
      const std::string prefix = "[rank " + std::to_string(child.rank) + "] ";
      for (const std::string& line : child.process->read_lines()) {
        std::fputs((prefix + line + "\n").c_str(), stderr);
      }
    }
  }

  std::string rank_name(const RankChild& child) const {
    return "rank " + std::to_string(child.rank) + " on node " +
           std::to_string(config_.layout.node_rank);
  }

  void reap() {
    for (RankChild& child : ranks_) {
      const auto end = child.process ? child.process->poll_end() : std::nullopt;
      if (!end || board_->end_reason() != EndReason::none) {
        continue;
      }
      if (child.rank == 0 && end->exit_code == 0) {
        board_->set_end(EndReason::drained, "rank 0 has drained");
        continue;
      }
      std::string why = rank_name(child) + " " + end->text();
      if (end->signal == SIGKILL && out_of_memory_kills() > oom_kills_ && oom_kills_ >= 0) {
        why += ": the kernel killed it for want of memory";
      } else if (end->exit_code == 0) {
        why += ", though nobody asked it to";
      }
      // Its own reason, when it had one to give, is the line above.
      exit_code_ = end->exit_code != 0 ? end->exit_code : kExitRankFailed;
      board_->set_end(EndReason::rank_failed, why);
    }
  }

  void check_beats(TimePoint now) {
    const bool stood_still = now - turned_ > 1s;  // not the ranks but this process
    for (RankChild& child : ranks_) {
      const uint64_t beats = board_->beats(child.rank);
      if (beats != child.beats || beats == 0 || stood_still) {
        child.beats = beats;
        child.heard = now;
      }
      if (Seconds(now - child.heard).count() > kRankSilenceSeconds) {
        std::array<char, 64> seconds{};
        std::snprintf(seconds.data(),
                      seconds.size(),
                      " has stopped: no sign of life for %g s",
                      kRankSilenceSeconds);
        board_->set_end(EndReason::rank_hung, rank_name(child) + seconds.data());
      }
    }
  }

  /// On the page of /metrics.
  void show_ranks(TimePoint now) {
    for (const RankChild& child : ranks_) {
      metrics_.show(child.rank,
                    {.is_ready = board_->phase(child.rank) == RankPhase::ready,
                     .steps = board_->last_acked(child.rank),
                     .silent_s = Seconds(now - child.heard).count(),
                     .resident_bytes = resident_bytes(board_->pid(child.rank))});
    }
  }

  /// Once: what the group ends with is known.
  void begin_end(TimePoint now) {
    ended_ = now;
    const GroupEnd end = board_->end();
    const bool is_good = end.reason == EndReason::drained;
    if (exit_code_ == kExitOk) {
      exit_code_ = group_exit_code(end.reason);
    }
    log(is_good ? LogLevel::info : LogLevel::error,
        (is_good ? "The group stops: " : "The group ends: ") + end.text);
    carrier_.send_end(end);
    if (!is_leader_) {
      server_.set_failed(end.text);
    }
  }

  bool is_over() {
    if (ended_ == TimePoint{}) {
      return false;
    }
    for (const RankChild& child : ranks_) {
      if (child.process && !child.process->has_ended()) {
        return false;
      }
    }
    print_lines();
    return true;
  }

  void on_signal(int signal) {
    if (signal == SIGCHLD || ended_ != TimePoint{}) {
      return;
    }
    if (signal == SIGHUP) {
      if (!config_.api_key_file.empty()) {
        signal_rank_zero(SIGHUP);
      }
      return;
    }
    if (is_leader_) {
      signal_rank_zero(SIGTERM);
      return;
    }
    if (stop_deadline_ == TimePoint{}) {
      log_info("Asked to stop: told rank 0, waiting until it has drained");
      stop_deadline_ =
          system_clock().now() + std::chrono::duration_cast<TimePoint::duration>(
                                     Seconds(config_.shutdown_grace_s + kGraceMarginSeconds));
    }
    carrier_.send_stop_request();
  }

  void signal_rank_zero(int signal) {
    for (RankChild& child : ranks_) {
      if (child.rank == 0 && child.process) {
        child.process->send_signal(signal);
      }
    }
  }

  /// A worker's serving port opens, with /health alone, when the whole group is ready.
  void serve_probes() {
    if (is_open_ || !board_->is_all_ready() || ended_ != TimePoint{}) {
      return;
    }
    is_open_ = true;
    if (Status opened = server_.open_worker(); !opened) {
      exit_code_ = kExitRetry;
      board_->set_end(
          EndReason::rank_failed,
          "node " + std::to_string(config_.layout.node_rank) + ": " + opened.error().message);
      return;
    }
    log_info("All ranks of the group are ready");
  }

  static constexpr double kGraceMarginSeconds = 5;

  const Config& config_;
  std::unique_ptr<Board> board_;
  GroupCarrier carrier_;
  RankMetrics metrics_;
  ApiServer server_;
  bool is_leader_;
  int node_memory_ = -1;  ///< until this process ends
  bool is_open_ = false;
  std::vector<RankChild> ranks_;
  int64_t oom_kills_ = -1;
  int exit_code_ = kExitOk;
  TimePoint ended_{};
  TimePoint turned_{};
  TimePoint measured_{};
  TimePoint stop_deadline_{};
};

/// The flags of this command again, canonical, for `hadal rank`.
std::vector<std::string> rank_arguments(const Config& config) {
  std::vector<std::string> words;
  for (const auto& [name, values] : config.given) {
    const FlagSpec* flag = find_flag(name);
    if (flag == nullptr || (flag->commands & kRank) == 0 || name == "config") {
      continue;  // a file's flags are among the given ones
    }
    for (const std::string& value : values) {
      words.push_back("--" + name + (flag->kind == FlagKind::toggle ? "" : "=" + value));
    }
  }
  return words;
}

}  // namespace

int run_supervisor(const Config& config, const Environment& environment) {
  const sigset_t signals = supervised_signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  auto group = config.layout.num_nodes > 1 ? node_group_config(config, environment)
                                           : Result<NodeGroupConfig>(NodeGroupConfig{});
  if (!group) {
    log_error(group.error().message);
    return group.error().code == ErrorCode::invalid_argument ? kExitUsage
                                                             : model_exit_code(group.error());
  }
  auto board = Board::create(board_shape(config.layout));
  if (!board) {
    log_error(board.error().message);
    return kExitModel;
  }
  Supervisor supervisor(config, std::move(board).value());
  return supervisor.run(group.value(), rank_arguments(config));
}

}  // namespace hadal
