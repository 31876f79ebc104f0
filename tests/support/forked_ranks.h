// Ranks as processes in a test: forked children that share a node's memory and connect to each
// other over loopback. A child reports by text; it never returns into the test.
#pragma once

#include <csignal>
#include <functional>
#include <string>
#include <vector>

#include <hadal/comm/process_communicator.h>

#include "catch.h"
#include "local_world.h"

#include <sys/wait.h>
#include <unistd.h>

namespace hadal::testing {

/// Runs `body` in one process a rank and returns what each reported. A child that was killed
/// reports "signal N".
class ForkedRanks {
 public:
  using Body = std::function<std::string(Communicator&)>;

  ForkedRanks(const LocalWorldConfig& config, const Body& body) : world_size_(config.world_size) {
    const auto world = LocalWorld::create(config);
    REQUIRE(world);
    for (int32_t rank = 0; rank < world_size_; ++rank) {
      int ends[2];
      REQUIRE(::pipe(ends) == 0);
      const pid_t pid = ::fork();
      REQUIRE(pid >= 0);
      if (pid == 0) {
        ::close(ends[0]);
        for (const int other : pipes_) {
          ::close(other);
        }
        run_child(rank, world.value(), body, ends[1]);
      }
      ::close(ends[1]);
      pids_.push_back(pid);
      pipes_.push_back(ends[0]);
    }
  }

  ForkedRanks(const ForkedRanks&) = delete;
  ForkedRanks& operator=(const ForkedRanks&) = delete;

  ~ForkedRanks() {
    for (size_t rank = 0; rank < pids_.size(); ++rank) {
      if (pids_[rank] > 0) {
        ::kill(pids_[rank], SIGKILL);
        ::waitpid(pids_[rank], nullptr, 0);
      }
      ::close(pipes_[rank]);
    }
  }

  void signal(int32_t rank, int number) { ::kill(pids_[static_cast<size_t>(rank)], number); }

  /// Waits for the rank to end.
  std::string report(int32_t rank) {
    const auto index = static_cast<size_t>(rank);
    std::string text;
    char buffer[4096];
    ssize_t n = 0;
    while ((n = ::read(pipes_[index], buffer, sizeof buffer)) > 0) {
      text.append(buffer, static_cast<size_t>(n));
    }
    int status = 0;
    ::waitpid(pids_[index], &status, 0);
    pids_[index] = -1;
    return WIFSIGNALED(status) ? text + "signal " + std::to_string(WTERMSIG(status)) : text;
  }

  std::vector<std::string> reports() {
    std::vector<std::string> texts;
    for (int32_t rank = 0; rank < world_size_; ++rank) {
      texts.push_back(report(rank));
    }
    return texts;
  }

 private:
  [[noreturn]] static void run_child(int32_t rank,
                                     const LocalWorld& world,
                                     const Body& body,
                                     int report_fd) {
    const std::string text = child_text(rank, world, body);
    size_t done = 0;
    while (done < text.size()) {
      const ssize_t n = ::write(report_fd, text.data() + done, text.size() - done);
      if (n <= 0) {
        break;
      }
      done += static_cast<size_t>(n);
    }
    ::_exit(0);
  }

  static std::string child_text(int32_t rank, const LocalWorld& world, const Body& body) {
    auto comm = world.join(rank);
    if (!comm) {
      return comm.error().message;
    }
    try {
      return body(*comm.value());
    } catch (...) {
      return "a requirement failed in the child";  // Catch's way out of a test, which is the
                                                   // parent's
    }
  }

  int32_t world_size_;
  std::vector<pid_t> pids_;
  std::vector<int> pipes_;
};

}  // namespace hadal::testing
