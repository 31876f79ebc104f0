// The measurements: clocks, every pair alone, then a ring all-reduce over all nodes. The leader
// says who measures next; a node that is not named stays silent, so a pair has the network alone.
#include <algorithm>
#include <cmath>

#include "checks.h"
#include "mesh.h"

namespace hadal {
namespace {

using Seconds = std::chrono::duration<double>;

constexpr int kRoundTrips = 32;
constexpr int kClockReadings = 8;
constexpr double kSendSeconds = 0.25;  // time for which one direction is filled
constexpr size_t kChunkBytes = 256 * 1024;
constexpr double kStepSeconds = 30;
constexpr size_t kRingFloats = 1 << 20;

enum class Order : uint32_t { clock, pair, ring, finish };

struct WireOrder {
  Order order = Order::finish;
  uint32_t low = 0;
  uint32_t high = 0;
};

struct WirePair {
  double round_trip_us = 0;
  double low_to_high_mb_per_s = 0;
  double high_to_low_mb_per_s = 0;
  WireText error{};
};

struct WireRing {
  double milliseconds = 0;
  WireText error{};
};

double seconds_since(TimePoint start) {
  return Seconds(system_clock().now() - start).count();
}

/// Fills the link for a moment; megabytes a second from the first byte to the receiver's answer.
Result<double> send_burst(const FileDescriptor& socket) {
  const std::vector<std::byte> chunk(kChunkBytes);
  const TimePoint start = system_clock().now();
  const TimePoint deadline = seconds_from_now(kStepSeconds);
  uint64_t sent = 0;
  do {
    const uint64_t size = chunk.size();
    HADAL_RETURN_IF_ERROR(send_value(socket, size, deadline));
    HADAL_RETURN_IF_ERROR(write_all(socket.get(), chunk, deadline));
    sent += size;
  } while (seconds_since(start) < kSendSeconds);
  HADAL_RETURN_IF_ERROR(send_value(socket, uint64_t{0}, deadline));
  uint64_t received = 0;
  HADAL_RETURN_IF_ERROR(receive_value(socket, received, deadline));
  if (received != sent) {
    return Error{ErrorCode::data_loss,
                 std::to_string(received) + " of " + std::to_string(sent) + " bytes arrived"};
  }
  return static_cast<double>(sent) / seconds_since(start) / 1e6;
}

Status receive_burst(const FileDescriptor& socket) {
  std::vector<std::byte> chunk(kChunkBytes);
  const TimePoint deadline = seconds_from_now(kStepSeconds);
  uint64_t received = 0;
  while (true) {
    uint64_t size = 0;
    HADAL_RETURN_IF_ERROR(receive_value(socket, size, deadline));
    if (size == 0) {
      return send_value(socket, received, deadline);
    }
    if (size > chunk.size()) {
      return Error{ErrorCode::data_loss, "a chunk of " + std::to_string(size) + " bytes"};
    }
    HADAL_RETURN_IF_ERROR(read_exactly(socket.get(), std::span(chunk).first(size), deadline));
    received += size;
  }
}

/// The higher node asks, and knows everything at the end.
Result<LinkMeasurement> measure_as_high(const FileDescriptor& socket) {
  LinkMeasurement link;
  std::vector<double> times;
  for (int i = 0; i < kRoundTrips; ++i) {
    const TimePoint start = system_clock().now();
    uint64_t echo = 0;
    HADAL_RETURN_IF_ERROR(send_value(socket, uint64_t{1}, seconds_from_now(kStepSeconds)));
    HADAL_RETURN_IF_ERROR(receive_value(socket, echo, seconds_from_now(kStepSeconds)));
    times.push_back(1e6 * seconds_since(start));
  }
  std::nth_element(times.begin(), times.begin() + kRoundTrips / 2, times.end());
  link.round_trip_us = times[kRoundTrips / 2];
  const auto rate = send_burst(socket);
  if (!rate) {
    return rate.error();
  }
  link.high_to_low_mb_per_s = rate.value();
  HADAL_RETURN_IF_ERROR(receive_burst(socket));
  HADAL_RETURN_IF_ERROR(
      receive_value(socket, link.low_to_high_mb_per_s, seconds_from_now(kStepSeconds)));
  if (!std::isfinite(link.low_to_high_mb_per_s)) {
    return Error{ErrorCode::data_loss, "the other node sent a rate that is no number"};
  }
  return link;
}

Status measure_as_low(const FileDescriptor& socket) {
  for (int i = 0; i < kRoundTrips; ++i) {
    uint64_t echo = 0;
    HADAL_RETURN_IF_ERROR(receive_value(socket, echo, seconds_from_now(kStepSeconds)));
    HADAL_RETURN_IF_ERROR(send_value(socket, echo, seconds_from_now(kStepSeconds)));
  }
  HADAL_RETURN_IF_ERROR(receive_burst(socket));
  const auto rate = send_burst(socket);
  if (!rate) {
    return rate.error();
  }
  return send_value(socket, rate.value(), seconds_from_now(kStepSeconds));
}

float ring_input(size_t node, size_t i) {
  return static_cast<float>(node + 1 + i % 7);
}

/// Reduce-scatter, then all-gather, over the ring of data streams; checks every sum.
Status ring_all_reduce(const DoctorConfig& config, const Peers& peers) {
  const auto nodes = static_cast<size_t>(config.num_nodes);
  const auto rank = static_cast<size_t>(config.node_rank);
  const size_t part = kRingFloats / nodes;
  const FileDescriptor& next = peers.data[(rank + 1) % nodes];
  const FileDescriptor& previous = peers.data[(rank + nodes - 1) % nodes];
  if (!next.is_open() || !previous.is_open()) {
    return Error{ErrorCode::unavailable, "a neighbour in the ring has no link"};
  }
  std::vector<float> values(part * nodes);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = ring_input(rank, i);
  }
  std::vector<float> arrived(part);
  const TimePoint deadline = seconds_from_now(kStepSeconds);
  for (size_t step = 0; step < 2 * (nodes - 1); ++step) {
    const bool reduces = step + 1 < nodes;  // then gathers
    const size_t give = (rank + 2 * nodes - step) % nodes;
    const size_t take = (give + nodes - 1) % nodes;
    HADAL_RETURN_IF_ERROR(transfer(next.get(),
                                   std::as_bytes(std::span(values).subspan(give * part, part)),
                                   previous.get(),
                                   std::as_writable_bytes(std::span(arrived)),
                                   deadline));
    float* out = values.data() + take * part;
    for (size_t i = 0; i < part; ++i) {
      out[i] = reduces ? out[i] + arrived[i] : arrived[i];
    }
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const auto expected = static_cast<float>(nodes * (nodes + 1) / 2 + nodes * (i % 7));
    if (values[i] != expected) {
      return Error{ErrorCode::data_loss,
                   "sum " + std::to_string(i) + " is " + std::to_string(values[i]) + ", expected " +
                       std::to_string(expected)};
    }
  }
  return ok_status();
}

WireRing run_ring(const DoctorConfig& config, const Peers& peers) {
  WireRing ring;
  const TimePoint start = system_clock().now();
  const Status status = ring_all_reduce(config, peers);
  ring.milliseconds = 1e3 * seconds_since(start);
  write_text(ring.error, status ? "" : status.error().message);
  return ring;
}

// The leader's side.

class Leader {
 public:
  Leader(const DoctorConfig& config, const DoctorProbes& probes, Peers& peers)
      : config_(config), probes_(probes), peers_(peers) {}

