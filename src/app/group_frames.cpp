// Payloads are read as hostile although their sender knows the secret: a version that differs in
// one field must not write beyond an array.
#include "group_frames.h"

#include <cstring>

#include <hadal/base/log.h>

namespace hadal {
namespace {

enum GroupFrame : GroupFrameType {
  kPlanFrame = kFirstUserFrame,
  kAckFrame,
  kPhaseFrame,
  kBlobFrame,
  kReadyFrame,
  kEndFrame,
  kStopFrame,
};

/// Fixed-width values in host order: all nodes run the same build on the same machine type, which
/// the handshake has compared.
template <class T>
std::span<const std::byte> raw(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

template <class T>
std::optional<T> read(std::span<const std::byte> payload) {
  if (payload.size() < sizeof(T)) {
    return std::nullopt;
  }
  T value;
  std::memcpy(&value, payload.data(), sizeof value);
  return value;
}

struct AckPayload {
  uint64_t rank = 0;
  uint64_t step_id = 0;
  uint64_t consumed = 0;
  uint64_t produced = 0;
};

struct PhasePayload {
  uint32_t rank = 0;
  uint32_t phase = 0;
};

struct BlobPayload {
  uint32_t rank = 0;
  uint32_t round = 0;
};

constexpr size_t kEndTextMax = 1000;
/// Steps in flight are never more; a first answer may be any of them.
constexpr uint64_t kAckWindow = 8;

}  // namespace

GroupCarrier::GroupCarrier(Board& board, int32_t node_rank)
    : board_(board),
      node_rank_(node_rank),
      is_leader_(node_rank == 0),
      told_phases_(static_cast<size_t>(board.shape().world_size), RankPhase::absent),
      told_blobs_(static_cast<size_t>(board.shape().world_size), 0) {}

GroupCarrier::~GroupCarrier() {
  finish(0);
}

void GroupCarrier::begin(std::unique_ptr<NodeGroup> group) {
  group_ = std::move(group);
  thread_ = is_leader_ ? std::jthread([this](const std::stop_token& stop) { carry_plans(stop); })
                       : std::jthread([this](const std::stop_token& stop) { carry_acks(stop); });
}

void GroupCarrier::finish(double linger_s) {
  thread_.request_stop();
  if (thread_.joinable()) {
    thread_.join();
  }
  if (group_ != nullptr) {
    if (is_leader_) {
      std::this_thread::sleep_for(std::chrono::duration<double>(linger_s));
    }
    group_->close(linger_s);
    group_.reset();
  }
}

/// To node 0, or from it to everyone.
void GroupCarrier::tell(GroupFrameType type, std::span<const std::byte> payload) {
  if (group_ == nullptr) {
    return;
  }
  if (is_leader_) {
    group_->broadcast(type, payload);
  } else {
    group_->send(0, type, payload);
  }
}

void GroupCarrier::carry_plans(const std::stop_token& stop) {
  std::vector<std::byte> plan;
  while (!stop.stop_requested() && board_.end_reason() == EndReason::none) {
    if (board_.read(
            Board::kSupervisorReader, plan, system_clock().now() + std::chrono::seconds(1))) {
      group_->broadcast(kPlanFrame, plan);
    }
  }
}

void GroupCarrier::carry_acks(const std::stop_token& stop) {
  const BoardShape& shape = board_.shape();
  std::vector<uint64_t> told(static_cast<size_t>(shape.num_local), 0);
  while (!stop.stop_requested() && board_.end_reason() == EndReason::none) {
    const uint32_t seen = board_.ack_count();
    for (int32_t i = 0; i < shape.num_local; ++i) {
      const int32_t rank = shape.first_rank + i;
      uint64_t& last = told[static_cast<size_t>(i)];
      const uint64_t acked = board_.last_acked(rank);
      last = last == 0 && acked > kAckWindow ? acked - kAckWindow : last;
      for (; last < acked; ++last) {
        if (const auto ack = board_.ack_of(rank, last + 1)) {
          group_->send(
              0,
              kAckFrame,
              raw(AckPayload{
                  static_cast<uint64_t>(rank), ack->step_id, ack->consumed, ack->produced}));
        }
      }
    }
    board_.wait_ack(seen, Board::kAnyRank, system_clock().now() + std::chrono::seconds(1));
  }
}

void GroupCarrier::tell_blob(int32_t rank, int32_t round, std::span<const std::byte> bytes) {
  const BlobPayload place{static_cast<uint32_t>(rank), static_cast<uint32_t>(round)};
  const auto head = raw(place);
  std::vector<std::byte> payload(head.begin(), head.end());
  payload.insert(payload.end(), bytes.begin(), bytes.end());
  tell(kBlobFrame, payload);
}

/// Node 0 passes on what all ranks show, the others what their own do.
void GroupCarrier::turn() {
  const BoardShape& shape = board_.shape();
  for (int32_t rank = 0; rank < shape.world_size && group_ != nullptr; ++rank) {
    if (!is_leader_ && !is_of_node(rank, node_rank_)) {
      continue;
    }
    const RankPhase phase = board_.phase(rank);
    RankPhase& told = told_phases_[static_cast<size_t>(rank)];
    if (phase != told && !is_leader_) {
      tell(kPhaseFrame,
           raw(PhasePayload{static_cast<uint32_t>(rank), static_cast<uint32_t>(phase)}));
      told = phase;
    }
    uint32_t& rounds = told_blobs_[static_cast<size_t>(rank)];
    for (int32_t round = 0; round < kBlobRounds; ++round) {
      const uint32_t bit = 1U << static_cast<uint32_t>(round);
      const auto blob = (rounds & bit) == 0 ? board_.blob(rank, round) : std::nullopt;
      if (blob) {
        tell_blob(rank, round, *blob);
        rounds |= bit;
      }
    }
  }
  if (!is_leader_ || board_.is_all_ready()) {
    return;
  }
  for (int32_t rank = 0; rank < shape.world_size; ++rank) {
    if (board_.phase(rank) != RankPhase::ready) {
      return;
    }
  }
  tell(kReadyFrame, {});
  board_.set_all_ready();
}

void GroupCarrier::send_end(const GroupEnd& end) {
  std::vector<std::byte> payload = {static_cast<std::byte>(end.reason)};
  const auto text = std::as_bytes(std::span(end.text.data(), end.text.size()));
  payload.insert(payload.end(), text.begin(), text.end());
  tell(kEndFrame, payload);
}

void GroupCarrier::send_stop_request() {
  tell(kStopFrame, {});
}

bool GroupCarrier::is_of_node(int32_t rank, int32_t node) const {
  return rank >= 0 && rank < board_.shape().world_size && rank / board_.shape().num_local == node;
}

void GroupCarrier::take_ack(int32_t node, std::span<const std::byte> payload) {
  const auto ack = read<AckPayload>(payload);
  if (ack && ack->rank < static_cast<uint64_t>(board_.shape().world_size) &&
      is_of_node(static_cast<int32_t>(ack->rank), node)) {
    board_.set_ack(static_cast<int32_t>(ack->rank), {ack->step_id, ack->consumed, ack->produced});
  }
}

void GroupCarrier::take_phase(int32_t node, std::span<const std::byte> payload) {
  const auto phase = read<PhasePayload>(payload);
  if (phase && phase->phase <= static_cast<uint32_t>(RankPhase::ready) &&
      phase->rank < static_cast<uint32_t>(board_.shape().world_size) &&
      is_of_node(static_cast<int32_t>(phase->rank), node)) {
    board_.set_phase(static_cast<int32_t>(phase->rank), static_cast<RankPhase>(phase->phase));
  }
}

void GroupCarrier::take_blob(int32_t node, std::span<const std::byte> payload) {
  const auto head = read<BlobPayload>(payload);
  if (!head || head->rank >= static_cast<uint32_t>(board_.shape().world_size) ||
      head->round >= static_cast<uint32_t>(kBlobRounds)) {
    return;
  }
  const auto bytes = payload.subspan(sizeof(BlobPayload));
  const auto rank = static_cast<int32_t>(head->rank);
  const auto round = static_cast<int32_t>(head->round);
  const bool is_own = is_of_node(rank, node_rank_);
  if (std::ssize(bytes) > kBlobBytesMax || is_own || (is_leader_ && !is_of_node(rank, node))) {
    return;
  }
  board_.set_blob(rank, round, bytes);
}

void GroupCarrier::take_end(std::span<const std::byte> payload) {
  if (payload.empty() || payload.size() > kEndTextMax + 1 ||
      static_cast<uint8_t>(payload[0]) > static_cast<uint8_t>(EndReason::bad_setup) ||
      payload[0] == std::byte{0}) {
    board_.set_end(EndReason::node_lost, "a node sent a damaged end");
    return;
  }
  board_.set_end(
      static_cast<EndReason>(payload[0]),
      std::string(reinterpret_cast<const char*>(payload.data()) + 1, payload.size() - 1));
}

void GroupCarrier::on_frame(int32_t node, GroupFrameType type, std::span<const std::byte> payload) {
  if (type == kEndFrame) {
    take_end(payload);
  } else if (type == kBlobFrame) {
    take_blob(node, payload);
  } else if (is_leader_ && type == kAckFrame) {
    take_ack(node, payload);
  } else if (is_leader_ && type == kPhaseFrame) {
    take_phase(node, payload);
  } else if (is_leader_ && type == kStopFrame) {
    stop_requested_.store(true);
  } else if (!is_leader_ && type == kReadyFrame) {
    board_.set_all_ready();
  } else if (!is_leader_ && type == kPlanFrame) {
    if (!board_.publish(payload)) {
      board_.set_end(EndReason::rank_hung,
                     "node " + std::to_string(node_rank_) + ": its ranks do not take their plans");
    }
  } else {
    log_warning("Frame of unknown type " + std::to_string(type) + " from node " +
                std::to_string(node));
  }
}

void GroupCarrier::on_lost(int32_t node, const std::string& why) {
  board_.set_end(EndReason::node_lost, "node " + std::to_string(node) + " is lost: " + why);
}

}  // namespace hadal
