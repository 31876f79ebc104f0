// Sends and receives advance together, so that two peers with full buffers never wait for each
// other. A peer's end of connection is its failure: nobody leaves a group that is in use.
#include "peer_links.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <thread>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace hadal {

namespace {

constexpr uint32_t kMagic = 0x4850'4c31;  // "HPL1"
constexpr int kLookMs = 20;               ///< between two looks at the interrupt
constexpr int kEagerTurns = 200;          ///< polls without sleep before the first sleep, if useful

bool would_block() {
  return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

}  // namespace

struct PeerLinks::Header {
  uint32_t magic = kMagic;
  uint32_t op = 0;
  uint64_t sequence = 0;
  int64_t bytes = 0;  ///< of the whole tensor
  int32_t root = 0;
  uint32_t reserved = 0;
  int64_t payload_bytes = 0;
};

struct PeerLinks::Flow {
  PeerTransfer transfer;
  Header out_header;
  Header in_header;
  int64_t sent = 0;  ///< header included
  int64_t received = 0;
  bool sends = false;
  bool receives = false;

  static constexpr int64_t kHeaderBytes = sizeof(Header);

  bool has_sent() const { return !sends || sent == kHeaderBytes + transfer.out_bytes; }

  bool has_received() const { return !receives || received == kHeaderBytes + transfer.in_bytes; }
};

PeerLinks::PeerLinks(std::vector<int> fds, PeerLinksOptions options)
    : fds_(std::move(fds)), options_(std::move(options)) {
  const auto cores = static_cast<int32_t>(std::thread::hardware_concurrency());
  eager_turns_ = cores >= 2 * options_.node_size ? kEagerTurns : 0;
  for (const int fd : fds_) {
    if (fd >= 0) {
      // Not every stream socket is TCP (tests use pairs): a refusal does no harm.
      const int yes = 1;
      ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      const int timeout_ms = options_.deadline_ms;
      ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
    }
  }
}

PeerLinks::~PeerLinks() {
  for (const int fd : fds_) {
    if (fd >= 0) {
      ::close(fd);
    }
  }
}

std::string PeerLinks::name(size_t node) const {
  return "rank " +
         std::to_string(static_cast<int32_t>(node) * options_.node_size + options_.local_rank);
}

void PeerLinks::fail(const Error& error) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (error_) {
      return;
    }
    error_ = error;
  }
  has_failed_.store(true, std::memory_order_release);
  for (const int fd : fds_) {
    if (fd >= 0) {
      ::shutdown(fd, SHUT_RDWR);
    }
  }
}

Status PeerLinks::status() const {
  if (!has_failed_.load(std::memory_order_acquire)) {
    return ok_status();
  }
  const std::lock_guard lock(mutex_);
  return *error_;
}

bool PeerLinks::send_some(size_t node, Flow& flow) {
  constexpr int64_t kHeader = Flow::kHeaderBytes;
  while (!flow.has_sent()) {
    const bool in_header = flow.sent < kHeader;
    const std::byte* from = in_header
                                ? reinterpret_cast<const std::byte*>(&flow.out_header) + flow.sent
                                : flow.transfer.out + (flow.sent - kHeader);
    const int64_t left = (in_header ? kHeader : kHeader + flow.transfer.out_bytes) - flow.sent;
    // The header waits for the payload, so that both leave in one segment.
    const int flags = MSG_NOSIGNAL | MSG_DONTWAIT | (in_header ? MSG_MORE : 0);
    const ssize_t n = ::send(fds_[node], from, static_cast<size_t>(left), flags);
    if (n < 0) {
      if (would_block()) {
        return true;
      }
      fail(Error{ErrorCode::unavailable,
                 name(node) + " closed its connection: " + std::strerror(errno)});
      return false;
    }
    flow.sent += n;
  }
  return true;
}

bool PeerLinks::receive_some(size_t node, Flow& flow) {
  constexpr int64_t kHeader = Flow::kHeaderBytes;
  while (!flow.has_received()) {
    const bool in_header = flow.received < kHeader;
    std::byte* to = in_header ? reinterpret_cast<std::byte*>(&flow.in_header) + flow.received
                              : flow.transfer.in + (flow.received - kHeader);
    const int64_t left = (in_header ? kHeader : kHeader + flow.transfer.in_bytes) - flow.received;
    const ssize_t n = ::recv(fds_[node], to, static_cast<size_t>(left), MSG_DONTWAIT);
    if (n < 0 && would_block()) {
      return true;
    }
    if (n <= 0) {
      fail(Error{ErrorCode::unavailable,
                 name(node) + " closed its connection" +
                     (n < 0 ? std::string(": ") + std::strerror(errno) : std::string())});
      return false;
    }
    flow.received += n;
    if (flow.received == kHeader && !check_header(node, flow)) {
      return false;
    }
  }
  return true;
}

