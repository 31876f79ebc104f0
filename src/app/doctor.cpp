// `hadal doctor`, and its quick part at the start of serve: the configuration as doctor's own, and
// findings as lines.
#include <charconv>
#include <cstdio>
#include <string_view>

#include <hadal/doctor/doctor.h>

#include "commands.h"
#include "exit_code.h"
#include "group_setup.h"
#include "version.h"

namespace hadal {

namespace {

/// Descriptors beside connections: listeners, files, links to other ranks.
constexpr int64_t kOwnOpenFiles = 128;

/// The oldest driver branch that runs a toolkit of this major version (NVIDIA's CUDA toolkit
/// release notes, minor-version compatibility).
int32_t driver_for_toolkit(std::string_view toolkit) {
  int32_t major = 0;
  std::from_chars(toolkit.data(), toolkit.data() + toolkit.size(), major);
  return major >= 13 ? 580 : major == 12 ? 525 : major == 11 ? 450 : 0;
}

DoctorConfig doctor_config(const Config& config, const Environment& environment) {
  DoctorConfig result;
  result.num_nodes = config.layout.num_nodes;
  result.node_rank = config.layout.node_rank;
  result.ranks_per_node = config.layout.ranks_per_node();
  result.leader_host = config.layout.rendezvous_host;
  result.leader_port = config.layout.rendezvous_port;
  result.timeout_s = config.layout.rendezvous_timeout_s;
  result.build = std::string(kVersion) + " " + kCommit;
  result.listens.push_back({"--port", config.api.host, static_cast<uint16_t>(config.api.port)});
  if (config.api.admin_port) {
    result.listens.push_back(
        {"--admin-port", config.api.admin_host, static_cast<uint16_t>(*config.api.admin_port)});
  }
  result.open_files_needed = config.api.limits.connections_max + kOwnOpenFiles;
  result.first_gpu = config.runner.base_gpu_id;
  result.uses_gpus = kHasCuda && config.runner.device_choice != DeviceChoice::cpu;
  result.toolkit = "CUDA " + std::string(kCudaToolkit);
  result.driver_needed = driver_for_toolkit(kCudaToolkit);
  result.nccl = {environment.get("NCCL_SOCKET_IFNAME"),
                 environment.get("NCCL_IB_HCA"),
                 environment.get("NCCL_IB_GID_INDEX"),
                 environment.get("NCCL_IB_DISABLE"),
                 environment.get("NCCL_P2P_DISABLE")};
  return result;
}

int32_t print(const std::vector<Finding>& findings) {
  for (const Finding& finding : findings) {
    std::fputs(to_text(finding).c_str(), stdout);
  }
  std::fflush(stdout);
  return count_failures(findings);
}

int32_t run_meeting(const Config& all, DoctorConfig config, const DoctorProbes& probes) {
  auto secret = group_secret(all);
  if (!secret) {
    return print({{FindingLevel::failed,
                   "group secret",
                   secret.error().message,
                   "write the same random line into that file on every node"}});
  }
  config.secret = std::move(secret).value();
  std::printf("meeting the doctors of %d other node%s for at most %d s\n",
              config.num_nodes - 1,
              config.num_nodes == 2 ? "" : "s",
              config.timeout_s);
  std::fflush(stdout);
  const auto meeting = measure_links(config, probes);
  if (!meeting) {
    const std::string& text = meeting.error().message;
    const size_t end = text.find('\n');
    return print({{FindingLevel::failed,
                   "links",
                   text.substr(0, end),
                   end == std::string::npos ? "run hadal doctor again on every node"
                                            : text.substr(end + 1)}});
  }
  std::fputs(link_table(meeting.value().report).c_str(), stdout);
  return print(meeting.value().findings);
}

}  // namespace

int run_doctor(const Config& config, const Environment& environment) {
  DoctorConfig doctor = doctor_config(config, environment);
  doctor.shows_unused_gpus = true;
  const DoctorProbes probes = system_probes();
  int32_t failures = print(check_node(doctor, probes));
  const TransportChoice transport = choose_transport(doctor, probes);
  std::printf("transport in the node: %s\n", transport.in_node.c_str());
  if (doctor.num_nodes > 1) {
    std::printf("transport between nodes: %s\n", transport.between_nodes.c_str());
    failures += run_meeting(config, doctor, probes);
  }
  if (failures > 0) {
    std::printf("%d to change, from the top\n", failures);
    return kExitUnhealthy;
  }
  std::printf("sound\n");
  return kExitOk;
}

void warn_of_node_failures(const Config& config, const Environment& environment) {
  DoctorConfig doctor = doctor_config(config, environment);
  doctor.check_ports = false;  // serve holds them already, and says so when it cannot
  for (const Finding& finding : check_node(doctor, system_probes())) {
    if (finding.level == FindingLevel::failed) {
      log_warning("doctor: " + finding.check + ": " + finding.text +
                  "; to change: " + finding.remedy);
    }
  }
}

}  // namespace hadal
