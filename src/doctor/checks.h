// What the check files share: how a finding is written, and small reads below the probes' root.
#pragma once

#include <hadal/doctor/doctor.h>

namespace hadal {

Finding passed(std::string check, std::string text);
Finding noted(std::string check, std::string text);
Finding broken(std::string check, std::string text, std::string remedy);

inline const std::string kSecretRemedy = std::string("mount the same secret at ") +
                                         kDefaultSecretFile +
                                         " on every node, or give --group-secret-file";

/// First line of a small file below the root, without its end; nullopt when it cannot be read.
std::optional<std::string> read_line(const DoctorProbes& probes, const std::string& path);

/// Names in a directory below the root, sorted; empty when there is none.
std::vector<std::string> list_names(const DoctorProbes& probes, const std::string& path);

/// "12.5 GiB".
std::string size_text(int64_t bytes);

/// Devices, ports and GIDs under /sys/class/infiniband.
struct RdmaPort {
  std::string device;  ///< "mlx5_0"
  int32_t port = 1;
  std::string state;  ///< "ACTIVE"
  std::string rate;   ///< "400 Gb/sec (4X NDR)"
  bool is_ethernet = false;

  struct Gid {
    int32_t index = 0;
    std::string type;  ///< "RoCE v2", "IB/RoCE v1"
  };

  std::vector<Gid> gids;  ///< those that are set

  bool is_active() const { return state == "ACTIVE"; }
};

std::vector<RdmaPort> read_rdma_ports(const DoctorProbes& probes);

/// Ports that NCCL would use: all, or those that NCCL_IB_HCA names.
std::vector<RdmaPort> chosen_rdma_ports(const DoctorConfig& config, const DoctorProbes& probes);

/// True when nodes talk over RDMA if the machine lets them.
bool wants_rdma(const DoctorConfig& config);

void check_rdma(const DoctorConfig& config,
                const DoctorProbes& probes,
                std::vector<Finding>& findings);

void check_gpus(const DoctorConfig& config,
                const DoctorProbes& probes,
                std::vector<Finding>& findings);

/// Whether an NCCL list ("eth", "=eth0,eth1", "^docker,lo", "mlx5_0:1") takes this name. `port` is
/// compared where an entry has one; -1 = names without ports.
bool nccl_list_takes(const std::string& list, const std::string& name, int32_t port);

}  // namespace hadal