bool PeerLinks::check_header(size_t node, const Flow& flow) {
  const Header& found = flow.in_header;
  const Header& own = flow.out_header;
  if (found.magic == kMagic && found.op == own.op && found.sequence == own.sequence &&
      found.bytes == own.bytes && found.root == own.root &&
      found.payload_bytes == flow.transfer.in_bytes) {
    return true;
  }
  const auto text = [](const Header& header) {
    return to_string(RoundStamp{header.op, header.root, header.bytes}) + ", number " +
           std::to_string(header.sequence);
  };
  fail(Error{ErrorCode::data_loss,
             name(node) + " brought " +
                 (found.magic == kMagic ? text(found) : std::string("no message of a rank")) +
                 " where " + text(own) + " was expected"});
  return false;
}

bool PeerLinks::wait(std::vector<Flow>& flows, int timeout_ms) {
  std::vector<pollfd> polls;
  std::vector<size_t> nodes;
  for (size_t node = 0; node < flows.size(); ++node) {
    const auto events = static_cast<short>((flows[node].has_sent() ? 0 : POLLOUT) |
                                           (flows[node].has_received() ? 0 : POLLIN));
    if (events != 0) {
      polls.push_back({fds_[node], events, 0});
      nodes.push_back(node);
    }
  }
  if (::poll(polls.data(), polls.size(), timeout_ms) <= 0) {
    return true;
  }
  for (size_t i = 0; i < polls.size(); ++i) {
    const bool went_well = polls[i].revents == 0 || (send_some(nodes[i], flows[nodes[i]]) &&
                                                     receive_some(nodes[i], flows[nodes[i]]));
    if (!went_well) {
      return false;
    }
  }
  return true;
}

void PeerLinks::fail_late(const std::vector<Flow>& flows) {
  std::string missing;
  for (size_t node = 0; node < flows.size(); ++node) {
    if (!flows[node].has_sent() || !flows[node].has_received()) {
      missing += (missing.empty() ? "" : ", ") + name(node);
    }
  }
  const Header& own = flows[static_cast<size_t>(options_.own_node == 0 ? 1 : 0)].out_header;
  fail(Error{ErrorCode::unavailable,
             missing + " did not complete " + to_string(RoundStamp{own.op, own.root, own.bytes}) +
                 " within " + std::to_string(options_.deadline_ms) + " ms"});
}

bool PeerLinks::exchange(const std::vector<PeerTransfer>& transfers, const RoundStamp& stamp) {
  if (has_failed_.load(std::memory_order_acquire)) {
    return false;
  }
  ++sequence_;
  std::vector<Flow> flows(transfers.size());
  for (size_t node = 0; node < flows.size(); ++node) {
    Flow& flow = flows[node];
    flow.transfer = transfers[node];
    flow.out_header.op = stamp.op;
    flow.out_header.sequence = sequence_;
    flow.out_header.bytes = stamp.bytes;
    flow.out_header.root = stamp.root;
    flow.out_header.payload_bytes = flow.transfer.out_bytes;
    const bool is_peer = static_cast<int32_t>(node) != options_.own_node;
    flow.sends = is_peer && flow.transfer.out_bytes > 0;
    flow.receives = is_peer && flow.transfer.in_bytes > 0;
    if (!send_some(node, flow) || !receive_some(node, flow)) {
      return false;
    }
  }
  const TimePoint begin = system_clock().now();
  const auto is_done = [](const Flow& flow) { return flow.has_sent() && flow.has_received(); };
  for (int turn = 0; !std::all_of(flows.begin(), flows.end(), is_done); ++turn) {
    if (!wait(flows, turn < eager_turns_ ? 0 : kLookMs)) {
      return false;
    }
    if (turn < eager_turns_) {
      continue;
    }
    const Status status = options_.interrupt ? options_.interrupt() : ok_status();
    if (!status) {
      fail(status.error());
      return false;
    }
    if (system_clock().now() - begin > std::chrono::milliseconds(options_.deadline_ms)) {
      fail_late(flows);
      return false;
    }
  }
  return true;
}

}  // namespace hadal
