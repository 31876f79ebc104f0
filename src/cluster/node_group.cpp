// Forming the group. Node 0 runs each handshake on a thread of its own with a deadline, a bounded
// number at a time, the oldest making room; the others try again with growing pauses.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include <hadal/base/log.h>
#include <hadal/cluster/node_group.h>

#include "handshake.h"
#include "link.h"

#include <sys/socket.h>

namespace hadal {
namespace {

/// A dead peer must not keep plans in flight for minutes.
constexpr int32_t kPeerTimeoutMs = 4000;
constexpr size_t kPendingMax = 32;
constexpr double kPauseMin = 0.1;
constexpr double kPauseMax = 2;
constexpr double kPortPauseSeconds = 0.5;

std::string node_name(int32_t node) {
  return "node " + std::to_string(node);
}

FormedGroup failed(EndReason reason, std::string text) {
  return {nullptr, {reason, std::move(text)}};
}

/// Says the same thing again only every half minute.
class Teller {
 public:
  void tell(const std::string& text) {
    const TimePoint now = system_clock().now();
    if (text != last_ || now - told_ > std::chrono::seconds(30)) {
      log_info("Waiting for the group: " + text);
      last_ = text;
      told_ = now;
    }
  }

 private:
  std::string last_;
  TimePoint told_{};
};

/// Links by node, and what the users of a group may do with them.
class Group final : public NodeGroup {
 public:
  Group(const NodeGroupConfig& config, NodeGroupListener& listener)
      : times_{config.heartbeat_s, config.silence_s}, listener_(listener) {}

  ~Group() override { close(0); }

  bool send(int32_t node, GroupFrameType type, std::span<const std::byte> payload) override {
    const auto link = find(node);
    return link != nullptr && link->send(type, payload);
  }

  void broadcast(GroupFrameType type, std::span<const std::byte> payload) override {
    for (const auto& [node, link] : links()) {
      link->send(type, payload);
    }
  }

  void close(double seconds) override {
    std::map<int32_t, std::shared_ptr<Link>> links;
    {
      const std::lock_guard lock(mutex_);
      links.swap(links_);
    }
    const TimePoint deadline = seconds_from_now(seconds);
    for (const auto& [node, link] : links) {
      link->close(deadline);
    }
  }

  std::string host() const override {
    const std::lock_guard lock(mutex_);
    return host_;
  }

  uint16_t port() const override { return port_; }

  void set_own_address(const TcpAddress& address) {
    const std::lock_guard lock(mutex_);
    host_ = address.host();
    port_ = address.port();
    is_any_ = address.is_any();
  }

  /// A node that comes again before the group has begun replaces its old connection.
  void add(int32_t node, FileDescriptor socket) {
    int64_t generation = 0;
    {
      const std::lock_guard lock(mutex_);
      if (has_begun_) {
        return;  // the socket closes
      }
      generation = ++generations_[node];
      lost_.erase(node);
      // Who listens on every address is known by the one that a node has reached.
      if (const auto reached = local_address(socket.get()); is_any_ && reached) {
        host_ = reached.value().host();
        is_any_ = false;
      }
    }
    auto link = std::make_shared<Link>(
        std::move(socket),
        times_,
        Link::Events{
            [this, node](const Frame& frame) { on_frame(node, frame); },
            [this, node, generation](const std::string& why) { on_lost(node, generation, why); }});
    std::shared_ptr<Link> old;
    {
      const std::lock_guard lock(mutex_);
      old = std::exchange(links_[node], std::move(link));
    }
    if (old != nullptr) {
      old->close(system_clock().now());
    }
    changed_.notify_all();
  }

  /// Nodes that are connected now.
  std::vector<int32_t> present() {
    const std::lock_guard lock(mutex_);
    std::vector<int32_t> nodes;
    for (const auto& [node, link] : links_) {
      if (lost_.count(node) == 0) {
        nodes.push_back(node);
      }
    }
    return nodes;
  }

  /// From here on losses and frames go to the listener; false, with nothing begun, when one was
  /// lost meanwhile.
  bool begin(size_t num_links) {
    const std::lock_guard lock(mutex_);
    if (links_.size() != num_links || !lost_.empty()) {
      return false;
    }
    has_begun_ = true;
    return true;
  }

  /// A worker's wait for node 0's start frame.
  bool wait_start(TimePoint until) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, until, [&] { return has_begun_ || !lost_.empty(); }) &&
           has_begun_;
  }

  std::optional<std::string> first_loss() {
    const std::lock_guard lock(mutex_);
    return lost_.empty() ? std::nullopt : std::optional(lost_.begin()->second);
  }

 private:
  std::shared_ptr<Link> find(int32_t node) {
    const std::lock_guard lock(mutex_);
    const auto found = links_.find(node);
    return found == links_.end() ? nullptr : found->second;
  }

