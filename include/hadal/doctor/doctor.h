// What can be wrong with a node and its links, found before any weight is read.
//
// A check is a pure function of DoctorConfig and DoctorProbes; a finding that failed says in one
// line what is wrong and in another the one thing to change. check_node() looks at this node alone
// and takes milliseconds; measure_links() meets the doctors of the other nodes over TCP.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <hadal/auth/group_secret.h>
#include <hadal/base/result.h>
#include <hadal/doctor/probes.h>

namespace hadal {

enum class FindingLevel : uint8_t {
  ok,
  note,    ///< worth knowing; nothing has to change
  failed,  ///< serving would fail or crawl; `remedy` says what to change
};

struct Finding {
  FindingLevel level = FindingLevel::ok;
  std::string check;   ///< "memlock", "GPU driver", ...
  std::string text;    ///< what was found; for a failure also what was expected
  std::string remedy;  ///< only for failures
};

/// NCCL's environment variables as this process has them; nullopt = not set.
struct NcclVariables {
  std::optional<std::string> socket_ifname;  ///< NCCL_SOCKET_IFNAME
  std::optional<std::string> ib_hca;         ///< NCCL_IB_HCA
  std::optional<std::string> ib_gid_index;   ///< NCCL_IB_GID_INDEX
  std::optional<std::string> ib_disable;     ///< NCCL_IB_DISABLE
  std::optional<std::string> p2p_disable;    ///< NCCL_P2P_DISABLE
};

struct DoctorConfig {
  int32_t num_nodes = 1;
  int32_t node_rank = 0;
  int32_t ranks_per_node = 1;
  std::string leader_host;  ///< empty on one node
  uint16_t leader_port = 0;
  int32_t timeout_s = 600;  ///< how long nodes wait for each other
  /// What the doctors prove to each other; empty only where they meet on a loopback address.
  GroupSecret secret;
  std::string build;  ///< version and commit; all nodes must run the same

  /// Ports that serving will open on this node; checked for being free when check_ports is set.
  bool check_ports = true;
  std::vector<Endpoint> listens;
  int64_t open_files_needed = 1024;

  bool uses_gpus = false;
  bool shows_unused_gpus = false;  ///< without uses_gpus: ask the driver all the same
  int32_t first_gpu = 0;
  int32_t driver_needed = 0;  ///< major version, 0 = any
  std::string toolkit;        ///< "CUDA 13.0", for messages
  NcclVariables nccl;
};

/// How tensors will travel, in words, and whether it is RDMA.
struct TransportChoice {
  std::string in_node;
  std::string between_nodes;  ///< empty on one node
  bool is_rdma = false;
};

TransportChoice choose_transport(const DoctorConfig& config, const DoctorProbes& probes);

/// Every check of this node, in the order in which to repair.
std::vector<Finding> check_node(const DoctorConfig& config, const DoctorProbes& probes);

/// Two nodes, measured over one TCP stream while nothing else was sent.
struct LinkMeasurement {
  int32_t low = 0;   ///< the lower node rank
  int32_t high = 0;  ///< the higher one
  double round_trip_us = 0;
  double low_to_high_mb_per_s = 0;
  double high_to_low_mb_per_s = 0;
  std::string error;  ///< not empty: the link did not work
};

struct ClockOffset {
  int32_t node = 0;
  double offset_ms = 0;       ///< the node's wall clock minus the leader's
  double uncertainty_ms = 0;  ///< half the best round trip
};

/// What the leader knows after all nodes have met.
struct LinkReport {
  std::vector<int32_t> missing_nodes;  ///< did not come within the timeout
  std::vector<std::string> refusals;   ///< nodes that came with other flags or another build
  std::vector<LinkMeasurement> links;
  std::vector<ClockOffset> clocks;
  double all_reduce_ms = 0;                ///< over all nodes, ring
  int64_t all_reduce_bytes = 0;            ///< per node; 0 = not run
  std::string all_reduce_error;            ///< a wrong sum, or a node that stopped
  std::vector<std::string> wrong_secrets;  ///< hosts that came with another group secret
  int32_t strangers_dropped = 0;           ///< connections that did not speak the protocol
  std::vector<std::string> names;          ///< address of each node, for messages
};

/// Failures among the measurements: missing nodes, broken and slow links, clocks that differ.
/// `rated_mb_per_s`: speed of the leader's interface as the kernel tells it, 0 = unknown.
std::vector<Finding> judge_links(const LinkReport& report, double rated_mb_per_s);

/// Table of links for people.
std::string link_table(const LinkReport& report);

/// Result of the meeting on one node.
struct Meeting {
  LinkReport report;              ///< on the leader
  std::vector<Finding> findings;  ///< the leader's verdict; on a worker its summary
};

/// Meets the doctors of all other nodes at the leader's address and measures every pair alone,
/// then all together. Nobody who does not prove `secret` takes part. Blocks for at most `timeout_s`
/// until all are there, then some seconds. num_nodes > 1. Errors (unavailable) only when this node
/// could not take part at all: the text says why, with the remedy after a newline.
Result<Meeting> measure_links(const DoctorConfig& config, const DoctorProbes& probes);

/// "ok     memlock       unlimited" and, under a failure, "       change: ...".
std::string to_text(const Finding& finding);

int32_t count_failures(const std::vector<Finding>& findings);

}  // namespace hadal