  LinkReport run() {
    report_.names = peers_.names;
    report_.missing_nodes = peers_.missing;
    report_.refusals = peers_.refusals;
    report_.wrong_secrets = peers_.wrong_secrets;
    report_.strangers_dropped = peers_.strangers_dropped;
    if (!report_.missing_nodes.empty()) {
      return std::move(report_);
    }
    for (int32_t node = 1; node < config_.num_nodes; ++node) {
      read_clock(node);
    }
    for (int32_t low = 0; low < config_.num_nodes; ++low) {
      for (int32_t high = low + 1; high < config_.num_nodes; ++high) {
        measure_pair(low, high);
      }
    }
    measure_ring();
    return std::move(report_);
  }

  /// Ends every worker, with the number of failures that the leader found.
  void finish(int32_t num_failures) {
    for (int32_t node = 1; node < config_.num_nodes; ++node) {
      if (control(node).is_open()) {
        static_cast<void>(order(node, {Order::finish, static_cast<uint32_t>(num_failures), 0}));
      }
    }
  }

 private:
  FileDescriptor& control(int32_t node) { return peers_.control[static_cast<size_t>(node)]; }

  Status order(int32_t node, const WireOrder& what) {
    return send_value(control(node), what, seconds_from_now(kStepSeconds));
  }

