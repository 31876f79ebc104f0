// GPUs and RDMA: what NCCL would pick from the same files and variables.
//
// GID types are those of the kernel's /sys/class/infiniband/*/ports/*/gid_attrs/types; on RoCE
// only "RoCE v2" is routed, and a GID of version 1 makes every connection time out.
#include <algorithm>
#include <charconv>

#include "checks.h"

namespace hadal {
namespace {

constexpr std::string_view kEmptyGid = "0000:0000:0000:0000:0000:0000:0000:0000";
constexpr int32_t kGidsMax = 256;

bool is_set(const std::optional<std::string>& variable) {
  return variable && *variable != "0";
}

std::optional<int32_t> parse_number(std::string_view text) {
  int32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

std::vector<RdmaPort::Gid> read_gids(const DoctorProbes& probes, const std::string& port_path) {
  std::vector<RdmaPort::Gid> gids;
  for (int32_t index = 0; index < kGidsMax; ++index) {
    const std::string number = std::to_string(index);
    const auto gid = read_line(probes, port_path + "/gids/" + number);
    if (!gid) {
      break;
    }
    if (*gid != kEmptyGid) {
      gids.push_back(
          {index, read_line(probes, port_path + "/gid_attrs/types/" + number).value_or("")});
    }
  }
  return gids;
}

/// The GID index that carries traffic between subnets; nullopt when the port has none.
std::optional<int32_t> routable_gid(const RdmaPort& port) {
  std::optional<int32_t> found;
  for (const RdmaPort::Gid& gid : port.gids) {
    if (gid.type == "RoCE v2") {
      found = gid.index;  // the last one is the IPv4-mapped address where both exist
    }
  }
  return found;
}

std::string port_name(const RdmaPort& port) {
  return port.device + ":" + std::to_string(port.port);
}

/// Of one RoCE port; nothing to check on InfiniBand, whose GID 0 is right.
std::optional<Finding> check_gid(const DoctorConfig& config, const RdmaPort& port) {
  const std::optional<int32_t> routable = routable_gid(port);
  if (!routable) {
    return broken("RDMA GID",
                  port_name(port) + " has no GID of type 'RoCE v2'",
                  "give the port's network interface an IP address in this pod or on this host "
                  "(RoCE v2 GIDs follow it)");
  }
  if (!config.nccl.ib_gid_index) {
    return std::nullopt;
  }
  const std::string& text = *config.nccl.ib_gid_index;
  const std::optional<int32_t> index = parse_number(text);
  const auto gid = std::find_if(port.gids.begin(), port.gids.end(), [&](const auto& candidate) {
    return index && candidate.index == *index;
  });
  if (index && *index == -1) {  // NCCL's "choose"
    return std::nullopt;
  }
  if (gid == port.gids.end() || gid->type != "RoCE v2") {
    return broken("RDMA GID",
                  "NCCL_IB_GID_INDEX is " + text + ", which on " + port_name(port) + " is " +
                      (gid == port.gids.end() ? std::string("empty") : "'" + gid->type + "'") +
                      ", expected 'RoCE v2'",
                  "set NCCL_IB_GID_INDEX=" + std::to_string(*routable));
  }
  return std::nullopt;
}

void check_hca_names(const DoctorConfig& config,
                     const std::vector<RdmaPort>& ports,
                     std::vector<Finding>& findings) {
  std::string names;
  for (const RdmaPort& port : ports) {
    names += (names.empty() ? "" : ",") + port.device;
  }
  findings.push_back(
      broken("RDMA device",
             "NCCL_IB_HCA is '" + *config.nccl.ib_hca + "', but this node has only " + names,
             "set NCCL_IB_HCA=" + names));
}

}  // namespace

std::vector<RdmaPort> read_rdma_ports(const DoctorProbes& probes) {
  const std::string base = "sys/class/infiniband";
  std::vector<RdmaPort> ports;
  for (const std::string& device : list_names(probes, base)) {
    for (const std::string& number : list_names(probes, base + "/" + device + "/ports")) {
      const std::string path = base + "/" + device + "/ports/" + number;
      RdmaPort port;
      port.device = device;
      port.port = parse_number(number).value_or(0);
      const std::string state = read_line(probes, path + "/state").value_or("");  // "4: ACTIVE"
      const size_t space = state.find(' ');
      port.state = space == std::string::npos ? state : state.substr(space + 1);
      port.rate = read_line(probes, path + "/rate").value_or("");
      port.is_ethernet = read_line(probes, path + "/link_layer").value_or("") == "Ethernet";
      port.gids = read_gids(probes, path);
      ports.push_back(std::move(port));
    }
  }
  return ports;
}

std::vector<RdmaPort> chosen_rdma_ports(const DoctorConfig& config, const DoctorProbes& probes) {
  std::vector<RdmaPort> ports = read_rdma_ports(probes);
  if (config.nccl.ib_hca) {
    std::erase_if(ports, [&](const RdmaPort& port) {
      return !nccl_list_takes(*config.nccl.ib_hca, port.device, port.port);
    });
  }
  return ports;
}

bool wants_rdma(const DoctorConfig& config) {
  return config.uses_gpus && config.num_nodes > 1 && !is_set(config.nccl.ib_disable);
}

void check_rdma(const DoctorConfig& config,
                const DoctorProbes& probes,
                std::vector<Finding>& findings) {
  if (!wants_rdma(config)) {
    const bool is_off = config.uses_gpus && config.num_nodes > 1;
    findings.push_back(noted("RDMA device", is_off ? "NCCL_IB_DISABLE is set" : "not needed"));
    return;
  }
  const std::vector<RdmaPort> all = read_rdma_ports(probes);
  if (all.empty()) {
    findings.push_back(broken(
        "RDMA device",
        "none under /sys/class/infiniband: tensors would go over TCP, several times slower",
        "request the RDMA resource for the container (rdma/ib: 8 of the device plugin), or set "
        "NCCL_IB_DISABLE=1 if TCP is meant"));
    return;
  }
  std::vector<RdmaPort> ports = chosen_rdma_ports(config, probes);
  if (ports.empty()) {
    check_hca_names(config, all, findings);
    return;
  }
  const auto devices = list_names(probes, "dev/infiniband");
  if (std::none_of(devices.begin(), devices.end(), [](const std::string& name) {
        return name.starts_with("uverbs");
      })) {
    findings.push_back(
        broken("RDMA device",
               all.front().device + " is in /sys, but /dev/infiniband has no uverbs device",
               "pass /dev/infiniband into the container (the RDMA device plugin's resource does)"));
    return;
  }
  std::string active;
  for (const RdmaPort& port : ports) {
    if (port.is_active()) {
      active += (active.empty() ? "" : ", ") + port_name(port) + " " + port.rate;
    }
  }
  if (active.empty()) {
    findings.push_back(
        broken("RDMA device",
               port_name(ports.front()) + " is " + ports.front().state + ", expected ACTIVE",
               "bring the port up (cable, switch, subnet manager; see ibstat)"));
    return;
  }
  findings.push_back(passed("RDMA device", active));
  for (const RdmaPort& port : ports) {
    if (port.is_active() && port.is_ethernet) {
      if (const auto finding = check_gid(config, port)) {
        findings.push_back(*finding);
        return;
      }
    }
  }
}

TransportChoice choose_transport(const DoctorConfig& config, const DoctorProbes& probes) {
  TransportChoice choice;
  choice.in_node = config.ranks_per_node == 1 ? "one rank, nothing to send"
                   : !config.uses_gpus        ? "shared memory"
                   : is_set(config.nccl.p2p_disable)
                       ? "NCCL over shared memory (NCCL_P2P_DISABLE is set)"
                       : "NCCL over NVLink or PCIe peer access";
  if (config.num_nodes == 1) {
    return choice;
  }
  std::string ports;
  bool is_ethernet = false;
  if (wants_rdma(config)) {
    for (const RdmaPort& port : chosen_rdma_ports(config, probes)) {
      if (port.is_active()) {
        ports += (ports.empty() ? "" : ",") + port_name(port);
        is_ethernet = is_ethernet || port.is_ethernet;
      }
    }
  }
  choice.is_rdma = !ports.empty();
  if (choice.is_rdma) {
    choice.between_nodes =
        std::string("NCCL over ") + (is_ethernet ? "RoCE " : "InfiniBand ") + ports;
  } else {
    choice.between_nodes = config.uses_gpus ? "NCCL over TCP" : "TCP";
  }
  return choice;
}

}  // namespace hadal
