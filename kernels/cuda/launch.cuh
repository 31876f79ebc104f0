// Launches whose kernels may start while the one before them drains (programmatic dependent launch,
// compute capability 9.0): its blocks become resident early and read what no kernel writes, such as
// weights, before they wait.
//
// Every kernel launched by launch_early executes wait_for_previous() in every block, before it
// reads what a kernel wrote and before it writes anything: it then ends after the one before it, so
// a chain of them keeps the stream's order. Older devices launch plainly and wait for nothing.
#pragma once

#include <atomic>
#include <utility>

#include <cuda_runtime_api.h>

#include "cuda_check.h"

namespace hadal::cuda {

/// What kernels before this one wrote is visible from here on.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// The next kernel's blocks may become resident once every block has come here (or ended).
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// Whether the current device starts kernels early.
inline bool starts_early() {
  constexpr int kDevices = 64;
  static std::atomic<signed char> known[kDevices] = {};  // 0 = not asked
  int device = 0;
  HADAL_CUDA_CHECK(cudaGetDevice(&device));
  if (device >= kDevices) {
    return false;
  }
  if (known[device] == 0) {
    int major = 0;
    HADAL_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    known[device] = major >= 9 ? 1 : -1;
  }
  return known[device] > 0;
}

template <class... Params, class... Args>
void launch_early(void (*kernel)(Params...),
                  dim3 grid,
                  dim3 block,
                  size_t shared_bytes,
                  cudaStream_t stream,
                  Args&&... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = starts_early() ? 1 : 0;
  HADAL_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, Params(std::forward<Args>(args))...));
}

}  // namespace hadal::cuda
