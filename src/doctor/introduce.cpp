// One challenge each way. The caller's hello is part of what both prove, so that a proof made for
// one rank or purpose is none for another.
#include "introduce.h"

#include <algorithm>

namespace hadal {
namespace {

constexpr std::string_view kMagic = "hadaldr2";

struct WireChallenge {
  std::array<char, 8> magic{};
  Nonce nonce{};
};

struct WireProof {
  Nonce nonce{};
  Mac mac{};
};

/// What both ends have seen, and who speaks.
struct Transcript {
  std::array<char, 16> protocol{};
  std::array<char, 16> speaker{};
  Nonce listener_nonce{};
  Nonce caller_nonce{};
  WireHello hello{};
};

Mac prove_as(const GroupSecret& secret, const char* speaker, Transcript transcript) {
  write_text(transcript.protocol, "hadal doctor 2");
  write_text(transcript.speaker, speaker);
  return prove(secret, std::as_bytes(std::span(&transcript, 1)));
}

}  // namespace

Introduction receive_hello(const FileDescriptor& socket,
                           const GroupSecret& secret,
                           WireHello& hello,
                           TimePoint deadline) {
  Transcript transcript;
  transcript.listener_nonce = random_nonce();
  WireChallenge challenge;
  std::copy(kMagic.begin(), kMagic.end(), challenge.magic.begin());
  challenge.nonce = transcript.listener_nonce;
  WireProof proof;
  if (!send_value(socket, challenge, deadline) || !receive_value(socket, hello, deadline) ||
      !std::equal(kMagic.begin(), kMagic.end(), hello.magic.begin()) ||
      !receive_value(socket, proof, deadline)) {
    return Introduction::stranger;
  }
  transcript.caller_nonce = proof.nonce;
  transcript.hello = hello;
  const bool is_known = is_equal(proof.mac, prove_as(secret, "caller", transcript));
  // Zeros tell the caller that it was not believed.
  const Mac answer = is_known ? prove_as(secret, "listener", transcript) : Mac{};
  if (!send_value(socket, answer, deadline)) {
    return Introduction::stranger;
  }
  return is_known ? Introduction::known : Introduction::wrong_secret;
}

Status send_hello(const FileDescriptor& socket,
                  const GroupSecret& secret,
                  const WireHello& hello,
                  TimePoint deadline) {
  WireChallenge challenge;
  HADAL_RETURN_IF_ERROR(receive_value(socket, challenge, deadline));
  if (!std::equal(kMagic.begin(), kMagic.end(), challenge.magic.begin())) {
    return Error{ErrorCode::unavailable, "what answers there is no hadal doctor of this version"};
  }
  Transcript transcript;
  transcript.listener_nonce = challenge.nonce;
  transcript.caller_nonce = random_nonce();
  transcript.hello = hello;
  std::copy(kMagic.begin(), kMagic.end(), transcript.hello.magic.begin());
  HADAL_RETURN_IF_ERROR(send_value(socket, transcript.hello, deadline));
  HADAL_RETURN_IF_ERROR(
      send_value(socket,
                 WireProof{transcript.caller_nonce, prove_as(secret, "caller", transcript)},
                 deadline));
  Mac answer{};
  HADAL_RETURN_IF_ERROR(receive_value(socket, answer, deadline));
  if (!is_equal(answer, prove_as(secret, "listener", transcript))) {
    return Error{ErrorCode::unavailable, kOtherSecret};
  }
  return ok_status();
}

}  // namespace hadal
