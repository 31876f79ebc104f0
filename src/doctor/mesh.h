// How the doctors of all nodes meet: every worker calls the leader, learns where the others are,
// and opens one stream to each node of lower rank. On each connection both ends prove the group's
// secret first (introduce.h).
#pragma once

#include <array>

#include <hadal/doctor/doctor.h>
#include <hadal/net/tcp.h>

#include "introduce.h"

namespace hadal {

using WireText = std::array<char, 160>;

struct WireNode {
  std::array<char, 60> address{};
  uint32_t port = 0;
};

/// One node's connections, by node rank; its own entry is closed, and so is a link that failed.
struct Peers {
  std::vector<FileDescriptor> control;  ///< leader: to each worker; worker: control[0] alone
  std::vector<FileDescriptor> data;
  std::vector<std::string> names;
  std::vector<int32_t> missing;                       ///< leader
  std::vector<std::vector<std::string>> link_errors;  ///< leader: [high][low], empty = works
  std::vector<std::string> refusals;                  ///< leader
  std::vector<std::string> wrong_secrets;             ///< leader: who came with another secret
  int32_t strangers_dropped = 0;
};

/// Node 0. Missing nodes are in the result, not an error.
Result<Peers> meet_as_leader(const DoctorConfig& config);

/// Any other node.
Result<Peers> meet_as_worker(const DoctorConfig& config);

}  // namespace hadal