  void read_clock(int32_t node) {
    double best_us = INFINITY;
    ClockOffset clock{node, 0, 0};
    for (int i = 0; i < kClockReadings; ++i) {
      int64_t theirs_us = 0;
      const TimePoint start = system_clock().now();
      const int64_t before_us = probes_.wall_clock_us();
      if (!order(node, {Order::clock, 0, 0}) ||
          !receive_value(control(node), theirs_us, seconds_from_now(kStepSeconds))) {
        return;
      }
      const double trip_us = 1e6 * seconds_since(start);
      if (trip_us < best_us) {
        best_us = trip_us;
        // As a difference of doubles: a hostile value cannot overflow.
        clock.offset_ms =
            (static_cast<double>(theirs_us) - static_cast<double>(before_us) - trip_us / 2) / 1e3;
        clock.uncertainty_ms = trip_us / 2e3;
      }
    }
    report_.clocks.push_back(clock);
  }

  void measure_pair(int32_t low, int32_t high) {
    LinkMeasurement link;
    link.low = low;
    link.high = high;
    link.error = peers_.link_errors[static_cast<size_t>(high)][static_cast<size_t>(low)];
    if (link.error.empty()) {
      const auto measured = run_pair(low, high);
      if (measured) {
        link = measured.value();
      } else {
        link.error = measured.error().message;
      }
    }
    link.low = low;
    link.high = high;
    report_.links.push_back(std::move(link));
  }

  Result<LinkMeasurement> run_pair(int32_t low, int32_t high) {
    const WireOrder what{Order::pair, static_cast<uint32_t>(low), static_cast<uint32_t>(high)};
    if (low > 0) {
      HADAL_RETURN_IF_ERROR(order(low, what));
    }
    HADAL_RETURN_IF_ERROR(order(high, what));
    Status low_status = ok_status();
    WireText low_text{};
    if (low == 0) {
      low_status = measure_as_low(peers_.data[static_cast<size_t>(high)]);
    } else if (low_status =
                   receive_value(control(low), low_text, seconds_from_now(4 * kStepSeconds));
               low_status && !read_text(low_text).empty()) {
      low_status = Error{ErrorCode::unavailable, read_text(low_text)};
    }
    WirePair pair;
    HADAL_RETURN_IF_ERROR(receive_value(control(high), pair, seconds_from_now(4 * kStepSeconds)));
    if (!low_status) {
      return low_status.error();
    }
    if (const std::string error = read_text(pair.error); !error.empty()) {
      return Error{ErrorCode::unavailable, error};
    }
    LinkMeasurement link;
    link.round_trip_us = pair.round_trip_us;
    link.low_to_high_mb_per_s = pair.low_to_high_mb_per_s;
    link.high_to_low_mb_per_s = pair.high_to_low_mb_per_s;
    return link;
  }

  void measure_ring() {
    for (const LinkMeasurement& link : report_.links) {
      if (!link.error.empty()) {
        report_.all_reduce_error = "not run: a link is broken";
        return;
      }
    }
    report_.all_reduce_bytes = static_cast<int64_t>(kRingFloats * sizeof(float));
    for (int32_t node = 1; node < config_.num_nodes; ++node) {
      if (const Status sent = order(node, {Order::ring, 0, 0}); !sent) {
        report_.all_reduce_error = sent.error().message;
        return;
      }
    }
    WireRing ring = run_ring(config_, peers_);
    add_ring(0, ring);
    for (int32_t node = 1; node < config_.num_nodes; ++node) {
      const Status received =
          receive_value(control(node), ring, seconds_from_now(2 * kStepSeconds));
      if (!received) {
        write_text(ring.error, received.error().message);
      }
      add_ring(node, ring);
    }
  }

  void add_ring(int32_t node, const WireRing& ring) {
    report_.all_reduce_ms = std::max(report_.all_reduce_ms, ring.milliseconds);
    if (const std::string error = read_text(ring.error);
        !error.empty() && report_.all_reduce_error.empty()) {
      report_.all_reduce_error = "node " + std::to_string(node) + ": " + error;
    }
  }

