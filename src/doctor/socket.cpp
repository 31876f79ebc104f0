// Non-blocking sockets and poll().
#include "socket.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <system_error>

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

namespace hadal {
namespace {

Error system_error(int code) {
  return Error{ErrorCode::unavailable, std::system_category().message(code)};
}

/// Milliseconds for poll(), rounded up; 0 once the deadline has passed.
int milliseconds_left(TimePoint deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - system_clock().now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 3'600'000));
}

/// False when the deadline passed first.
bool wait_ready(std::span<pollfd> waits, TimePoint deadline) {
  while (true) {
    const int timeout_ms = milliseconds_left(deadline);
    const int ready = ::poll(waits.data(), waits.size(), timeout_ms);
    if (ready > 0) {
      return true;
    }
    if (ready == 0 && timeout_ms == 0) {
      return false;
    }
    if (ready < 0 && errno != EINTR) {
      return false;
    }
  }
}

void set_no_delay(const Socket& socket) {
  const int on = 1;
  ::setsockopt(socket.fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

bool would_block(int code) {
  return code == EAGAIN || code == EWOULDBLOCK || code == EINTR;
}

}  // namespace

std::string SocketAddress::text() const {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (family() == AF_INET) {
    ::inet_ntop(AF_INET,
                &reinterpret_cast<const sockaddr_in*>(&storage)->sin_addr,
                text.data(),
                text.size());
  } else if (family() == AF_INET6) {
    const auto* address = reinterpret_cast<const sockaddr_in6*>(&storage);
    if (IN6_IS_ADDR_V4MAPPED(&address->sin6_addr)) {
      ::inet_ntop(AF_INET, &address->sin6_addr.s6_addr[12], text.data(), text.size());
    } else {
      ::inet_ntop(AF_INET6, &address->sin6_addr, text.data(), text.size());
    }
  }
  return text.data();
}

void SocketAddress::set_port(uint16_t port) {
  // Both families keep the port at the same place.
  reinterpret_cast<sockaddr_in*>(&storage)->sin_port = htons(port);
}

uint16_t SocketAddress::port() const {
  return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
}

Socket::~Socket() {
  if (fd_ >= 0) {
    ::close(fd_);
  }
}

Result<std::vector<SocketAddress>> resolve_tcp(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = host.empty() ? AI_PASSIVE : 0;
  addrinfo* list = nullptr;
  const std::string service = std::to_string(port);
  const int code =
      ::getaddrinfo(host.empty() ? nullptr : host.c_str(), service.c_str(), &hints, &list);
  if (code != 0) {
    return Error{ErrorCode::not_found, ::gai_strerror(code)};
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> guard(list, &::freeaddrinfo);
  std::vector<SocketAddress> addresses;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    SocketAddress address;
    address.size = entry->ai_addrlen;
    std::copy_n(reinterpret_cast<const std::byte*>(entry->ai_addr),
                entry->ai_addrlen,
                reinterpret_cast<std::byte*>(&address.storage));
    addresses.push_back(address);
  }
  if (addresses.empty()) {
    return Error{ErrorCode::not_found, "no address"};
  }
  return addresses;
}

Result<Socket> listen_tcp(const std::string& host, uint16_t port) {
  const auto addresses = resolve_tcp(host, port);
  if (!addresses) {
    return addresses.error();
  }
  const SocketAddress& address = addresses.value().front();
  Socket socket(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  ::setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (!socket.is_open() || ::bind(socket.fd(), address.data(), address.size) != 0 ||
      ::listen(socket.fd(), 128) != 0) {
    return system_error(errno);
  }
  return socket;
}

uint16_t local_port(const Socket& socket) {
  SocketAddress address;
  address.size = sizeof address.storage;
  ::getsockname(socket.fd(), address.data(), &address.size);
  return address.port();
}

SocketAddress peer_address(const Socket& socket) {
  SocketAddress address;
  address.size = sizeof address.storage;
  ::getpeername(socket.fd(), address.data(), &address.size);
  return address;
}

Result<Socket> connect_tcp(const SocketAddress& address, TimePoint deadline) {
  Socket socket(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.is_open()) {
    return system_error(errno);
  }
  if (::connect(socket.fd(), address.data(), address.size) != 0) {
    if (errno != EINPROGRESS) {
      return system_error(errno);
    }
    std::array<pollfd, 1> waits{pollfd{socket.fd(), POLLOUT, 0}};
    if (!wait_ready(waits, deadline)) {
      return Error{ErrorCode::unavailable, "no answer"};
    }
    int code = 0;
    socklen_t size = sizeof code;
    ::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &code, &size);
    if (code != 0) {
      return system_error(code);
    }
  }
  set_no_delay(socket);
  return socket;
}

Result<Socket> accept_tcp(const Socket& listener, TimePoint deadline) {
  while (true) {
    Socket socket(::accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket.is_open()) {
      set_no_delay(socket);
      return socket;
    }
    if (!would_block(errno) && errno != ECONNABORTED) {
      return system_error(errno);
    }
    std::array<pollfd, 1> waits{pollfd{listener.fd(), POLLIN, 0}};
    if (!wait_ready(waits, deadline)) {
      return Error{ErrorCode::unavailable, "no connection came"};
    }
  }
}

Status transfer(const Socket& to,
                std::span<const std::byte> out,
                const Socket& from,
                std::span<std::byte> in,
                TimePoint deadline) {
  while (!out.empty() || !in.empty()) {
    if (!out.empty()) {
      const ssize_t sent = ::send(to.fd(), out.data(), out.size(), MSG_NOSIGNAL);
      if (sent < 0 && !would_block(errno)) {
        return system_error(errno);
      }
      out = out.subspan(static_cast<size_t>(std::max<ssize_t>(sent, 0)));
    }
    if (!in.empty()) {
      const ssize_t received = ::recv(from.fd(), in.data(), in.size(), 0);
      if (received == 0) {
        return Error{ErrorCode::unavailable, "the other node closed the connection"};
      }
      if (received < 0 && !would_block(errno)) {
        return system_error(errno);
      }
      in = in.subspan(static_cast<size_t>(std::max<ssize_t>(received, 0)));
    }
    if (out.empty() && in.empty()) {
      break;
    }
    std::array<pollfd, 2> waits{pollfd{out.empty() ? -1 : to.fd(), POLLOUT, 0},
                                pollfd{in.empty() ? -1 : from.fd(), POLLIN, 0}};
    if (!wait_ready(waits, deadline)) {
      return Error{ErrorCode::unavailable, "no answer in time"};
    }
  }
  return ok_status();
}

}  // namespace hadal
