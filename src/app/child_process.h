// A rank as a child: started from this executable, its output read line by line, its end waited
// for.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <hadal/base/result.h>

#include <sys/types.h>

namespace hadal {

/// How a child ended.
struct ChildEnd {
  int exit_code = 0;         ///< 128 + signal when a signal ended it
  int signal = 0;            ///< 0 = it ended by itself
  std::string text() const;  ///< "was killed by signal 9", "ended with exit code 66"
};

class ChildProcess {
 public:
  /// Starts this executable with `arguments`, in a process group of its own, with `signals` blocked
  /// as in the parent; the kernel kills it when the calling thread ends. Descriptors without
  /// close-on-exec are inherited.
  static Result<ChildProcess> start(const std::vector<std::string>& arguments);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&&) = delete;
  ~ChildProcess();

  pid_t pid() const { return pid_; }

  /// Standard output and error; -1 once closed.
  int output_fd() const { return output_fd_; }

  /// Whole lines that have come, without their ends; never blocks. Very long ones are cut.
  std::vector<std::string> read_lines();
  void send_signal(int signal) const;
  /// Once it has ended; never blocks.
  std::optional<ChildEnd> poll_end();

  bool has_ended() const { return has_ended_; }

 private:
  ChildProcess(pid_t pid, int output_fd) : pid_(pid), output_fd_(output_fd) {}

  pid_t pid_;
  int output_fd_;
  std::string partial_;
  bool has_ended_ = false;
};

/// Kills by the kernel for want of memory in this process's control group so far; -1 = unknown.
int64_t out_of_memory_kills();

}  // namespace hadal
