// Nodes start in any order: a worker keeps calling until the leader answers, the leader keeps
// listening until all have come. What does not open with the hello is dropped within seconds.
#include "mesh.h"

#include <algorithm>
#include <thread>

#include "checks.h"

namespace hadal {
namespace {

using namespace std::chrono_literals;

constexpr uint32_t kControl = 0;
constexpr uint32_t kData = 1;
constexpr double kHelloSeconds = 2;
constexpr double kMeshSeconds = 10;
constexpr double kCallSeconds = 3;
constexpr size_t kRefusalsMax = 16;
constexpr auto kRetryInterval = 200ms;

/// Numeric; empty when the peer has left already.
std::string host_of_peer(const FileDescriptor& socket) {
  const auto address = peer_address(socket.get());
  return address ? address.value().host() : std::string();
}

WireHello make_hello(const DoctorConfig& config, uint32_t purpose, uint16_t port) {
  WireHello hello;
  hello.purpose = purpose;
  hello.node_rank = static_cast<uint32_t>(config.node_rank);
  hello.num_nodes = static_cast<uint32_t>(config.num_nodes);
  hello.ranks_per_node = static_cast<uint32_t>(config.ranks_per_node);
  hello.listen_port = port;
  write_text(hello.build, config.build);
  return hello;
}

/// Whether a proven hello has this purpose and comes from a node that may send it.
bool is_fitting(const DoctorConfig& config, const WireHello& hello, uint32_t purpose) {
  return hello.purpose == purpose && hello.listen_port <= 65535 &&
         (purpose == kControl || (hello.node_rank < static_cast<uint32_t>(config.num_nodes) &&
                                  hello.node_rank > static_cast<uint32_t>(config.node_rank)));
}

/// Once a text, and only so many: they come from whoever calls.
void note(std::vector<std::string>& list, const std::string& text) {
  if (list.size() < kRefusalsMax && std::find(list.begin(), list.end(), text) == list.end()) {
    list.push_back(text);
  }
}

/// Why a worker may not join; empty = it may.
std::string refusal(const DoctorConfig& config, const WireHello& hello, const Peers& peers) {
  const auto differs = [](const std::string& what, auto theirs, auto ours) {
    return what + " is " + std::to_string(theirs) + " there and " + std::to_string(ours) +
           " on node 0";
  };
  if (hello.num_nodes != static_cast<uint32_t>(config.num_nodes)) {
    return differs("--nnodes", hello.num_nodes, config.num_nodes);
  }
  if (hello.ranks_per_node != static_cast<uint32_t>(config.ranks_per_node)) {
    return differs("--tp over --nnodes", hello.ranks_per_node, config.ranks_per_node);
  }
  if (hello.node_rank == 0 || hello.node_rank >= hello.num_nodes) {
    return "--node-rank is " + std::to_string(hello.node_rank) + ", expected 1.." +
           std::to_string(hello.num_nodes - 1);
  }
  if (peers.control[hello.node_rank].is_open()) {
    return "--node-rank " + std::to_string(hello.node_rank) + " was given to two nodes";
  }
  if (read_text(hello.build) != read_text(make_hello(config, kControl, 0).build)) {
    return "build " + read_text(hello.build) + " there, " + config.build + " on node 0";
  }
  return {};
}

/// Text that every worker gets once: empty = all are there.
void send_verdict(const FileDescriptor& to, const std::string& text) {
  WireText verdict{};
  write_text(verdict, text);
  static_cast<void>(send_value(to, verdict, seconds_from_now(kHelloSeconds)));
}

void accept_worker(const DoctorConfig& config,
                   FileDescriptor socket,
                   std::vector<WireNode>& roster,
                   Peers& peers) {
  WireHello hello;
  const Introduction came =
      receive_hello(socket, config.secret, hello, seconds_from_now(kHelloSeconds));
  if (came == Introduction::wrong_secret) {
    note(peers.wrong_secrets, host_of_peer(socket));
    return;
  }
  if (came == Introduction::stranger || !is_fitting(config, hello, kControl)) {
    ++peers.strangers_dropped;
    return;
  }
  if (const std::string reason = refusal(config, hello, peers); !reason.empty()) {
    send_verdict(socket, reason);
    note(peers.refusals, host_of_peer(socket) + ": " + reason);
    return;
  }
  WireNode& node = roster[hello.node_rank];
  const std::string address = host_of_peer(socket);
  write_text(node.address, address);
  node.port = hello.listen_port;
  peers.names[hello.node_rank] = address;
  peers.control[hello.node_rank] = std::move(socket);
}

/// Connections from all nodes of higher rank that can come.
void accept_data(const DoctorConfig& config, const FileDescriptor& listener, Peers& peers) {
  const TimePoint deadline = seconds_from_now(kMeshSeconds);
  for (int32_t expected = config.num_nodes - 1 - config.node_rank; expected > 0;) {
    auto socket = accept_from(listener.get(), deadline);
    if (!socket) {
      return;
    }
    WireHello hello;
    const Introduction came =
        receive_hello(socket.value(), config.secret, hello, seconds_from_now(kHelloSeconds));
    if (came != Introduction::known || !is_fitting(config, hello, kData)) {
      ++peers.strangers_dropped;
      continue;
    }
    --expected;
    peers.data[hello.node_rank] = std::move(socket).value();
  }
}

Peers empty_peers(const DoctorConfig& config) {
  const auto count = static_cast<size_t>(config.num_nodes);
  Peers peers;
  peers.control.resize(count);
  peers.data.resize(count);
  peers.names.resize(count);
  peers.link_errors.assign(count, std::vector<std::string>(count));
  peers.names[0] = config.leader_host;
  return peers;
}

/// What each worker could not reach.
void collect_link_errors(Peers& peers) {
  for (size_t high = 1; high < peers.control.size(); ++high) {
    for (size_t low = 0; low < high; ++low) {
      WireText text{};
      // The node may have waited for each of those below it.
      const double patience_s = static_cast<double>(high + 1) * (kCallSeconds + kMeshSeconds);
      const Status received =
          receive_value(peers.control[high], text, seconds_from_now(patience_s));
      peers.link_errors[high][low] = received ? read_text(text) : received.error().message;
    }
  }
}

/// One stream to a node of lower rank; the reason when there is none.
std::string open_data(const DoctorConfig& config, const TcpAddress& address, FileDescriptor& out) {
  auto socket = connect_to(address, seconds_from_now(kCallSeconds));
  if (!socket) {
    return socket.error().message;
  }
  // The other node answers when it has called those below it.
  const Status sent = send_hello(
      socket.value(), config.secret, make_hello(config, kData, 0), seconds_from_now(kMeshSeconds));
  if (!sent) {
    return sent.error().message;
  }
  out = std::move(socket).value();
  return {};
}

Error without_secret(const std::string& why) {
  return {ErrorCode::unavailable, "this node has no group secret\n" + why};
}

/// Until the leader answers.
Result<FileDescriptor> call_leader(const DoctorConfig& config) {
  const TimePoint deadline = seconds_from_now(config.timeout_s);
  std::string reason;
  std::string remedy;
  const std::string port = std::to_string(config.leader_port);
  do {
    const auto addresses = resolve_all(config.leader_host, config.leader_port);
    if (!addresses) {
      reason = addresses.error().message;
      remedy = "give --dist-init-addr node 0's address, or publish its name";
    } else if (const auto why = why_not_without_secret(config.secret, addresses.value().front())) {
      return without_secret(*why);
    } else {
      auto socket =
          connect_to(addresses.value().front(), std::min(deadline, seconds_from_now(kCallSeconds)));
      if (socket) {
        return socket;
      }
      reason = socket.error().message;
      remedy = reason == kNoAnswer
                   ? "let TCP port " + port + " through between the nodes (NetworkPolicy, firewall)"
                   : "run hadal doctor on node 0 with the same flags, at the same time";
    }
    std::this_thread::sleep_for(kRetryInterval);
  } while (system_clock().now() < deadline);
  return Error{ErrorCode::unavailable,
               "node 0 at " + config.leader_host + ":" + port + " cannot be reached within " +
                   std::to_string(config.timeout_s) + " s: " + reason + "\n" + remedy};
}

/// Where the workers call. Without a secret on loopback alone, whatever else this machine has.
Result<FileDescriptor> open_leader_port(const DoctorConfig& config) {
  const auto own = resolve_all(config.leader_host, config.leader_port);
  if (config.secret.empty()) {
    if (!own) {
      return Error{
          ErrorCode::unavailable,
          own.error().message + "\ngive --dist-init-addr node 0's address, or publish its name"};
    }
    if (const auto why = why_not_without_secret(config.secret, own.value().front())) {
      return without_secret(*why);
    }
  }
  const bool is_v6 = own && own.value().front().family() == AF_INET6;
  auto listener = own && own.value().front().is_loopback()
                      ? listen_on(own.value().front())
                      : listen_on(is_v6 ? "::" : "0.0.0.0", config.leader_port);
  if (!listener) {
    return Error{ErrorCode::unavailable,
                 "cannot listen on port " + std::to_string(config.leader_port) + ": " +
                     listener.error().message +
                     "\nend the process that holds it, or give another "
                     "--dist-init-addr"};
  }
  return listener;
}

/// Where nodes of higher rank call this worker: loopback when that is how it reached node 0.
Result<FileDescriptor> open_worker_port(const FileDescriptor& leader) {
  auto own = local_address(leader.get());
  if (own && own.value().is_loopback()) {
    return listen_on(own.value().host(), 0);
  }
  auto listener = listen_on("::", 0);  // both families where the kernel has IPv6
  return listener ? std::move(listener) : listen_on("0.0.0.0", 0);
}

/// Shows node 0 who this is and waits for its verdict: nothing when all nodes have come.
Status join_leader(const DoctorConfig& config,
                   const FileDescriptor& leader,
                   uint16_t port,
                   TimePoint deadline) {
  WireText verdict{};
  Status status = send_hello(leader, config.secret, make_hello(config, kControl, port), deadline);
  const bool is_other_secret = !status && status.error().message == kOtherSecret;
  if (status) {
    status = receive_value(leader, verdict, deadline);
  }
  if (status && read_text(verdict).empty()) {
    return ok_status();
  }
  return Error{
      ErrorCode::unavailable,
      "node 0 let this node go: " + (status ? read_text(verdict) : status.error().message) + "\n" +
          (is_other_secret ? kSecretRemedy
                           : "start every node with the same image and flags, only --node-rank "
                             "differs")};
}

}  // namespace

Result<Peers> meet_as_leader(const DoctorConfig& config) {
  auto listener = open_leader_port(config);
  if (!listener) {
    return listener.error();
  }
  Peers peers = empty_peers(config);
  std::vector<WireNode> roster(static_cast<size_t>(config.num_nodes));
  const TimePoint deadline = seconds_from_now(config.timeout_s);
  const auto list_missing = [&] {
    peers.missing.clear();
    for (int32_t node = 1; node < config.num_nodes; ++node) {
      if (!peers.control[static_cast<size_t>(node)].is_open()) {
        peers.missing.push_back(node);
      }
    }
    return !peers.missing.empty();
  };
  while (list_missing()) {
    auto socket = accept_from(listener.value().get(), deadline);
    if (!socket) {
      break;
    }
    accept_worker(config, std::move(socket).value(), roster, peers);
  }
  for (const FileDescriptor& worker : peers.control) {
    if (worker.is_open()) {
      send_verdict(worker,
                   peers.missing.empty()
                       ? ""
                       : "node " + std::to_string(peers.missing.front()) + " did not come");
    }
  }
  if (!peers.missing.empty()) {
    return peers;
  }
  for (size_t node = 1; node < roster.size(); ++node) {
    static_cast<void>(write_all(peers.control[node].get(),
                                std::as_bytes(std::span(roster)),
                                seconds_from_now(kHelloSeconds)));
  }
  accept_data(config, listener.value(), peers);
  collect_link_errors(peers);
  return peers;
}

Result<Peers> meet_as_worker(const DoctorConfig& config) {
  auto leader = call_leader(config);
  if (!leader) {
    return leader.error();
  }
  auto listener = open_worker_port(leader.value());
  if (!listener) {
    return Error{ErrorCode::unavailable,
                 "cannot listen on any port: " + listener.error().message +
                     "\nlet the container listen on TCP ports"};
  }
  Peers peers = empty_peers(config);
  peers.control[0] = std::move(leader).value();
  const TimePoint deadline = seconds_from_now(config.timeout_s + kMeshSeconds);
  const auto own = local_address(listener.value().get());
  HADAL_RETURN_IF_ERROR(
      join_leader(config, peers.control[0], own ? own.value().port() : 0, deadline));
  std::vector<WireNode> roster(static_cast<size_t>(config.num_nodes));
  HADAL_RETURN_IF_ERROR(
      read_exactly(peers.control[0].get(), std::as_writable_bytes(std::span(roster)), deadline));
  std::vector<std::string> errors;
  for (int32_t low = 0; low < config.node_rank; ++low) {
    const auto index = static_cast<size_t>(low);
    const auto address = low == 0 ? peer_address(peers.control[0].get())
                                  : resolve(read_text(roster[index].address),
                                            static_cast<uint16_t>(roster[index].port));
    errors.push_back(address ? open_data(config, address.value(), peers.data[index])
                             : address.error().message);
  }
  accept_data(config, listener.value(), peers);
  for (const std::string& error : errors) {
    send_verdict(peers.control[0], error);
  }
  return peers;
}

}  // namespace hadal
