// Groups over loopback: joins in any order, and every kind of peer that must not get in.
#include <atomic>
#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>

#include <hadal/cluster/node_group.h>
#include <hadal/net/tcp.h>

#include "catch.h"
#include "frame.h"
#include "handshake.h"
#include "wire.h"

#include <poll.h>
#include <sys/socket.h>

using namespace hadal;
using namespace std::chrono_literals;

namespace {

#ifdef HADAL_SANITIZED
constexpr double kSlower = 3;
#else
constexpr double kSlower = 1;
#endif

struct Recorder final : NodeGroupListener {
  void on_frame(int32_t node, GroupFrameType type, std::span<const std::byte> payload) override {
    const std::lock_guard lock(mutex);
    frames.push_back(std::to_string(node) + ":" + std::to_string(type) + ":" +
                     std::string(reinterpret_cast<const char*>(payload.data()), payload.size()));
    changed.notify_all();
  }

  void on_lost(int32_t node, const std::string& why) override {
    const std::lock_guard lock(mutex);
    losses.push_back(std::to_string(node) + ": " + why);
    changed.notify_all();
  }

  template <class Condition>
  bool wait(Condition condition, std::chrono::seconds limit = 30s) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, limit, condition);
  }

  bool has_losses() {
    const std::lock_guard lock(mutex);
    return !losses.empty();
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::string> frames;
  std::vector<std::string> losses;
};

NodeGroupConfig config_of(int32_t node, int32_t num_nodes, uint16_t port = 0) {
  NodeGroupConfig config;
  config.host = "127.0.0.1";
  config.port = port;
  config.num_nodes = num_nodes;
  config.node_rank = node;
  config.timeout_s = 60;
  config.secret.bytes = "a secret";
  config.identity = {{"build", "1"}, {"--tp-size", "4"}};
  return config;
}

bool never() {
  return false;
}

/// A leader that forms its group in the background.
struct Leader {
  explicit Leader(const NodeGroupConfig& config) {
    std::promise<uint16_t> listens;
    auto port_known = listens.get_future();
    formed = std::async(std::launch::async, [this, config, &listens] {
      return form_node_group(
          config,
          listener,
          [this] { return is_cancelled.load(); },
          [&](uint16_t bound) { listens.set_value(bound); });
    });
    port = port_known.get();
  }

  Recorder listener;
  std::atomic<bool> is_cancelled{false};
  std::future<FormedGroup> formed;
  uint16_t port = 0;
};

FileDescriptor connect_raw(uint16_t port) {
  auto address = resolve("127.0.0.1", port);
  REQUIRE(address);
  auto socket = connect_to(address.value(), seconds_from_now(10));
  REQUIRE(socket);
  return std::move(socket).value();
}

}  // namespace

TEST_CASE("node group: three nodes meet, talk, and notice a loss", "[cluster]") {
  Leader leader(config_of(0, 3));
  Recorder second;
  Recorder third;
  auto joined = std::async(std::launch::async, [&] {
    return form_node_group(config_of(1, 3, leader.port), second, never);
  });
  CHECK(joined.wait_for(300ms) == std::future_status::timeout);  // node 2 is missing
  FormedGroup two = form_node_group(config_of(2, 3, leader.port), third, never);
  FormedGroup one = joined.get();
  FormedGroup zero = leader.formed.get();
  REQUIRE(zero.group != nullptr);
  REQUIRE(one.group != nullptr);
  REQUIRE(two.group != nullptr);
  zero.group->broadcast(100, bytes_of("plan"));
  CHECK(one.group->send(0, 101, bytes_of("ack")));
  CHECK(second.wait([&] { return second.frames == std::vector<std::string>{"0:100:plan"}; }));
  CHECK(third.wait([&] { return third.frames == std::vector<std::string>{"0:100:plan"}; }));
  CHECK(leader.listener.wait(
      [&] { return leader.listener.frames == std::vector<std::string>{"1:101:ack"}; }));
  two.group.reset();
  CHECK(leader.listener.wait([&] {
    return leader.listener.losses == std::vector<std::string>{"2: it closed the connection"};
  }));
  CHECK_FALSE(second.has_losses());
  zero.group.reset();
  CHECK(second.wait([&] { return second.losses.size() == 1; }));
}

TEST_CASE("node group: a node that started first waits for node 0", "[cluster]") {
  uint16_t port = 0;
  {
    auto any = resolve("127.0.0.1", 0);
    auto listener = listen_on(any.value());
    port = local_address(listener.value().get()).value().port();
  }
  Recorder first;
  auto joined = std::async(std::launch::async,
                           [&] { return form_node_group(config_of(1, 2, port), first, never); });
  std::this_thread::sleep_for(400ms);
  Leader leader(config_of(0, 2, port));
  CHECK(leader.formed.get().group != nullptr);
  CHECK(joined.get().group != nullptr);
}

