// HMAC-SHA256 over both nonces, the protocol versions, the node's rank and a word for the
// direction, so that no proof can be sent back or used for another node.
#include "handshake.h"

#include <algorithm>
#include <array>

#include "frame.h"
#include "wire.h"

namespace hadal {
namespace {

constexpr size_t kRefusalTextMax = 512;
constexpr size_t kFieldTextMax = 4096;
constexpr uint32_t kFieldsMax = 256;

template <class Array>
Array get_array(WireReader& in) {
  Array array{};
  std::ranges::copy(in.get_raw(array.size()), array.begin());
  return array;
}

/// What both sides know after the first two frames.
struct Transcript {
  uint32_t leader_protocol = 0;
  uint32_t node_protocol = 0;
  uint32_t node_rank = 0;
  Nonce leader_nonce{};
  Nonce node_nonce{};
};

Mac prove_direction(const GroupSecret& secret,
                    std::string_view direction,
                    const Transcript& transcript) {
  WireWriter text;
  text.put_text("hadal group");
  text.put_text(direction);
  text.put_u32(transcript.leader_protocol);
  text.put_u32(transcript.node_protocol);
  text.put_u32(transcript.node_rank);
  text.put_raw(transcript.leader_nonce);
  text.put_raw(transcript.node_nonce);
  return prove(secret, text.bytes());
}

WireWriter encode_identity(const Identity& identity) {
  WireWriter out;
  out.put_u32(static_cast<uint32_t>(identity.size()));
  for (const IdentityField& field : identity) {
    out.put_text(std::string_view(field.name).substr(0, kFieldTextMax));
    out.put_text(std::string_view(field.value).substr(0, kFieldTextMax));
  }
  return out;
}

std::optional<Identity> decode_identity(std::span<const std::byte> bytes) {
  WireReader in(bytes);
  const uint32_t count = in.get_u32();
  Identity identity;
  for (uint32_t i = 0; i < count && count <= kFieldsMax && in.ok(); ++i) {
    IdentityField field;
    field.name = in.get_text(kFieldTextMax);
    field.value = in.get_text(kFieldTextMax);
    identity.push_back(std::move(field));
  }
  if (!in.is_done() || count > kFieldsMax) {
    return std::nullopt;
  }
  return identity;
}

/// Text from a peer, fit for one line of a log.
std::string printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return text;
}

HandshakeFailure passing(const Error& error) {
  return {EndReason::node_lost, error.message, true};
}

HandshakeFailure refuse(int fd, EndReason reason, const std::string& text, TimePoint deadline) {
  WireWriter out;
  out.put_u8(static_cast<uint8_t>(reason));
  out.put_text(std::string_view(text).substr(0, kRefusalTextMax));
  (void)write_frame(fd, ControlFrame::refusal, out.bytes(), deadline);
  return {reason, text, false};
}

HandshakeFailure read_refusal(const Frame& frame) {
  WireReader in(frame.payload);
  const auto reason = static_cast<EndReason>(in.get_u8());
  const std::string text = printable(in.get_text(kRefusalTextMax));
  if (!in.is_done()) {
    return {EndReason::node_lost, "node 0 sent a damaged refusal", true};
  }
  const bool is_known = reason == EndReason::secret_refused || reason == EndReason::mismatch;
  return {is_known ? reason : EndReason::node_lost, "node 0 refused: " + text, !is_known};
}

bool is_type(const Frame& frame, ControlFrame type) {
  return frame.type == static_cast<uint16_t>(type);
}

std::string versions_text(uint32_t leader, uint32_t node) {
  return "protocol version: node 0 has " + std::to_string(leader) + ", the other node " +
         std::to_string(node);
}

}  // namespace

