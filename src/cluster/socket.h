// TCP with deadlines: every wait has an end, and no call blocks longer than it was told.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include <hadal/base/clock.h>
#include <hadal/base/result.h>

#include <sys/socket.h>

namespace hadal {

TimePoint seconds_from_now(double seconds);

/// An owned file descriptor.
class FileDescriptor {
 public:
  FileDescriptor() = default;

  explicit FileDescriptor(int fd) : fd_(fd) {}

  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }

  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor();

  int get() const { return fd_; }

  bool is_open() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

/// A resolved TCP address.
struct TcpAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;

  bool is_loopback() const;
  /// 0.0.0.0 or ::, every address of this machine.
  bool is_any() const;
  /// "10.0.0.1:20000", "[::1]:20000".
  std::string text() const;
  /// "10.0.0.1", "::1".
  std::string host() const;
  uint16_t port() const;
};

/// unavailable (it may resolve later) names the host.
Result<TcpAddress> resolve(const std::string& host, uint16_t port);

/// Non-blocking and close-on-exec, as are all sockets here. unavailable names the address.
Result<FileDescriptor> listen_on(const TcpAddress& address);
Result<TcpAddress> local_address(int fd);
/// The next connection and who it is from; unavailable when none comes by the deadline.
Result<std::pair<FileDescriptor, std::string>> accept_from(int listener, TimePoint deadline);
Result<FileDescriptor> connect_to(const TcpAddress& address, TimePoint deadline);

/// Waits for poll(2) `events`; false at the deadline.
bool wait_for(int fd, int16_t events, TimePoint deadline);
/// All of `bytes`, or an error: unavailable at the end of the stream or at the deadline.
Status read_exactly(int fd, std::span<std::byte> bytes, TimePoint deadline);
Status write_all(int fd, std::span<const std::byte> bytes, TimePoint deadline);

}  // namespace hadal