  std::map<int32_t, std::shared_ptr<Link>> links() {
    const std::lock_guard lock(mutex_);
    return links_;
  }

  void on_frame(int32_t node, const Frame& frame) {
    if (frame.type == static_cast<uint16_t>(ControlFrame::start)) {
      const std::lock_guard lock(mutex_);
      has_begun_ = true;
      changed_.notify_all();
    } else if (frame.type >= kFirstUserFrame) {
      listener_.on_frame(node, frame.type, frame.payload);
    }
  }

  void on_lost(int32_t node, int64_t generation, const std::string& why) {
    bool has_begun = false;
    {
      const std::lock_guard lock(mutex_);
      if (generations_[node] != generation) {
        return;  // it has been replaced
      }
      lost_[node] = why;
      has_begun = has_begun_;
    }
    changed_.notify_all();
    if (has_begun) {
      listener_.on_lost(node, why);
    }
  }

  LinkTimes times_;
  NodeGroupListener& listener_;
  mutable std::mutex mutex_;
  std::string host_;
  uint16_t port_ = 0;
  bool is_any_ = false;  ///< host_ is 0.0.0.0 or ::
  std::condition_variable changed_;
  std::map<int32_t, std::shared_ptr<Link>> links_;
  std::map<int32_t, int64_t> generations_;
  std::map<int32_t, std::string> lost_;
  bool has_begun_ = false;
};

/// Handshakes under way at node 0.
class Reception {
 public:
  Reception(const NodeGroupConfig& config, Group& group) : config_(config), group_(group) {}

  ~Reception() {
    for (const auto& guest : guests_) {
      guest->turn_away();
    }
  }

  void receive(FileDescriptor socket, const std::string& peer) {
    std::erase_if(guests_, [](const auto& guest) { return guest->is_done.load(); });
    if (guests_.size() >= kPendingMax) {
      guests_.front()->turn_away();
      guests_.pop_front();  // joins a thread whose socket has just ended
    }
    auto guest = std::make_unique<Guest>();
    guest->socket = std::move(socket);
    guest->thread = std::jthread([this, peer, at = guest.get()] {
      admit(*at, peer);
      at->is_done.store(true);
    });
    guests_.push_back(std::move(guest));
  }

 private:
  struct Guest {
    void turn_away() {
      const std::lock_guard lock(mutex);
      if (socket.is_open()) {
        shutdown(socket.get(), SHUT_RDWR);
      }
    }

    std::mutex mutex;
    FileDescriptor socket;  ///< moved out, under the mutex, when it becomes a member
    std::atomic<bool> is_done{false};
    std::jthread thread;
  };

  void admit(Guest& guest, const std::string& peer) {
    const auto admitted =
        admit_node(guest.socket.get(), config_, seconds_from_now(config_.handshake_s));
    if (const auto* node = std::get_if<int32_t>(&admitted)) {
      log_info("Node " + std::to_string(*node) + " joined from " + peer);
      FileDescriptor socket;
      {
        const std::lock_guard lock(guest.mutex);
        socket = std::move(guest.socket);
      }
      group_.add(*node, std::move(socket));
      return;
    }
    const auto& failure = std::get<HandshakeFailure>(admitted);
    const TimePoint now = system_clock().now();
    const std::lock_guard lock(mutex_);
    if (!failure.is_passing || now - told_ > std::chrono::seconds(10)) {
      log_warning("Refused " + peer + " on the group's port: " + failure.text);
      told_ = now;
    }
  }

  const NodeGroupConfig& config_;
  Group& group_;
  std::mutex mutex_;
  TimePoint told_{};
  std::deque<std::unique_ptr<Guest>> guests_;
};

std::string missing_text(const std::vector<int32_t>& present, int32_t num_nodes) {
  std::string text;
  for (int32_t node = 1; node < num_nodes; ++node) {
    if (std::find(present.begin(), present.end(), node) == present.end()) {
      text += (text.empty() ? "" : ", ") + node_name(node);
    }
  }
  return text;
}

/// Until the own name resolves and the port is free.
struct Opened {
  FileDescriptor listener;
  GroupEnd failure;
};

Opened open_port(const NodeGroupConfig& config,
                 const std::function<bool()>& is_cancelled,
                 TimePoint deadline) {
  Teller teller;
  while (true) {
    auto address = resolve(config.host, config.port);
    Error error = address ? Error{} : address.error();
    if (address) {
      if (const auto why = why_not_without_secret(config.secret, address.value())) {
        return {{}, {EndReason::bad_setup, *why}};
      }
      auto listener = listen_on(address.value());
      if (listener) {
        return {std::move(listener).value(), {}};
      }
      error = {listener.error().code,
               "cannot listen on " + address.value().text() + ": " + listener.error().message};
    }
    if (is_cancelled()) {
      return {{}, {EndReason::drained, "asked to stop"}};
    }
    if (system_clock().now() > deadline) {
      return {{}, {EndReason::join_timeout, "--dist-init-addr: " + error.message}};
    }
    teller.tell(error.message);
    std::this_thread::sleep_for(std::chrono::duration<double>(kPortPauseSeconds));
  }
}

