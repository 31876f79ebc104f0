// Ranks of a node have consecutive GPUs, from --base-gpu-id.
#include "device.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <thread>

#include "assembly.h"
#include "group_setup.h"

namespace hadal {

namespace {

std::string gigabytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f GB", static_cast<double>(bytes) / 1e9);
  return text;
}

/// Every rank of this node has a GPU that this build can use.
Status check_gpus(const Config& config) {
  const int32_t first = config.runner.base_gpu_id;
  const int32_t count = config.layout.ranks_per_node();
  for (int32_t index = first; index < first + count; ++index) {
    const auto device = find_cuda_device(index, config.runner.kernel_family);
    if (device) {
      continue;
    }
    std::string ranks = count == 1
                            ? "one rank needs GPU " + std::to_string(first)
                            : std::to_string(count) + " ranks need GPUs " + std::to_string(first) +
                                  ".." + std::to_string(first + count - 1);
    if (first > 0) {
      ranks += " (--base-gpu-id " + std::to_string(first) + ")";
    }
    return Error{device.error().code,
                 "--device cuda: " + ranks + "; GPU " + std::to_string(index) + ": " +
                     device.error().message};
  }
  return ok_status();
}

/// As CudaBackendConfig::e4m3_activations says.
void warn_without_fp8_units(Config& config) {
  const auto device = find_cuda_device(config.runner.base_gpu_id);
  if (config.runner.fp8_activations && device && device.value().compute_capability < 89) {
    config.warnings.push_back("--fp8-activations is ignored: " + device.value().name +
                              " has no FP8 units");
  }
}

}  // namespace

Status resolve_device(Config& config) {
  const RunnerOptions& runner = config.runner;
  if (config.layout.ranks_per_node() > 1 && !has_rank_processes(config)) {
    // Kernels loaded at first use can wait for a collective of another rank of this process that
    // waits for them. CUDA reads this when it is first called.
    ::setenv("CUDA_MODULE_LOADING", "EAGER", 0);
  }
  if (runner.null_step_us || runner.device_choice == DeviceChoice::cpu) {
    return set_device(config, DeviceType::cpu);
  }
  if (runner.device_choice == DeviceChoice::automatic) {
    const bool wants_cpu = runner.cpu_mode == CpuMode::exact;
    if (wants_cpu || !find_cuda_device(runner.base_gpu_id)) {
      return set_device(config, DeviceType::cpu);
    }
  } else if (const auto device = find_cuda_device(0); !device) {
    return Error{device.error().code, "--device cuda: " + device.error().message};
  }
  HADAL_RETURN_IF_ERROR(check_gpus(config));
  warn_without_fp8_units(config);
  return set_device(config, DeviceType::cuda);
}

std::string device_text(const Config& config) {
  if (config.runner.device == DeviceType::cpu) {
    const int32_t threads = config.runner.cpu_threads > 0
                                ? config.runner.cpu_threads
                                : static_cast<int32_t>(std::thread::hardware_concurrency());
    return "CPU, " + std::to_string(threads) + " threads, " + gigabytes(available_memory_bytes()) +
           " of memory free";
  }
  std::string text;
  for (int32_t i = 0; i < config.layout.ranks_per_node(); ++i) {
    const int32_t index = config.runner.base_gpu_id + i;
    const auto device = find_cuda_device(index, config.runner.kernel_family);
    if (device) {
      text += (text.empty() ? "GPU " : "; GPU ") + std::to_string(index) + " " +
              device.value().name + ", " + gigabytes(device.value().total_bytes) + ", kernels " +
              std::string(to_string(device.value().kernel_family));
    }
  }
  return text;
}

Result<int64_t> free_memory_bytes(const Config& config) {
  if (config.runner.device == DeviceType::cpu) {
    return available_memory_bytes() * config.layout.num_nodes;
  }
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int32_t i = 0; i < config.layout.ranks_per_node(); ++i) {
    const auto backend = make_cuda_backend({.device_index = config.runner.base_gpu_id + i});
    if (!backend) {
      return Error{backend.error().code, "--device cuda: " + backend.error().message};
    }
    least = std::min(least, backend.value()->memory_info().free_bytes);
  }
  return least;
}

}  // namespace hadal
