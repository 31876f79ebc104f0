// Connections between counterparts. Anything may knock at an open port: what does not begin with
// the group's token within a few seconds is dropped, and costs one small buffer until then.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include <hadal/base/clock.h>
#include <hadal/comm/process_communicator.h>
#include <hadal/net/tcp.h>

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace hadal {

namespace {

constexpr int kRetryMs = 100;
constexpr int kHelloMs = 5000;        ///< for the first bytes of a connection
constexpr size_t kMaxStrangers = 64;  ///< connections that have not said who they are
constexpr size_t kHelloBytes = 28;

using Hello = std::array<std::byte, kHelloBytes>;  ///< "HADALHI1", token, rank (little endian)

Hello make_hello(const GroupToken& token, int32_t rank) {
  Hello hello{};
  std::memcpy(hello.data(), "HADALHI1", 8);
  std::memcpy(hello.data() + 8, token.data(), token.size());
  for (size_t i = 0; i < 4; ++i) {
    hello[24 + i] = static_cast<std::byte>(static_cast<uint32_t>(rank) >> (8 * i));
  }
  return hello;
}

/// The rank; -1 when it is no hello of this group. Takes the same time for any token.
int32_t read_hello(const Hello& hello, const GroupToken& token) {
  const Hello expected = make_hello(token, 0);
  std::byte difference{0};
  for (size_t i = 0; i < 24; ++i) {
    difference |= hello[i] ^ expected[i];
  }
  uint32_t rank = 0;
  for (size_t i = 0; i < 4; ++i) {
    rank |= std::to_integer<uint32_t>(hello[24 + i]) << (8 * i);
  }
  return difference == std::byte{0} ? static_cast<int32_t>(rank) : -1;
}

Error unavailable(const std::string& what) {
  return Error{ErrorCode::unavailable, what};
}

std::string text_of(const PeerAddress& address) {
  return address.host + ":" + std::to_string(address.port);
}

int milliseconds_until(TimePoint end) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(end - system_clock().now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

/// Tells the own hello and reads the other's, in this order; false when it does not come in time.
bool exchange_hellos(int fd, const Hello& own, Hello& other, TimePoint end) {
  return write_all(fd, own, end) && read_exactly(fd, other, end);
}

/// One try at all addresses of a peer, hello included; not open with `why` set.
FileDescriptor try_peer(const PeerAddress& address,
                        const PeerConnectConfig& config,
                        int32_t peer,
                        TimePoint end,
                        std::string& why) {
  const auto addresses = resolve_all(address.host, address.port);
  if (!addresses) {
    why = addresses.error().message;
    return {};
  }
  for (const TcpAddress& candidate : addresses.value()) {
    const TimePoint try_end =
        std::min(end, system_clock().now() + std::chrono::milliseconds(kHelloMs));
    auto socket = connect_to(candidate, try_end);
    if (!socket) {
      why = socket.error().message;
      continue;
    }
    Hello other{};
    if (exchange_hellos(
            socket.value().get(), make_hello(config.token, config.rank), other, try_end) &&
        read_hello(other, config.token) == peer) {
      return std::move(socket).value();
    }
    why = "whoever listens there is not rank " + std::to_string(peer) + " of this group";
  }
  return {};
}

/// A connection that has not said who it is.
struct Stranger {
  FileDescriptor socket;
  TimePoint end;
  Hello hello{};
  size_t received = 0;
};

/// Accepts the counterparts of higher nodes.
class Acceptor {
 public:
  Acceptor(const PeerConnectConfig& config, int listen_fd, std::vector<int>& fds)
      : config_(config), listen_fd_(listen_fd), fds_(fds) {}

  Status run(TimePoint end) {
    for (int32_t missing = first_missing(); missing >= 0; missing = first_missing()) {
      if (milliseconds_until(end) == 0) {
        return unavailable("rank " + std::to_string(rank_on(missing)) +
                           " did not connect to rank " + std::to_string(config_.rank) + " within " +
                           std::to_string(config_.deadline_ms) + " ms");
      }
      turn(std::min(milliseconds_until(end), kRetryMs));
    }
    return ok_status();
  }

 private:
  int32_t own_node() const { return config_.rank / config_.node_size; }

  int32_t rank_on(int32_t node) const {
    return node * config_.node_size + config_.rank % config_.node_size;
  }

  int32_t first_missing() const {
    const auto nodes = static_cast<int32_t>(fds_.size());
    for (int32_t node = own_node() + 1; node < nodes; ++node) {
      if (fds_[static_cast<size_t>(node)] < 0) {
        return node;
      }
    }
    return -1;
  }

  void turn(int timeout_ms) {
    std::vector<pollfd> polls{{listen_fd_, POLLIN, 0}};
    for (const Stranger& stranger : strangers_) {
      polls.push_back({stranger.socket.get(), POLLIN, 0});
    }
    if (::poll(polls.data(), polls.size(), timeout_ms) < 0) {
      return;
    }
    const TimePoint now = system_clock().now();
    std::vector<Stranger> left;
    for (size_t i = 0; i < strangers_.size(); ++i) {
      Stranger& stranger = strangers_[i];
      const bool may_stay = polls[i + 1].revents != 0 ? listen_to(stranger) : now < stranger.end;
      if (may_stay) {
        left.push_back(std::move(stranger));
      }
    }
    strangers_ = std::move(left);
    if (polls[0].revents != 0 && strangers_.size() < kMaxStrangers) {
      auto socket = accept_from(listen_fd_, now);
      if (socket) {
        strangers_.push_back(
            {std::move(socket).value(), now + std::chrono::milliseconds(kHelloMs), {}, 0});
      }
    }
  }

  /// False when the connection is to be closed, or has become a peer.
  bool listen_to(Stranger& stranger) {
    const ssize_t n = ::recv(stranger.socket.get(),
                             stranger.hello.data() + stranger.received,
                             stranger.hello.size() - stranger.received,
                             0);
    if (n <= 0) {
      return n < 0 && (errno == EAGAIN || errno == EINTR);
    }
    stranger.received += static_cast<size_t>(n);
    if (stranger.received < stranger.hello.size()) {
      return true;
    }
    const int32_t rank = read_hello(stranger.hello, config_.token);
    const int32_t node = rank / config_.node_size;
    const bool is_expected = rank >= 0 && node > own_node() &&
                             node < static_cast<int32_t>(fds_.size()) && rank == rank_on(node) &&
                             fds_[static_cast<size_t>(node)] < 0;
    if (is_expected) {
      const Hello own = make_hello(config_.token, config_.rank);
      if (write_all(stranger.socket.get(), own, stranger.end)) {
        fds_[static_cast<size_t>(node)] = stranger.socket.release();
      }
    }
    return false;
  }

  const PeerConnectConfig& config_;
  int listen_fd_;
  std::vector<int>& fds_;
  std::vector<Stranger> strangers_;
};

Status connect_to_lower(const PeerConnectConfig& config, TimePoint end, std::vector<int>& fds) {
  const int32_t own_node = config.rank / config.node_size;
  for (int32_t node = 0; node < own_node; ++node) {
    const PeerAddress& address = config.addresses[static_cast<size_t>(node)];
    const int32_t peer = node * config.node_size + config.rank % config.node_size;
    std::string why = "no address";
    FileDescriptor socket;
    while (!(socket = try_peer(address, config, peer, end, why)).is_open()) {
      if (milliseconds_until(end) <= kRetryMs) {
        return unavailable("rank " + std::to_string(config.rank) + " did not reach rank " +
                           std::to_string(peer) + " at " + text_of(address) + " within " +
                           std::to_string(config.deadline_ms) + " ms: " + why);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(kRetryMs));
    }
    fds[static_cast<size_t>(node)] = socket.release();
  }
  return ok_status();
}

}  // namespace

Result<PeerListener> PeerListener::listen_on(const PeerAddress& address) {
  auto listener = hadal::listen_on(address.host, address.port);
  if (!listener) {
    return unavailable("cannot listen on " + text_of(address) + ": " + listener.error().message);
  }
  const auto bound = local_address(listener.value().get());
  if (!bound) {
    return unavailable("cannot listen on " + text_of(address) + ": " + bound.error().message);
  }
  return PeerListener(listener.value().release(), bound.value().port());
}

PeerListener::PeerListener(PeerListener&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), port_(other.port_) {}

PeerListener::~PeerListener() {
  if (fd_ >= 0) {
    ::close(fd_);
  }
}

Result<std::vector<int>> connect_peers(const PeerConnectConfig& config,
                                       const PeerListener& listener) {
  const bool is_sound =
      config.node_size >= 1 && config.world_size % config.node_size == 0 && config.rank >= 0 &&
      config.rank < config.world_size &&
      config.addresses.size() == static_cast<size_t>(config.world_size / config.node_size);
  if (!is_sound) {
    return Error{ErrorCode::invalid_argument,
                 "connect_peers: rank " + std::to_string(config.rank) + " of " +
                     std::to_string(config.world_size) + " with " +
                     std::to_string(config.addresses.size()) + " addresses of nodes of " +
                     std::to_string(config.node_size)};
  }
  const TimePoint end = system_clock().now() + std::chrono::milliseconds(config.deadline_ms);
  std::vector<int> fds(config.addresses.size(), -1);
  Status status = connect_to_lower(config, end, fds);
  if (status) {
    status = Acceptor(config, listener.fd(), fds).run(end);
  }
  if (!status) {
    for (const int fd : fds) {
      if (fd >= 0) {
        ::close(fd);
      }
    }
    return status.error();
  }
  return fds;
}

}  // namespace hadal
