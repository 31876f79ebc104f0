// fork and exec by hand: only async-signal-safe calls in between, since threads exist.
#include "child_process.h"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace hadal {
namespace {

constexpr size_t kLineBytesMax = 16 << 10;
constexpr int kExecFailed = 127;

/// In the child.
[[noreturn]] void become(char* const* argv, int output_fd, pid_t parent) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) {
    _exit(kExecFailed);  // it died before prctl
  }
  dup2(output_fd, STDOUT_FILENO);
  dup2(output_fd, STDERR_FILENO);
  execv("/proc/self/exe", argv);
  _exit(kExecFailed);
}

}  // namespace

std::string ChildEnd::text() const {
  return signal != 0 ? "was killed by signal " + std::to_string(signal)
                     : "ended with exit code " + std::to_string(exit_code);
}

Result<ChildProcess> ChildProcess::start(const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {"hadal"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) {
    argv.push_back(word.data());
  }
  argv.push_back(nullptr);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return Error{ErrorCode::resource_exhausted, "a rank cannot be started: no pipe"};
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    become(argv.data(), ends[1], parent);
  }
  close(ends[1]);
  if (pid < 0) {
    close(ends[0]);
    return Error{ErrorCode::resource_exhausted,
                 std::string("a rank cannot be started: ") +
                     std::strerror(errno)};  // NOLINT(concurrency-mt-unsafe)
  }
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  return ChildProcess(pid, ends[0]);
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      output_fd_(std::exchange(other.output_fd_, -1)),
      partial_(std::move(other.partial_)),
      has_ended_(other.has_ended_) {}

ChildProcess::~ChildProcess() {
  if (pid_ > 0 && !has_ended_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (output_fd_ >= 0) {
    close(output_fd_);
  }
}

std::vector<std::string> ChildProcess::read_lines() {
  std::vector<std::string> lines;
  char buffer[4096];
  while (output_fd_ >= 0) {
    const ssize_t got = read(output_fd_, buffer, sizeof buffer);
    if (got > 0) {
      for (const char c : std::string_view(buffer, static_cast<size_t>(got))) {
        if (c != '\n') {
          partial_ += c;
        }
        if (c == '\n' || partial_.size() >= kLineBytesMax) {
          lines.push_back(std::exchange(partial_, {}));
        }
      }
    } else if (got == 0) {
      close(std::exchange(output_fd_, -1));
      if (!partial_.empty()) {
        lines.push_back(std::exchange(partial_, {}));
      }
    } else if (errno != EINTR) {
      break;
    }
  }
  return lines;
}

void ChildProcess::send_signal(int signal) const {
  if (!has_ended_) {
    kill(pid_, signal);
  }
}

std::optional<ChildEnd> ChildProcess::poll_end() {
  int status = 0;
  if (has_ended_ || waitpid(pid_, &status, WNOHANG) != pid_) {
    return std::nullopt;
  }
  has_ended_ = true;
  ChildEnd end;
  if (WIFSIGNALED(status)) {
    end.signal = WTERMSIG(status);
    end.exit_code = 128 + end.signal;
  } else {
    end.exit_code = WEXITSTATUS(status);
  }
  return end;
}

namespace {

/// The count of `name` among lines of a name and a number; -1 when there is none.
int64_t read_count(const std::string& file, const std::string& wanted) {
  std::ifstream lines(file);
  std::string name;
  int64_t count = 0;
  while (lines >> name >> count) {
    if (name == wanted) {
      return count;
    }
  }
  return -1;
}

}  // namespace

int64_t out_of_memory_kills() {
  std::ifstream groups("/proc/self/cgroup");
  std::vector<std::string> files;
  for (std::string line; std::getline(groups, line);) {
    const size_t path = line.rfind(':') + 1;
    if (line.starts_with("0::")) {  // version 2
      files.push_back("/sys/fs/cgroup" + line.substr(path) + "/memory.events");
    } else if (line.find(":memory:") != std::string::npos) {
      files.push_back("/sys/fs/cgroup/memory" + line.substr(path) + "/memory.oom_control");
    }
  }
  // In a container the paths above are the host's, and its own group is mounted as the root.
  files.insert(files.end(),
               {"/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"});
  for (const std::string& file : files) {
    if (const int64_t count = read_count(file, "oom_kill"); count >= 0) {
      return count;
    }
  }
  return -1;
}

}  // namespace hadal
