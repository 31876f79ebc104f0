// Seeded workloads: the arrivals of well-known kinds of traffic, the same for the same seed.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include <hadal/base/result.h>
#include <hadal/sim/trace.h>

namespace hadal::sim {

struct WorkloadConfig {
  std::string_view kind;
  uint64_t seed = 1;
  double duration_s = 600.0;    ///< of arrivals
  double requests_per_s = 0.0;  ///< conversations, for kinds that have them; 0 = the kind's own
  double scale = 1.0;           ///< of every prompt's and answer's length
};

struct WorkloadKind {
  std::string_view name;
  std::string_view help;
};

/// sharegpt, long-document, readers, agents, fan-out, bursts, group-hour, cyclic-scan, two-tenants.
std::span<const WorkloadKind> workload_kinds();

/// not_found lists the kinds.
Result<Trace> make_workload(const WorkloadConfig& config);

}  // namespace hadal::sim
