// POSIX sockets. All are non-blocking: poll() carries the deadline.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>

#include <hadal/net/tcp.h>

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

namespace hadal {
namespace {

constexpr int kBacklog = 128;
constexpr int64_t kPollMsMax = 3'600'000;

Error unavailable(const std::string& what) {
  return Error{ErrorCode::unavailable, what};
}

Error system_error(int code) {
  return unavailable(std::system_category().message(code));
}

bool would_block(int code) {
  return code == EAGAIN || code == EWOULDBLOCK || code == EINTR;
}

/// False when the deadline passed first. Entries with a negative descriptor are not waited for.
bool wait_any(std::span<pollfd> entries, TimePoint deadline) {
  while (true) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - system_clock().now()).count();
    const auto timeout_ms = static_cast<int>(std::clamp<int64_t>(left, 0, kPollMsMax));
    const int ready = poll(entries.data(), entries.size(), timeout_ms);
    if (ready > 0) {
      return true;
    }
    if ((ready == 0 && timeout_ms == 0) || (ready < 0 && errno != EINTR)) {
      return false;
    }
  }
}

void send_at_once(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

FileDescriptor open_socket(int family) {
  return FileDescriptor(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

template <class Address>
Address copy_as(const TcpAddress& address) {
  Address copy{};
  std::memcpy(&copy, &address.storage, sizeof copy);
  return copy;
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
  if (family() == AF_INET) {
    return (ntohl(copy_as<sockaddr_in>(*this).sin_addr.s_addr) >> 24U) == 127;
  }
  const auto v6 = copy_as<sockaddr_in6>(*this);
  return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr) != 0;
}

bool TcpAddress::is_any() const {
  if (family() == AF_INET) {
    return copy_as<sockaddr_in>(*this).sin_addr.s_addr == htonl(INADDR_ANY);
  }
  const auto v6 = copy_as<sockaddr_in6>(*this);
  return IN6_IS_ADDR_UNSPECIFIED(&v6.sin6_addr) != 0;
}

uint16_t TcpAddress::port() const {
  return ntohs(copy_as<sockaddr_in>(*this).sin_port);  // at the same place in both families
}

std::string TcpAddress::host() const {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (family() == AF_INET) {
    const auto v4 = copy_as<sockaddr_in>(*this);
    inet_ntop(AF_INET, &v4.sin_addr, text.data(), text.size());
  } else if (family() == AF_INET6) {
    const auto v6 = copy_as<sockaddr_in6>(*this);
    if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
      inet_ntop(AF_INET, &v6.sin6_addr.s6_addr[12], text.data(), text.size());
    } else {
      inet_ntop(AF_INET6, &v6.sin6_addr, text.data(), text.size());
    }
  }
  return text.data();
}

std::string TcpAddress::text() const {
  const std::string numeric = host();
  const bool is_v6 = numeric.find(':') != std::string::npos;
  return (is_v6 ? "[" + numeric + "]:" : numeric + ":") + std::to_string(port());
}

Result<std::vector<TcpAddress>> resolve_all(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (host.empty() ? AI_PASSIVE : 0);
  addrinfo* list = nullptr;
  const std::string service = std::to_string(port);
  const int error =
      getaddrinfo(host.empty() ? nullptr : host.c_str(), service.c_str(), &hints, &list);
  if (error != 0) {
    return unavailable(gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> guard(list, &freeaddrinfo);
  std::vector<TcpAddress> addresses;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    TcpAddress& address = addresses.emplace_back();
    address.size = std::min<socklen_t>(entry->ai_addrlen, sizeof address.storage);
    std::memcpy(&address.storage, entry->ai_addr, address.size);
  }
  if (addresses.empty()) {
    return unavailable("no address");
  }
  return addresses;
}

Result<TcpAddress> resolve(const std::string& host, uint16_t port) {
  const auto addresses = resolve_all(host, port);
  if (!addresses) {
    return unavailable("the name '" + host + "' does not resolve: " + addresses.error().message);
  }
  return addresses.value().front();
}

Result<FileDescriptor> listen_on(const TcpAddress& address) {
  FileDescriptor fd = open_socket(address.family());
  const int on = 1;
  if (!fd.is_open() || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      bind(fd.get(), address.data(), address.size) != 0 || listen(fd.get(), kBacklog) != 0) {
    return system_error(errno);
  }
  return fd;
}

Result<FileDescriptor> listen_on(const std::string& host, uint16_t port) {
  const auto addresses = resolve_all(host, port);
  if (!addresses) {
    return addresses.error();
  }
  Error error;
  for (const TcpAddress& address : addresses.value()) {
    auto listener = listen_on(address);
    if (listener) {
      return listener;
    }
    error = listener.error();
  }
  return error;
}

Result<TcpAddress> local_address(int fd) {
  TcpAddress address;
  address.size = sizeof address.storage;
  if (getsockname(fd, address.data(), &address.size) != 0) {
    return system_error(errno);
  }
  return address;
}

Result<TcpAddress> peer_address(int fd) {
  TcpAddress address;
  address.size = sizeof address.storage;
  if (getpeername(fd, address.data(), &address.size) != 0) {
    return system_error(errno);
  }
  return address;
}

Result<FileDescriptor> connect_to(const TcpAddress& address, TimePoint deadline) {
  FileDescriptor fd = open_socket(address.family());
  if (!fd.is_open()) {
    return system_error(errno);
  }
  if (connect(fd.get(), address.data(), address.size) != 0) {
    if (errno != EINPROGRESS) {
      return system_error(errno);
    }
    if (!wait_for(fd.get(), POLLOUT, deadline)) {
      return unavailable(kNoAnswer);
    }
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
      return system_error(error);
    }
  }
  send_at_once(fd.get());
  return fd;
}

Result<FileDescriptor> accept_from(int listener, TimePoint deadline) {
  while (true) {
    FileDescriptor fd(accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd.is_open()) {
      send_at_once(fd.get());
      return fd;
    }
    if (!would_block(errno) && errno != ECONNABORTED) {
      return system_error(errno);
    }
    if (!wait_for(listener, POLLIN, deadline)) {
      return unavailable("no connection came");
    }
  }
}

void set_peer_timeout(int fd, int32_t timeout_ms) {
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
}

bool wait_for(int fd, int16_t events, TimePoint deadline) {
  pollfd entry{fd, events, 0};
  return wait_any(std::span(&entry, 1), deadline);
}

Status transfer(
    int to, std::span<const std::byte> out, int from, std::span<std::byte> in, TimePoint deadline) {
  while (!out.empty() || !in.empty()) {
    if (!out.empty()) {
      const ssize_t sent = send(to, out.data(), out.size(), MSG_NOSIGNAL);
      if (sent < 0 && !would_block(errno)) {
        return unavailable("the connection broke: " + system_error(errno).message);
      }
      out = out.subspan(static_cast<size_t>(std::max<ssize_t>(sent, 0)));
    }
    if (!in.empty()) {
      const ssize_t received = recv(from, in.data(), in.size(), 0);
      if (received == 0) {
        return unavailable("the peer closed the connection");
      }
      if (received < 0 && !would_block(errno)) {
        return unavailable("the connection broke: " + system_error(errno).message);
      }
      in = in.subspan(static_cast<size_t>(std::max<ssize_t>(received, 0)));
    }
    if (out.empty() && in.empty()) {
      break;
    }
    std::array<pollfd, 2> entries{pollfd{out.empty() ? -1 : to, POLLOUT, 0},
                                  pollfd{in.empty() ? -1 : from, POLLIN, 0}};
    if (!wait_any(entries, deadline)) {
      return unavailable(in.empty() ? "the peer read nothing more in time"
                                    : "the peer sent nothing more in time");
    }
  }
  return ok_status();
}

}  // namespace hadal
