// How the doctors of all nodes meet: every worker calls the leader, learns where the others are,
// and opens one stream to each node of lower rank.
#pragma once

#include <array>
#include <cstring>

#include <hadal/doctor/doctor.h>
#include <hadal/net/tcp.h>

namespace hadal {

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

using WireText = std::array<char, 160>;

struct WireNode {
  std::array<char, 60> address{};
  uint32_t port = 0;
};

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

/// One node's connections, by node rank; its own entry is closed, and so is a link that failed.
struct Peers {
  std::vector<FileDescriptor> control;  ///< leader: to each worker; worker: control[0] alone
  std::vector<FileDescriptor> data;
  std::vector<std::string> names;
  std::vector<int32_t> missing;                       ///< leader
  std::vector<std::vector<std::string>> link_errors;  ///< leader: [high][low], empty = works
  std::vector<std::string> refusals;                  ///< leader
  int32_t strangers_dropped = 0;
};

/// Node 0. Missing nodes are in the result, not an error.
Result<Peers> meet_as_leader(const DoctorConfig& config);

/// Any other node.
Result<Peers> meet_as_worker(const DoctorConfig& config);

}  // namespace hadal
