// NVML by dlopen, so that a build without CUDA can ask, too. The constants are NVML's own ABI
// (nvml.h): version-suffixed symbols keep their signature for ever.
#include "gpu_view.h"

#include <array>
#include <memory>

#include <dlfcn.h>

namespace hadal {
namespace {

constexpr int kSuccess = 0;
constexpr int kPeerRead = 0;  // NVML_P2P_CAPS_INDEX_READ
constexpr int kPeerOk = 0;    // NVML_P2P_STATUS_OK
constexpr unsigned kGpusMax = 64;

using Device = void*;

struct MemoryInfo {
  unsigned long long total = 0;
  unsigned long long free = 0;
  unsigned long long used = 0;
};

const char* peer_status(int status) {
  switch (status) {
    case 1:
      return "chipset not supported";
    case 2:
      return "topology not supported";
    case 3:
      return "disabled by a registry key";
    case 4:
      return "not supported";
    default:
      return "unknown";
  }
}

struct Unload {
  void operator()(void* library) const { dlclose(library); }
};

using Library = std::unique_ptr<void, Unload>;

/// The functions; all present or the library is of no use.
struct Nvml {
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error)(int) = nullptr;
  int (*driver)(char*, unsigned) = nullptr;
  int (*count)(unsigned*) = nullptr;
  int (*handle)(unsigned, Device*) = nullptr;
  int (*name)(Device, char*, unsigned) = nullptr;
  int (*memory)(Device, MemoryInfo*) = nullptr;
  int (*peer)(Device, Device, int, int*) = nullptr;

  template <class F>
  static bool bind(void* library, const char* symbol, F& function) {
    function = reinterpret_cast<F>(dlsym(library, symbol));
    return function != nullptr;
  }

  bool bind_all(void* library) {
    return bind(library, "nvmlInit_v2", init) && bind(library, "nvmlShutdown", shutdown) &&
           bind(library, "nvmlErrorString", error) &&
           bind(library, "nvmlSystemGetDriverVersion", driver) &&
           bind(library, "nvmlDeviceGetCount_v2", count) &&
           bind(library, "nvmlDeviceGetHandleByIndex_v2", handle) &&
           bind(library, "nvmlDeviceGetName", name) &&
           bind(library, "nvmlDeviceGetMemoryInfo", memory) &&
           bind(library, "nvmlDeviceGetP2PStatus", peer);
  }
};

void read_peers(const Nvml& nvml, const std::vector<Device>& devices, GpuView& view) {
  for (size_t a = 0; a < devices.size(); ++a) {
    for (size_t b = a + 1; b < devices.size(); ++b) {
      int status = kPeerOk;
      if (nvml.peer(devices[a], devices[b], kPeerRead, &status) == kSuccess && status != kPeerOk) {
        view.without_peer_access.push_back(
            {static_cast<int32_t>(a), static_cast<int32_t>(b), peer_status(status)});
      }
    }
  }
}

void read_devices(const Nvml& nvml, GpuView& view) {
  std::array<char, 128> text{};
  if (nvml.driver(text.data(), text.size()) == kSuccess) {
    view.driver_version = text.data();
  }
  unsigned count = 0;
  if (nvml.count(&count) != kSuccess) {
    return;
  }
  std::vector<Device> devices;
  for (unsigned i = 0; i < count && i < kGpusMax; ++i) {
    Device device = nullptr;
    if (nvml.handle(i, &device) != kSuccess) {
      continue;
    }
    Gpu gpu;
    MemoryInfo memory;
    if (nvml.name(device, text.data(), text.size()) == kSuccess) {
      gpu.name = text.data();
    }
    if (nvml.memory(device, &memory) == kSuccess) {
      gpu.memory_bytes = static_cast<int64_t>(memory.total);
    }
    devices.push_back(device);
    view.gpus.push_back(std::move(gpu));
  }
  read_peers(nvml, devices, view);
}

}  // namespace

GpuView read_gpus() {
  GpuView view;
  const Library library(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL));
  if (!library) {
    view.library_error = "libnvidia-ml.so.1 is not there";
    return view;
  }
  Nvml nvml;
  if (!nvml.bind_all(library.get())) {
    view.library_error = "libnvidia-ml.so.1 lacks a function that driver 450 has";
    return view;
  }
  if (const int code = nvml.init(); code != kSuccess) {
    view.library_error = nvml.error(code);
    return view;
  }
  read_devices(nvml, view);
  nvml.shutdown();
  return view;
}

}  // namespace hadal
