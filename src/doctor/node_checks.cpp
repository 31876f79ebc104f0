// The node's own checks, in the order in which to repair: a name before a route, a driver before
// peer access.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <fstream>

#include "checks.h"

namespace hadal {
namespace {

constexpr int64_t kShmBytesPerRank = int64_t{64} << 20;  // NCCL and plan rings, with room
constexpr int64_t kShmBytesMin = int64_t{1} << 30;
constexpr int kCapabilityIpcLock = 14;

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address == "::1";
}

/// CAP_IPC_LOCK lifts the memlock limit.
bool may_lock_memory(const DoctorProbes& probes) {
  std::ifstream status(probes.root / "proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with("CapEff:")) {
      const size_t begin = line.find_first_not_of(" \t", 7);
      uint64_t bits = 0;
      if (begin != std::string::npos) {
        std::from_chars(line.data() + begin, line.data() + line.size(), bits, 16);
      }
      return (bits >> kCapabilityIpcLock & 1U) != 0;
    }
  }
  return false;
}

/// The leader's address once its name resolves.
std::optional<std::string> check_name(const DoctorConfig& config,
                                      const DoctorProbes& probes,
                                      std::vector<Finding>& findings) {
  const auto addresses = probes.resolve(config.leader_host);
  if (!addresses) {
    findings.push_back(
        broken("name",
               "'" + config.leader_host + "' does not resolve: " + addresses.error().message,
               "give --dist-init-addr node 0's address, or publish its name (a headless Service "
               "with publishNotReadyAddresses: true)"));
    return std::nullopt;
  }
  const std::string address = addresses.value().front();
  if (config.node_rank == 0 && !is_loopback(address)) {
    for (const NetworkInterface& interface : probes.interfaces()) {
      for (const std::string& own : interface.addresses) {
        if (std::find(addresses.value().begin(), addresses.value().end(), own) !=
            addresses.value().end()) {
          findings.push_back(passed("name", config.leader_host + " is " + own + ", this node"));
          return own;
        }
      }
    }
    findings.push_back(
        broken("name",
               "'" + config.leader_host + "' is " + address +
                   ", expected an address of this node, which is node 0",
               "point --dist-init-addr at node 0 itself: a pod name of a headless Service, not a "
               "Service with a ClusterIP"));
    return std::nullopt;
  }
  findings.push_back(passed("name", config.leader_host + " is " + address));
  return address;
}

void check_interface(const DoctorConfig& config,
                     const DoctorProbes& probes,
                     const std::string& address,
                     std::vector<Finding>& findings) {
  const auto source = probes.source_address(address);
  if (!source) {
    findings.push_back(broken("interface",
                              "no route to node 0 at " + address + ": " + source.error().message,
                              "attach this node to node 0's network (ip route get " + address +
                                  " must name an interface)"));
    return;
  }
  std::string name;
  for (const NetworkInterface& interface : probes.interfaces()) {
    const auto& own = interface.addresses;
    if (std::find(own.begin(), own.end(), source.value()) != own.end()) {
      name = interface.name;
    }
  }
  const std::string route = "node 0 is reached through " + name + " (" + source.value() + ")";
  const auto& wanted = config.nccl.socket_ifname;
  if (wanted && !nccl_list_takes(*wanted, name, -1)) {
    findings.push_back(broken("interface",
                              "NCCL_SOCKET_IFNAME is '" + *wanted + "', but " + route,
                              "set NCCL_SOCKET_IFNAME=" + name));
    return;
  }
  const auto mtu = read_line(probes, "sys/class/net/" + name + "/mtu");
  const auto speed = read_line(probes, "sys/class/net/" + name + "/speed");
  findings.push_back(passed("interface",
                            route + (mtu ? ", MTU " + *mtu : "") +
                                (speed && *speed != "-1" ? ", " + *speed + " Mb/s" : "")));
}

void check_ports(const DoctorConfig& config,
                 const DoctorProbes& probes,
                 std::vector<Finding>& findings) {
  std::vector<Endpoint> endpoints = config.listens;
  if (config.num_nodes > 1 && config.node_rank == 0) {
    endpoints.push_back({"--dist-init-addr", "", config.leader_port});
  }
  std::string free;
  for (const Endpoint& endpoint : endpoints) {
    if (endpoint.port == 0) {  // any
      continue;
    }
    if (Status bound = probes.try_listen(endpoint); !bound) {
      findings.push_back(broken(
          "port",
          endpoint.what + ": cannot listen on " +
              (endpoint.host.empty() ? "" : endpoint.host + ":") + std::to_string(endpoint.port) +
              ": " + bound.error().message,
          "end the process that holds it (ss -ltnp 'sport = :" + std::to_string(endpoint.port) +
              "'), or give another " + endpoint.what));
    } else {
      free += (free.empty() ? "" : ", ") + std::to_string(endpoint.port);
    }
  }
  if (!free.empty()) {
    findings.push_back(passed("port", "free: " + free));
  }
}

void check_memlock(const DoctorConfig& config,
                   const DoctorProbes& probes,
                   std::vector<Finding>& findings) {
  const int64_t limit = probes.memlock_bytes();
  if (limit < 0 || may_lock_memory(probes)) {
    findings.push_back(passed("memlock", "unlimited"));
  } else if (wants_rdma(config)) {
    findings.push_back(
        broken("memlock",
               size_text(limit) + ", expected unlimited: RDMA pins every buffer",
               "add the capability IPC_LOCK to the container, or start it with --ulimit memlock=-1 "
               "(LimitMEMLOCK=infinity in containerd's unit)"));
  } else {
    findings.push_back(noted("memlock", size_text(limit) + "; enough without RDMA"));
  }
}

