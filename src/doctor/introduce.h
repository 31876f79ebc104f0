// The first bytes of every connection between doctors. The caller proves the group's secret before
// anything it says is believed, so that a stranger on the port gets a nonce and nothing else; then
// the other end proves it.
#pragma once

#include <array>
#include <cstring>
#include <string>

#include <hadal/auth/group_secret.h>
#include <hadal/net/tcp.h>

namespace hadal {

/// Cut to what fits; always ends in a zero.
template <size_t N>
void write_text(std::array<char, N>& out, const std::string& text) {
  out.fill('\0');
  std::memcpy(out.data(), text.data(), std::min(text.size(), N - 1));
}

template <size_t N>
std::string read_text(const std::array<char, N>& in) {
  return std::string(in.data(), strnlen(in.data(), N));
}

template <class T>
Status send_value(const FileDescriptor& to, const T& value, TimePoint deadline) {
  static_assert(std::is_trivially_copyable_v<T>);
  return write_all(to.get(), std::as_bytes(std::span(&value, 1)), deadline);
}

template <class T>
Status receive_value(const FileDescriptor& from, T& value, TimePoint deadline) {
  static_assert(std::is_trivially_copyable_v<T>);
  return read_exactly(from.get(), std::as_writable_bytes(std::span(&value, 1)), deadline);
}

/// Little-endian, fixed size, no pointers; every field is checked by its reader.
struct WireHello {
  std::array<char, 8> magic{};
  uint32_t purpose = 0;  ///< kControl or kData
  uint32_t node_rank = 0;
  uint32_t num_nodes = 0;
  uint32_t ranks_per_node = 0;
  uint32_t listen_port = 0;
  std::array<char, 60> build{};
};

enum class Introduction : uint8_t {
  known,
  stranger,      ///< did not speak the protocol, or not in time
  wrong_secret,  ///< spoke it and could not prove the secret
};

/// The accepting end. `hello` is the caller's, proven when the result is `known`.
Introduction receive_hello(const FileDescriptor& socket,
                           const GroupSecret& secret,
                           WireHello& hello,
                           TimePoint deadline);

inline constexpr const char* kOtherSecret = "the group secret is not the same on both nodes";
/// The caller's end. Message kOtherSecret when either end could not prove it.
Status send_hello(const FileDescriptor& socket,
                  const GroupSecret& secret,
                  const WireHello& hello,
                  TimePoint deadline);

}  // namespace hadal
