// Ranks as processes in a test: forked children that share a node's memory and connect to each
// other over loopback. A child reports by text; it never returns into the test.
#pragma once

#include <csignal>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <hadal/comm/process_communicator.h>

#include "catch.h"

#include <sys/wait.h>
#include <unistd.h>

namespace hadal::testing {

struct ForkedWorld {
  int32_t world_size = 2;
  int32_t node_size = 2;  ///< ranks a node
  AllReduce all_reduce = AllReduce::hier;
  int32_t deadline_ms = 60000;
  int64_t slot_bytes = kNodeSlotBytes;
};

/// Runs `body` in one process a rank and returns what each reported. A child that was killed
/// reports "signal N".
class ForkedRanks {
 public:
  using Body = std::function<std::string(Communicator&)>;

  ForkedRanks(const ForkedWorld& world, const Body& body) : world_(world) {
    const int32_t nodes = world.world_size / world.node_size;
    std::vector<int> memories;
    for (int32_t node = 0; node < nodes; ++node) {
      const auto memory = create_node_memory(world.node_size, world.slot_bytes);
      REQUIRE(memory);
      memories.push_back(memory.value());
    }
    std::vector<PeerListener> listeners;
    for (int32_t rank = 0; rank < world.world_size; ++rank) {
      auto listener = PeerListener::listen_on({"127.0.0.1", 0});
      REQUIRE(listener);
      listeners.push_back(std::move(listener).value());
    }
    for (int32_t rank = 0; rank < world.world_size; ++rank) {
      int ends[2];
      REQUIRE(::pipe(ends) == 0);
      const pid_t pid = ::fork();
      REQUIRE(pid >= 0);
      if (pid == 0) {
        ::close(ends[0]);
        for (const int other : pipes_) {
          ::close(other);
        }
        run_child(rank, memories, listeners, body, ends[1]);
      }
      ::close(ends[1]);
      pids_.push_back(pid);
      pipes_.push_back(ends[0]);
    }
    for (const int memory : memories) {
      ::close(memory);
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
    for (int32_t rank = 0; rank < world_.world_size; ++rank) {
      texts.push_back(report(rank));
    }
    return texts;
  }

 private:
  [[noreturn]] void run_child(int32_t rank,
                              const std::vector<int>& memories,
                              const std::vector<PeerListener>& listeners,
                              const Body& body,
                              int report_fd) const {
    const std::string text = child_text(rank, memories, listeners, body);
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

  std::string child_text(int32_t rank,
                         const std::vector<int>& memories,
                         const std::vector<PeerListener>& listeners,
                         const Body& body) const {
    ProcessCommConfig config;
    config.rank = rank;
    config.world_size = world_.world_size;
    config.node_size = world_.node_size;
    config.all_reduce = world_.all_reduce;
    config.deadline_ms = world_.deadline_ms;
    config.node_memory_fd = memories[static_cast<size_t>(rank / world_.node_size)];
    if (world_.world_size > world_.node_size) {
      PeerConnectConfig connect;
      connect.rank = rank;
      connect.world_size = world_.world_size;
      connect.node_size = world_.node_size;
      for (int32_t peer = rank % world_.node_size; peer < world_.world_size;
           peer += world_.node_size) {
        connect.addresses.push_back({"127.0.0.1", listeners[static_cast<size_t>(peer)].port()});
      }
      auto fds = connect_peers(connect, listeners[static_cast<size_t>(rank)]);
      if (!fds) {
        return fds.error().message;
      }
      config.peer_fds = fds.value();
    }
    auto comm = make_process_communicator(config);
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

  ForkedWorld world_;
  std::vector<pid_t> pids_;
  std::vector<int> pipes_;
};

}  // namespace hadal::testing
