// Blocking-with-a-deadline TCP: every call ends by its deadline, so that a dead peer costs seconds.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <hadal/base/clock.h>
#include <hadal/base/result.h>

#include <sys/socket.h>

namespace hadal {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;

  int family() const { return storage.ss_family; }

  const sockaddr* data() const { return reinterpret_cast<const sockaddr*>(&storage); }

  sockaddr* data() { return reinterpret_cast<sockaddr*>(&storage); }

  /// Numeric, without the port and without an IPv6 zone.
  std::string text() const;
  void set_port(uint16_t port);
  uint16_t port() const;
};

/// A descriptor, closed at the end.
class Socket {
 public:
  Socket() = default;

  explicit Socket(int fd) : fd_(fd) {}

  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }

  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  ~Socket();

  int fd() const { return fd_; }

  bool is_open() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

/// At least one address, or why not. `host` empty = every address of this machine.
Result<std::vector<SocketAddress>> resolve_tcp(const std::string& host, uint16_t port);

/// A listening, non-blocking socket. Port 0 = any.
Result<Socket> listen_tcp(const std::string& host, uint16_t port);

uint16_t local_port(const Socket& socket);
SocketAddress peer_address(const Socket& socket);

/// Connected and non-blocking. unavailable tells refused from no answer.
Result<Socket> connect_tcp(const SocketAddress& address, TimePoint deadline);

/// The next connection, non-blocking; unavailable when none came in time.
Result<Socket> accept_tcp(const Socket& listener, TimePoint deadline);

/// Sends `out` to one socket while receiving `in` from another (or the same); either may be empty.
Status transfer(const Socket& to,
                std::span<const std::byte> out,
                const Socket& from,
                std::span<std::byte> in,
                TimePoint deadline);

inline Status send_all(const Socket& to, std::span<const std::byte> out, TimePoint deadline) {
  return transfer(to, out, to, {}, deadline);
}

inline Status receive_all(const Socket& from, std::span<std::byte> in, TimePoint deadline) {
  return transfer(from, {}, from, in, deadline);
}

}  // namespace hadal