void check_shm(const DoctorConfig& config,
               const DoctorProbes& probes,
               std::vector<Finding>& findings) {
  const int64_t needed = config.ranks_per_node > 1
                             ? std::max(kShmBytesMin, kShmBytesPerRank * config.ranks_per_node)
                             : 0;
  const auto space = probes.space(probes.root / "dev/shm");
  const std::string remedy =
      "mount an emptyDir with medium: Memory and sizeLimit: 16Gi at /dev/shm, or start the "
      "container with --shm-size=16g";
  if (!space) {
    if (needed > 0) {
      findings.push_back(
          broken("/dev/shm", "missing, expected at least " + size_text(needed), remedy));
    } else {
      findings.push_back(noted("/dev/shm", "missing; one rank does without"));
    }
  } else if (space->free_bytes < needed) {
    findings.push_back(broken(
        "/dev/shm",
        size_text(space->free_bytes) + " free of " + size_text(space->size_bytes) +
            ", expected at least " + size_text(needed) + " for " +
            std::to_string(config.ranks_per_node) + " ranks",
        space->size_bytes < needed ? remedy : "remove what ended processes left in /dev/shm"));
  } else {
    findings.push_back(passed("/dev/shm", size_text(space->free_bytes) + " free"));
  }
}

void check_open_files(const DoctorConfig& config,
                      const DoctorProbes& probes,
                      std::vector<Finding>& findings) {
  const int64_t limit = probes.open_files();
  if (limit >= 0 && limit < config.open_files_needed) {
    findings.push_back(
        broken("open files",
               std::to_string(limit) + ", expected at least " +
                   std::to_string(config.open_files_needed) + " for --max-connections",
               "raise the hard limit (ulimit -Hn " + std::to_string(config.open_files_needed) +
                   "), or lower --max-connections"));
    return;
  }
  findings.push_back(passed("open files", limit < 0 ? "unlimited" : std::to_string(limit)));
}

void check_clock(const DoctorProbes& probes, std::vector<Finding>& findings) {
  const std::optional<bool> is_synchronised = probes.clock_is_synchronised();
  if (!is_synchronised) {
    findings.push_back(noted("clock", "the kernel does not tell whether it is synchronised"));
  } else if (*is_synchronised) {
    findings.push_back(passed("clock", "synchronised"));
  } else {
    findings.push_back(noted("clock", "not synchronised by NTP or PTP; logs may disagree"));
  }
}

}  // namespace

Finding passed(std::string check, std::string text) {
  return {FindingLevel::ok, std::move(check), std::move(text), {}};
}

Finding noted(std::string check, std::string text) {
  return {FindingLevel::note, std::move(check), std::move(text), {}};
}

Finding broken(std::string check, std::string text, std::string remedy) {
  return {FindingLevel::failed, std::move(check), std::move(text), std::move(remedy)};
}

std::optional<std::string> read_line(const DoctorProbes& probes, const std::string& path) {
  std::ifstream file(probes.root / path);
  std::string line;
  if (!file || !std::getline(file, line)) {
    return std::nullopt;
  }
  return line;
}

std::vector<std::string> list_names(const DoctorProbes& probes, const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator entry(probes.root / path, error);
  for (; !error && entry != std::filesystem::directory_iterator{}; entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string size_text(int64_t bytes) {
  char text[32];
  const auto amount = static_cast<double>(bytes);
  if (bytes >= int64_t{1} << 30) {
    std::snprintf(text, sizeof text, "%.1f GiB", amount / (1 << 30));
  } else {
    std::snprintf(text, sizeof text, "%.3g MiB", amount / (1 << 20));
  }
  return text;
}

bool nccl_list_takes(const std::string& list, const std::string& name, int32_t port) {
  std::string_view rest = list;
  const bool is_exclusion = rest.starts_with("^");
  rest.remove_prefix(is_exclusion ? 1 : 0);
  const bool is_exact = rest.starts_with("=");
  rest.remove_prefix(is_exact ? 1 : 0);
  bool found = false;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    const std::string_view entry = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
    const size_t colon = port < 0 ? std::string_view::npos : entry.find(':');
    const std::string_view wanted = entry.substr(0, colon);
    const bool port_fits =
        colon == std::string_view::npos || entry.substr(colon + 1) == std::to_string(port);
    const bool name_fits = is_exact ? name == wanted : name.starts_with(wanted);
    found = found || (!wanted.empty() && name_fits && port_fits);
  }
  return found != is_exclusion;
}

std::vector<Finding> check_node(const DoctorConfig& config, const DoctorProbes& probes) {
  std::vector<Finding> findings;
  if (config.num_nodes > 1) {
    if (const auto address = check_name(config, probes, findings)) {
      check_interface(config, probes, *address, findings);
    }
  }
  if (config.check_ports) {
    check_ports(config, probes, findings);
  }
  check_clock(probes, findings);
  check_open_files(config, probes, findings);
  check_memlock(config, probes, findings);
  check_shm(config, probes, findings);
  check_gpus(config, probes, findings);
  check_rdma(config, probes, findings);
  return findings;
}

std::string to_text(const Finding& finding) {
  const char* level = finding.level == FindingLevel::ok     ? "ok"
                      : finding.level == FindingLevel::note ? "note"
                                                            : "FAILED";
  char head[64];
  std::snprintf(head, sizeof head, "%-7s %-12s ", level, finding.check.c_str());
  std::string text = head + finding.text + "\n";
  if (!finding.remedy.empty()) {
    text += "        change:      " + finding.remedy + "\n";
  }
  return text;
}

int32_t count_failures(const std::vector<Finding>& findings) {
  return static_cast<int32_t>(
      std::count_if(findings.begin(), findings.end(), [](const Finding& finding) {
        return finding.level == FindingLevel::failed;
      }));
}

}  // namespace hadal