FormedGroup lead(const NodeGroupConfig& config,
                 NodeGroupListener& listener,
                 const std::function<bool()>& is_cancelled,
                 const std::function<void(uint16_t)>& on_port) {
  const TimePoint deadline = seconds_from_now(config.timeout_s);
  Opened opened = open_port(config, is_cancelled, deadline);
  if (!opened.listener.is_open()) {
    return {nullptr, std::move(opened.failure)};
  }
  auto group = std::make_unique<Group>(config, listener);
  if (const auto address = local_address(opened.listener.get())) {
    group->set_own_address(address.value());
  }
  if (on_port) {
    on_port(group->port());
  }
  Reception reception(config, *group);
  Teller teller;
  const auto num_peers = static_cast<size_t>(config.num_nodes - 1);
  while (true) {
    const auto present = group->present();
    if (present.size() == num_peers && group->begin(num_peers)) {
      break;
    }
    if (is_cancelled()) {
      return failed(EndReason::drained, "asked to stop");
    }
    if (system_clock().now() > deadline) {
      return failed(EndReason::join_timeout,
                    missing_text(present, config.num_nodes) + " did not join in time");
    }
    teller.tell(missing_text(present, config.num_nodes));
    auto accepted = accept_from(opened.listener.get(), seconds_from_now(0.05));
    if (accepted) {
      set_peer_timeout(accepted.value().get(), kPeerTimeoutMs);
      const auto peer = peer_address(accepted.value().get());
      reception.receive(std::move(accepted).value(), peer ? peer.value().text() : "unknown");
    }
  }
  group->broadcast(static_cast<uint16_t>(ControlFrame::start), {});
  return {std::move(group), {}};
}

/// One attempt to join; EndReason::none with a group in `out` when it worked.
HandshakeFailure try_join(const NodeGroupConfig& config,
                          NodeGroupListener& listener,
                          std::unique_ptr<Group>& out) {
  const auto passing = [](const Error& error) {
    return HandshakeFailure{EndReason::node_lost, error.message, true};
  };
  const auto address = resolve(config.host, config.port);
  if (!address) {
    return passing(address.error());
  }
  if (const auto why = why_not_without_secret(config.secret, address.value())) {
    return {EndReason::bad_setup, *why, false};
  }
  auto socket = connect_to(address.value(), seconds_from_now(2));
  if (!socket) {
    return passing({socket.error().code,
                    "cannot connect to " + address.value().text() + ": " + socket.error().message});
  }
  set_peer_timeout(socket.value().get(), kPeerTimeoutMs);
  HandshakeFailure failure =
      enter_group(socket.value().get(), config, seconds_from_now(config.handshake_s));
  if (failure.reason == EndReason::none) {
    out = std::make_unique<Group>(config, listener);
    if (const auto own = local_address(socket.value().get())) {
      out->set_own_address(own.value());
    }
    out->add(0, std::move(socket).value());
  }
  return failure;
}

FormedGroup join(const NodeGroupConfig& config,
                 NodeGroupListener& listener,
                 const std::function<bool()>& is_cancelled) {
  const TimePoint deadline = seconds_from_now(config.timeout_s);
  double pause_s = kPauseMin;
  Teller teller;
  std::string why;
  while (system_clock().now() < deadline) {
    std::unique_ptr<Group> group;
    const HandshakeFailure failure = try_join(config, listener, group);
    if (failure.reason != EndReason::none && !failure.is_passing) {
      return failed(failure.reason, failure.text);
    }
    why = failure.text;
    if (group != nullptr) {
      log_info("Joined node 0 at " + config.host + ":" + std::to_string(config.port));
      pause_s = kPauseMin;
      while (!group->first_loss() && system_clock().now() < deadline && !is_cancelled()) {
        if (group->wait_start(seconds_from_now(0.1))) {
          return {std::move(group), {}};
        }
      }
      why = "node 0 was lost: " + group->first_loss().value_or("it did not start the group");
    }
    if (is_cancelled()) {
      return failed(EndReason::drained, "asked to stop");
    }
    teller.tell(why);
    std::this_thread::sleep_for(std::chrono::duration<double>(pause_s));
    pause_s = std::min(pause_s * 1.6, kPauseMax);
  }
  return failed(EndReason::join_timeout, "node 0 was not joined in time: " + why);
}

}  // namespace

FormedGroup form_node_group(const NodeGroupConfig& config,
                            NodeGroupListener& listener,
                            const std::function<bool()>& is_cancelled,
                            const std::function<void(uint16_t)>& on_port) {
  return config.node_rank == 0 ? lead(config, listener, is_cancelled, on_port)
                               : join(config, listener, is_cancelled);
}

}  // namespace hadal
