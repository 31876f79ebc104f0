// TCP with deadlines: every wait has an end, and no call blocks longer than it was told. All
// sockets are non-blocking and close-on-exec, and send small messages at once. Errors are
// unavailable and say the reason alone ("Connection refused"): the caller knows what it was about
// to do.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

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

  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}

  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }

  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor();

  int get() const { return fd_; }

  bool is_open() const { return fd_ >= 0; }

  /// The caller owns it from here on.
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

/// A resolved TCP address.
struct TcpAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;

  int family() const { return storage.ss_family; }

  const sockaddr* data() const { return reinterpret_cast<const sockaddr*>(&storage); }

  sockaddr* data() { return reinterpret_cast<sockaddr*>(&storage); }

  bool is_loopback() const;
  /// 0.0.0.0 or ::, every address of this machine.
  bool is_any() const;
  /// "10.0.0.1:20000", "[::1]:20000".
  std::string text() const;
  /// "10.0.0.1", "::1": numeric, without an IPv6 zone; an IPv4 address mapped into IPv6 as the
  /// former.
  std::string host() const;
  uint16_t port() const;
};

/// At least one address, or why there is none (yet). `host` empty = every address of this machine.
Result<std::vector<TcpAddress>> resolve_all(const std::string& host, uint16_t port);
/// The first one; the error names the host.
Result<TcpAddress> resolve(const std::string& host, uint16_t port);

/// Port 0 lets the system choose.
Result<FileDescriptor> listen_on(const TcpAddress& address);
/// On the first of the host's addresses that can be taken.
Result<FileDescriptor> listen_on(const std::string& host, uint16_t port);
Result<TcpAddress> local_address(int fd);
Result<TcpAddress> peer_address(int fd);

inline constexpr const char* kNoAnswer = "no answer";
/// Message kNoAnswer when nothing came back by the deadline.
Result<FileDescriptor> connect_to(const TcpAddress& address, TimePoint deadline);
/// The next connection; unavailable when none comes by the deadline.
Result<FileDescriptor> accept_from(int listener, TimePoint deadline);
/// A connection whose peer acknowledges nothing for this long ends.
void set_peer_timeout(int fd, int32_t timeout_ms);

/// Waits for poll(2) `events`; false at the deadline.
bool wait_for(int fd, int16_t events, TimePoint deadline);
/// Sends `out` to one connection while receiving `in` from another (or the same); either may be
/// empty.
Status transfer(
    int to, std::span<const std::byte> out, int from, std::span<std::byte> in, TimePoint deadline);

/// All of `bytes`, or an error: unavailable at the end of the stream or at the deadline.
inline Status read_exactly(int fd, std::span<std::byte> bytes, TimePoint deadline) {
  return transfer(fd, {}, fd, bytes, deadline);
}

inline Status write_all(int fd, std::span<const std::byte> bytes, TimePoint deadline) {
  return transfer(fd, bytes, fd, {}, deadline);
}

}  // namespace hadal