TEST_CASE("node group: strangers neither join nor keep others out", "[cluster]") {
  Leader leader(config_of(0, 2));
  std::vector<FileDescriptor> scanners;  // more than the pending handshakes, all held open
  for (int i = 0; i < 40; ++i) {
    scanners.push_back(connect_raw(leader.port));
  }
  const FileDescriptor http = connect_raw(leader.port);
  CHECK(write_all(http.get(), bytes_of("GET / HTTP/1.1\r\n\r\n"), seconds_from_now(5)));
  const FileDescriptor half = connect_raw(leader.port);
  const auto frame =
      encode_frame(static_cast<uint16_t>(ControlFrame::proof), std::vector<std::byte>(72));
  CHECK(write_all(half.get(), std::span(frame).first(40), seconds_from_now(5)));
  const FileDescriptor huge = connect_raw(leader.port);
  const auto head = encode_frame(2, std::vector<std::byte>(kStrangerFrameBytesMax + 1));
  CHECK(write_all(huge.get(), std::span(head).first(kFrameHeadBytes), seconds_from_now(5)));
  Recorder recorder;
  FormedGroup one = form_node_group(config_of(1, 2, leader.port), recorder, never);
  CHECK(one.group != nullptr);
  CHECK(leader.formed.get().group != nullptr);
}

TEST_CASE("node group: what is wrong with a peer is named on its side", "[cluster]") {
  Leader leader(config_of(0, 2));
  Recorder recorder;
  NodeGroupConfig config = config_of(1, 2, leader.port);

  SECTION("secret") {
    config.secret.bytes = "another";
    const FormedGroup formed = form_node_group(config, recorder, never);
    CHECK(formed.failure.reason == EndReason::secret_refused);
    CHECK(formed.failure.text == "node 0 refused: the group secret is not the same on both nodes");
  }
  SECTION("no secret") {
    config.secret.bytes.clear();
    CHECK(form_node_group(config, recorder, never).failure.reason == EndReason::secret_refused);
  }
  SECTION("identity") {
    config.identity[1].value = "8";
    const FormedGroup formed = form_node_group(config, recorder, never);
    CHECK(formed.failure.reason == EndReason::mismatch);
    CHECK(formed.failure.text == "node 0 refused: --tp-size: '4' here, '8' there");
  }
  SECTION("rank") {
    config.node_rank = 5;
    const FormedGroup formed = form_node_group(config, recorder, never);
    CHECK(formed.failure.text == "node 0 refused: --node-rank: expected 1..1, got 5");
  }
  SECTION("protocol version") {
    const FileDescriptor socket = connect_raw(leader.port);
    REQUIRE(read_frame(socket.get(), kStrangerFrameBytesMax, seconds_from_now(10)));
    WireWriter proof;
    proof.put_u32(kGroupProtocol + 1);
    proof.put_u32(1);
    proof.put_raw(std::vector<std::byte>(100));
    REQUIRE(write_frame(socket.get(), ControlFrame::proof, proof.bytes(), seconds_from_now(10)));
    const auto refusal = read_frame(socket.get(), kStrangerFrameBytesMax, seconds_from_now(10));
    REQUIRE(refusal);
    WireReader in(refusal.value().payload);
    CHECK(in.get_u8() == static_cast<uint8_t>(EndReason::mismatch));
    CHECK(in.get_text(512) == "protocol version: node 0 has 1, the other node 2");
  }
  leader.is_cancelled = true;
  CHECK(leader.formed.get().failure.reason == EndReason::drained);
}

TEST_CASE("node group: a node does not trust a leader without the secret", "[cluster]") {
  auto any = resolve("127.0.0.1", 0);
  auto listener = listen_on(any.value());
  const uint16_t port = local_address(listener.value().get()).value().port();
  std::jthread impostor([&] {
    auto accepted = accept_from(listener.value().get(), seconds_from_now(20));
    const int fd = accepted.value().get();
    WireWriter challenge;
    challenge.put_u32(kGroupProtocol);
    challenge.put_raw(std::vector<std::byte>(32));
    (void)write_frame(fd, ControlFrame::challenge, challenge.bytes(), seconds_from_now(10));
    const auto proof = read_frame(fd, kStrangerFrameBytesMax, seconds_from_now(10));
    // Sends the node's own proof back.
    const auto mac = std::span(proof.value().payload).subspan(40);
    (void)write_frame(fd, ControlFrame::confirm, mac, seconds_from_now(10));
    std::byte rest{};
    (void)read_exactly(fd, {&rest, 1}, seconds_from_now(10));
  });
  Recorder recorder;
  const FormedGroup formed = form_node_group(config_of(1, 2, port), recorder, never);
  CHECK(formed.failure.reason == EndReason::secret_refused);
  CHECK(formed.failure.text == "node 0 does not know the group secret");
}

