// GPUs as the driver shows them to this process.
#include <charconv>

#include "checks.h"

namespace hadal {
namespace {

/// "580.95.05" is 580; 0 when it is no version.
int32_t major_version(const std::string& version) {
  int32_t major = 0;
  std::from_chars(version.data(), version.data() + version.size(), major);
  return major;
}

std::string wanted_gpus(const DoctorConfig& config) {
  const int32_t last = config.first_gpu + config.ranks_per_node - 1;
  return config.ranks_per_node == 1
             ? "GPU " + std::to_string(config.first_gpu)
             : "GPUs " + std::to_string(config.first_gpu) + ".." + std::to_string(last);
}

void check_peers(const DoctorConfig& config, const GpuView& view, std::vector<Finding>& findings) {
  if (config.ranks_per_node == 1) {
    return;
  }
  const auto& off = config.nccl.p2p_disable;
  if (off && *off != "0") {
    findings.push_back(broken("GPU peers",
                              "NCCL_P2P_DISABLE is " + *off +
                                  ": GPUs of a node would talk through "
                                  "host memory",
                              "unset NCCL_P2P_DISABLE"));
    return;
  }
  const int32_t end = config.first_gpu + config.ranks_per_node;
  for (const GpuView::BrokenPair& pair : view.without_peer_access) {
    if (pair.first >= config.first_gpu && pair.second < end) {
      findings.push_back(broken("GPU peers",
                                "GPU " + std::to_string(pair.first) + " cannot reach GPU " +
                                    std::to_string(pair.second) + ": " + pair.reason,
                                "turn PCIe ACS off in the firmware, or check the fabric manager "
                                "(nvidia-smi topo -p2p r)"));
      return;
    }
  }
  findings.push_back(passed("GPU peers", wanted_gpus(config) + " reach each other"));
}

}  // namespace

void check_gpus(const DoctorConfig& config,
                const DoctorProbes& probes,
                std::vector<Finding>& findings) {
  if (!config.uses_gpus) {
    const GpuView view = config.shows_unused_gpus ? probes.gpus() : GpuView{};
    findings.push_back(
        noted("GPU",
              "not needed by the CPU backend" +
                  (view.gpus.empty()
                       ? std::string()
                       : "; driver " + view.driver_version + " shows " +
                             std::to_string(view.gpus.size()) + " x " + view.gpus.front().name)));
    return;
  }
  const GpuView view = probes.gpus();
  if (!view.library_error.empty()) {
    findings.push_back(broken(
        "GPU",
        "the NVIDIA driver cannot be asked: " + view.library_error,
        "give the container its GPUs (resources.limits nvidia.com/gpu, or docker --gpus all)"));
    return;
  }
  if (config.driver_needed > 0 && major_version(view.driver_version) < config.driver_needed) {
    findings.push_back(
        broken("GPU driver",
               view.driver_version + ", expected " + std::to_string(config.driver_needed) +
                   " or newer for " + config.toolkit,
               "use hadal's image for an older CUDA, or NVIDIA's forward-compatibility package "
               "(cuda-compat), or install driver " +
                   std::to_string(config.driver_needed)));
    return;
  }
  findings.push_back(passed("GPU driver", view.driver_version));
  const auto found = static_cast<int32_t>(view.gpus.size());
  if (found < config.first_gpu + config.ranks_per_node) {
    findings.push_back(broken("GPU",
                              std::to_string(found) + " visible, expected " + wanted_gpus(config),
                              "request " +
                                  std::to_string(config.first_gpu + config.ranks_per_node) +
                                  " GPUs for the container, or lower --tp to what " +
                                  std::to_string(config.first_gpu + found) + " hold"));
    return;
  }
  const Gpu& first = view.gpus[static_cast<size_t>(config.first_gpu)];
  findings.push_back(passed(
      "GPU", std::to_string(found) + " x " + first.name + ", " + size_text(first.memory_bytes)));
  check_peers(config, view, findings);
}

}  // namespace hadal