std::variant<int32_t, HandshakeFailure> admit_node(int fd,
                                                   const NodeGroupConfig& config,
                                                   TimePoint deadline) {
  Transcript transcript;
  transcript.leader_protocol = kGroupProtocol;
  transcript.leader_nonce = random_nonce();
  WireWriter challenge;
  challenge.put_u32(kGroupProtocol);
  challenge.put_raw(transcript.leader_nonce);
  if (auto sent = write_frame(fd, ControlFrame::challenge, challenge.bytes(), deadline); !sent) {
    return passing(sent.error());
  }
  const auto proof = read_frame(fd, kStrangerFrameBytesMax, deadline);
  if (!proof) {
    return passing(proof.error());
  }
  WireReader in(proof.value().payload);
  transcript.node_protocol = in.get_u32();
  transcript.node_rank = in.get_u32();
  transcript.node_nonce = get_array<Nonce>(in);
  const auto mac = get_array<Mac>(in);
  if (!is_type(proof.value(), ControlFrame::proof) || !in.ok()) {
    return HandshakeFailure{EndReason::node_lost, "the peer does not speak hadal's protocol", true};
  }
  if (transcript.node_protocol != kGroupProtocol) {
    return refuse(
        fd, EndReason::mismatch, versions_text(kGroupProtocol, transcript.node_protocol), deadline);
  }
  if (!in.is_done() ||
      !is_equal(mac, prove_direction(config.secret, "node to leader", transcript))) {
    return refuse(
        fd, EndReason::secret_refused, "the group secret is not the same on both nodes", deadline);
  }
  const Mac ours = prove_direction(config.secret, "leader to node", transcript);
  if (auto sent = write_frame(fd, ControlFrame::confirm, ours, deadline); !sent) {
    return passing(sent.error());
  }
  const auto shown = read_frame(fd, kIdentityFrameBytesMax, deadline);
  if (!shown) {
    return passing(shown.error());
  }
  const auto identity = decode_identity(shown.value().payload);
  if (!is_type(shown.value(), ControlFrame::identity) || !identity) {
    return HandshakeFailure{EndReason::node_lost, "the peer sent a damaged identity", true};
  }
  if (const auto difference = first_difference(config.identity, *identity)) {
    return refuse(fd, EndReason::mismatch, *difference, deadline);
  }
  if (transcript.node_rank < 1 || transcript.node_rank >= static_cast<uint32_t>(config.num_nodes)) {
    return refuse(fd,
                  EndReason::mismatch,
                  "--node-rank: expected 1.." + std::to_string(config.num_nodes - 1) + ", got " +
                      std::to_string(transcript.node_rank),
                  deadline);
  }
  const WireWriter own = encode_identity(config.identity);
  if (auto sent = write_frame(fd, ControlFrame::welcome, own.bytes(), deadline); !sent) {
    return passing(sent.error());
  }
  return static_cast<int32_t>(transcript.node_rank);
}

HandshakeFailure enter_group(int fd, const NodeGroupConfig& config, TimePoint deadline) {
  const auto challenge = read_frame(fd, kStrangerFrameBytesMax, deadline);
  if (!challenge) {
    return passing(challenge.error());
  }
  if (!is_type(challenge.value(), ControlFrame::challenge)) {
    return {EndReason::node_lost, "no hadal answers on node 0's port", true};
  }
  WireReader in(challenge.value().payload);
  Transcript transcript;
  transcript.leader_protocol = in.get_u32();
  transcript.leader_nonce = get_array<Nonce>(in);
  transcript.node_protocol = kGroupProtocol;
  transcript.node_rank = static_cast<uint32_t>(config.node_rank);
  transcript.node_nonce = random_nonce();
  if (!in.ok()) {
    return {EndReason::node_lost, "node 0 sent a damaged challenge", true};
  }
  if (transcript.leader_protocol != kGroupProtocol) {
    return {EndReason::mismatch, versions_text(transcript.leader_protocol, kGroupProtocol), false};
  }
  WireWriter proof;
  proof.put_u32(kGroupProtocol);
  proof.put_u32(transcript.node_rank);
  proof.put_raw(transcript.node_nonce);
  proof.put_raw(prove_direction(config.secret, "node to leader", transcript));
  if (auto sent = write_frame(fd, ControlFrame::proof, proof.bytes(), deadline); !sent) {
    return passing(sent.error());
  }
  const auto confirm = read_frame(fd, kStrangerFrameBytesMax, deadline);
  if (!confirm) {
    return passing(confirm.error());
  }
  if (is_type(confirm.value(), ControlFrame::refusal)) {
    return read_refusal(confirm.value());
  }
  WireReader reply(confirm.value().payload);
  const auto mac = get_array<Mac>(reply);
  if (!is_type(confirm.value(), ControlFrame::confirm) || !reply.is_done() ||
      !is_equal(mac, prove_direction(config.secret, "leader to node", transcript))) {
    return {EndReason::secret_refused, "node 0 does not know the group secret", false};
  }
  const WireWriter own = encode_identity(config.identity);
  if (auto sent = write_frame(fd, ControlFrame::identity, own.bytes(), deadline); !sent) {
    return passing(sent.error());
  }
  const auto answer = read_frame(fd, kIdentityFrameBytesMax, deadline);
  if (!answer) {
    return passing(answer.error());
  }
  if (is_type(answer.value(), ControlFrame::refusal)) {
    return read_refusal(answer.value());
  }
  const auto identity = decode_identity(answer.value().payload);
  if (!is_type(answer.value(), ControlFrame::welcome) || !identity) {
    return {EndReason::node_lost, "node 0 sent a damaged welcome", true};
  }
  if (const auto difference = first_difference(config.identity, *identity)) {
    return {EndReason::mismatch, *difference, false};
  }
  return {EndReason::none, {}, false};
}

}  // namespace hadal