TEST_CASE("node group: addresses, names and times", "[cluster]") {
  Recorder recorder;
  NodeGroupConfig config = config_of(0, 2);
  config.timeout_s = 0.3;

  SECTION("no secret beyond loopback") {
    config.secret.bytes.clear();
    config.host = "0.0.0.0";
    const FormedGroup formed = form_node_group(config, recorder, never);
    CHECK(formed.failure.reason == EndReason::bad_setup);
    CHECK(formed.failure.text.find("--group-secret-file") != std::string::npos);
  }
  SECTION("a node that never comes") {
    const FormedGroup formed = form_node_group(config, recorder, never);
    CHECK(formed.failure.reason == EndReason::join_timeout);
    CHECK(formed.failure.text == "node 1 did not join in time");
  }
  SECTION("a name that never resolves") {
    config.node_rank = 1;
    config.host = "no-such-host.invalid";
    config.port = 20000;
    const FormedGroup formed = form_node_group(config, recorder, never);
    CHECK(formed.failure.reason == EndReason::join_timeout);
    CHECK(formed.failure.text.find("'no-such-host.invalid' does not resolve") != std::string::npos);
  }
}

TEST_CASE("node group: who listens on every address is known by the one reached", "[cluster]") {
  NodeGroupConfig everywhere = config_of(0, 2);
  everywhere.host = "0.0.0.0";
  Leader leader(everywhere);
  Recorder worker;
  const FormedGroup joined = form_node_group(config_of(1, 2, leader.port), worker, never);
  REQUIRE(joined.group);
  const FormedGroup led = leader.formed.get();
  REQUIRE(led.group);
  CHECK(led.group->host() == "127.0.0.1");
  CHECK(led.group->port() == leader.port);
}

TEST_CASE("node group: a silent peer is lost at both ends", "[cluster]") {
  // A proxy that stops forwarding: both ends stay connected and hear nothing.
  NodeGroupConfig leader_config = config_of(0, 2);
  leader_config.heartbeat_s = 0.2;
  leader_config.silence_s = 1 * kSlower;
  Leader leader(leader_config);
  auto any = resolve("127.0.0.1", 0);
  auto listener = listen_on(any.value());
  NodeGroupConfig config = leader_config;
  config.node_rank = 1;
  config.port = local_address(listener.value().get()).value().port();
  std::atomic<bool> is_cut{false};
  std::jthread proxy([&](const std::stop_token& stop) {
    auto accepted = accept_from(listener.value().get(), seconds_from_now(20));
    const FileDescriptor near = std::move(accepted.value());
    const FileDescriptor far = connect_raw(leader.port);
    std::byte buffer[4096];
    while (!stop.stop_requested()) {
      for (const auto& [from, to] : {std::pair{near.get(), far.get()}, {far.get(), near.get()}}) {
        if (!is_cut && wait_for(from, POLLIN, seconds_from_now(0.005))) {
          const ssize_t size = recv(from, buffer, sizeof buffer, 0);
          if (size > 0) {
            (void)write_all(
                to, std::span(buffer).first(static_cast<size_t>(size)), seconds_from_now(5));
          }
        }
      }
      std::this_thread::sleep_for(1ms);
    }
  });
  Recorder recorder;
  FormedGroup one = form_node_group(config, recorder, never);
  FormedGroup zero = leader.formed.get();
  REQUIRE(one.group != nullptr);
  REQUIRE(zero.group != nullptr);
  std::this_thread::sleep_for(std::chrono::duration<double>(2 * kSlower));
  CHECK_FALSE(recorder.has_losses());  // heartbeats alone keep it alive
  const auto start = std::chrono::steady_clock::now();
  is_cut = true;
  CHECK(recorder.wait([&] { return recorder.losses.size() == 1; }));
  CHECK(leader.listener.wait([&] { return leader.listener.losses.size() == 1; }));
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::duration<double>(4 * kSlower));
  const std::lock_guard lock(recorder.mutex);
  CHECK(recorder.losses.front().find("nothing heard for") != std::string::npos);
}
