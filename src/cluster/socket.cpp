// POSIX sockets. All are non-blocking: poll() carries the deadline.
#include "socket.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <climits>

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

namespace hadal {
namespace {

Error unavailable(const std::string& what, int error) {
  return {ErrorCode::unavailable,
          what + ": " + std::strerror(error)};  // NOLINT(concurrency-mt-unsafe)
}

const sockaddr* raw(const TcpAddress& address) {
  return reinterpret_cast<const sockaddr*>(&address.storage);
}

/// Plans are small and urgent; a dead peer must not keep data in flight for minutes.
void set_options(int fd) {
  const int on = 1;
  const unsigned timeout_ms = 4000;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
}

}  // namespace

TimePoint seconds_from_now(double seconds) {
  return system_clock().now() +
         std::chrono::duration_cast<TimePoint::duration>(std::chrono::duration<double>(seconds));
}

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) {
    close(fd_);
  }
}

bool TcpAddress::is_loopback() const {
  if (storage.ss_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, &storage, sizeof v4);
    return (ntohl(v4.sin_addr.s_addr) >> 24U) == 127;
  }
  sockaddr_in6 v6{};
  std::memcpy(&v6, &storage, sizeof v6);
  return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr) != 0;
}

bool TcpAddress::is_any() const {
  if (storage.ss_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, &storage, sizeof v4);
    return v4.sin_addr.s_addr == htonl(INADDR_ANY);
  }
  sockaddr_in6 v6{};
  std::memcpy(&v6, &storage, sizeof v6);
  return IN6_IS_ADDR_UNSPECIFIED(&v6.sin6_addr) != 0;
}

uint16_t TcpAddress::port() const {
  sockaddr_in v4{};  // the port lies at the same place in both families
  std::memcpy(&v4, &storage, sizeof v4);
  return ntohs(v4.sin_port);
}

std::string TcpAddress::host() const {
  char host[NI_MAXHOST] = {};
  const int error = getnameinfo(raw(*this), size, host, sizeof host, nullptr, 0, NI_NUMERICHOST);
  return error == 0 ? host : "unknown address";
}

std::string TcpAddress::text() const {
  const bool is_v6 = storage.ss_family == AF_INET6;
  return (is_v6 ? "[" : "") + host() + (is_v6 ? "]:" : ":") + std::to_string(port());
}

Result<TcpAddress> resolve(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (error != 0 || found == nullptr) {
    return Error{ErrorCode::unavailable,
                 "the name '" + host + "' does not resolve: " + gai_strerror(error)};
  }
  TcpAddress address;
  address.size = std::min<socklen_t>(found->ai_addrlen, sizeof address.storage);
  std::memcpy(&address.storage, found->ai_addr, address.size);
  freeaddrinfo(found);
  return address;
}

Result<FileDescriptor> listen_on(const TcpAddress& address) {
  FileDescriptor fd(
      socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int on = 1;
  if (!fd.is_open() || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      bind(fd.get(), raw(address), address.size) != 0 || listen(fd.get(), 64) != 0) {
    return unavailable("cannot listen on " + address.text(), errno);
  }
  return fd;
}

Result<TcpAddress> local_address(int fd) {
  TcpAddress address;
  address.size = sizeof address.storage;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address.storage), &address.size) != 0) {
    return unavailable("getsockname", errno);
  }
  return address;
}

Result<std::pair<FileDescriptor, std::string>> accept_from(int listener, TimePoint deadline) {
  if (!wait_for(listener, POLLIN, deadline)) {
    return Error{ErrorCode::unavailable, "no connection in time"};
  }
  TcpAddress peer;
  peer.size = sizeof peer.storage;
  FileDescriptor fd(accept4(listener,
                            reinterpret_cast<sockaddr*>(&peer.storage),
                            &peer.size,
                            SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!fd.is_open()) {
    return unavailable("accept", errno);
  }
  set_options(fd.get());
  return std::pair{std::move(fd), peer.text()};
}

Result<FileDescriptor> connect_to(const TcpAddress& address, TimePoint deadline) {
  const std::string what = "cannot connect to " + address.text();
  FileDescriptor fd(
      socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.is_open()) {
    return unavailable(what, errno);
  }
  if (connect(fd.get(), raw(address), address.size) != 0 && errno != EINPROGRESS) {
    return unavailable(what, errno);
  }
  if (!wait_for(fd.get(), POLLOUT, deadline)) {
    return unavailable(what, ETIMEDOUT);
  }
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
  if (error != 0) {
    return unavailable(what, error);
  }
  set_options(fd.get());
  return fd;
}

bool wait_for(int fd, int16_t events, TimePoint deadline) {
  while (true) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - system_clock().now()).count();
    pollfd entry{fd, events, 0};
    const int timeout_ms = static_cast<int>(std::clamp<int64_t>(left, 0, INT_MAX));
    const int ready = poll(&entry, 1, timeout_ms);
    if (ready > 0) {
      return true;
    }
    if (ready == 0 || errno != EINTR) {
      return false;
    }
  }
}

Status read_exactly(int fd, std::span<std::byte> bytes, TimePoint deadline) {
  while (!bytes.empty()) {
    const ssize_t got = recv(fd, bytes.data(), bytes.size(), 0);
    if (got > 0) {
      bytes = bytes.subspan(static_cast<size_t>(got));
    } else if (got == 0) {
      return Error{ErrorCode::unavailable, "the peer closed the connection"};
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (!wait_for(fd, POLLIN, deadline)) {
        return Error{ErrorCode::unavailable, "the peer sent nothing more in time"};
      }
    } else if (errno != EINTR) {
      return unavailable("the connection broke", errno);
    }
  }
  return ok_status();
}

Status write_all(int fd, std::span<const std::byte> bytes, TimePoint deadline) {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent >= 0) {
      bytes = bytes.subspan(static_cast<size_t>(sent));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (!wait_for(fd, POLLOUT, deadline)) {
        return Error{ErrorCode::unavailable, "the peer read nothing more in time"};
      }
    } else if (errno != EINTR) {
      return unavailable("the connection broke", errno);
    }
  }
  return ok_status();
}

}  // namespace hadal