  const DoctorConfig& config_;
  const DoctorProbes& probes_;
  Peers& peers_;
  LinkReport report_;
};

// A worker's side.

Status obey_pair(const DoctorConfig& config, const Peers& peers, const WireOrder& what) {
  const FileDescriptor& leader = peers.control[0];
  const auto own = static_cast<uint32_t>(config.node_rank);
  const auto nodes = static_cast<uint32_t>(config.num_nodes);
  if (what.low >= nodes || what.high >= nodes || (own != what.low && own != what.high)) {
    return Error{ErrorCode::data_loss, "node 0 ordered a pair without this node"};
  }
  if (own == what.low) {
    const Status status = measure_as_low(peers.data[what.high]);
    WireText error{};
    write_text(error, status ? "" : status.error().message);
    return send_value(leader, error, seconds_from_now(kStepSeconds));
  }
  const auto link = measure_as_high(peers.data[what.low]);
  WirePair pair;
  if (link) {
    pair.round_trip_us = link.value().round_trip_us;
    pair.low_to_high_mb_per_s = link.value().low_to_high_mb_per_s;
    pair.high_to_low_mb_per_s = link.value().high_to_low_mb_per_s;
  } else {
    write_text(pair.error, link.error().message);
  }
  return send_value(leader, pair, seconds_from_now(kStepSeconds));
}

/// The number of failures that the leader found.
Result<uint32_t> obey(const DoctorConfig& config, const DoctorProbes& probes, const Peers& peers) {
  const FileDescriptor& leader = peers.control[0];
  // The other pairs may take their time.
  const double patience_s = kStepSeconds * (4 + config.num_nodes * config.num_nodes);
  while (true) {
    WireOrder what;
    HADAL_RETURN_IF_ERROR(receive_value(leader, what, seconds_from_now(patience_s)));
    switch (what.order) {
      case Order::clock:
        HADAL_RETURN_IF_ERROR(
            send_value(leader, probes.wall_clock_us(), seconds_from_now(kStepSeconds)));
        continue;
      case Order::pair:
        HADAL_RETURN_IF_ERROR(obey_pair(config, peers, what));
        continue;
      case Order::ring:
        HADAL_RETURN_IF_ERROR(
            send_value(leader, run_ring(config, peers), seconds_from_now(kStepSeconds)));
        continue;
      case Order::finish:
        return what.low;
    }
    return Error{ErrorCode::data_loss, "node 0 sent an order that does not exist"};
  }
}

/// Megabytes a second that the kernel names for the interface towards the leader.
double rated_speed(const DoctorConfig& config, const DoctorProbes& probes) {
  const auto addresses = probes.resolve(config.leader_host);
  const auto source =
      addresses ? probes.source_address(addresses.value().front()) : Result<std::string>("");
  for (const NetworkInterface& interface : probes.interfaces()) {
    const auto& own = interface.addresses;
    if (source && std::find(own.begin(), own.end(), source.value()) != own.end()) {
      const auto text = read_line(probes, "sys/class/net/" + interface.name + "/speed");
      const double megabits = text ? std::strtod(text->c_str(), nullptr) : 0;
      return megabits > 0 ? megabits / 8 : 0;
    }
  }
  return 0;
}

}  // namespace

Result<Meeting> measure_links(const DoctorConfig& config, const DoctorProbes& probes) {
  HADAL_CHECK(config.num_nodes > 1, "one node has no links");
  if (config.node_rank == 0) {
    auto peers = meet_as_leader(config);
    if (!peers) {
      return peers.error();
    }
    Leader leader(config, probes, peers.value());
    Meeting meeting;
    meeting.report = leader.run();
    meeting.findings = judge_links(meeting.report, rated_speed(config, probes));
    leader.finish(count_failures(meeting.findings));
    return meeting;
  }
  const auto peers = meet_as_worker(config);
  if (!peers) {
    return peers.error();
  }
  const auto failures = obey(config, probes, peers.value());
  if (!failures) {
    return Error{ErrorCode::unavailable,
                 "node 0 was lost: " + failures.error().message +
                     "\nlook at the output of hadal doctor on node 0"};
  }
  Meeting meeting;
  if (failures.value() > 0) {
    meeting.findings.push_back(broken("links",
                                      std::to_string(failures.value()) + " failures on node 0",
                                      "follow the output of hadal doctor on node 0"));
  } else {
    meeting.findings.push_back(passed("links", "all measured, see node 0"));
  }
  return meeting;
}

}  // namespace hadal
