// Chooses the kernels for the processor that runs.
#include <hadal/backend/backend.h>

#include "kernel_table.h"

namespace hadal::cpu {

const KernelTable& best_kernels(CpuIsa max_isa) {
#if defined(__x86_64__)
  if (max_isa >= CpuIsa::avx512 && avx512_kernels() != nullptr &&
      __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
      __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0) {
    return *avx512_kernels();
  }
  if (max_isa >= CpuIsa::avx2 && avx2_kernels() != nullptr && __builtin_cpu_supports("avx2") != 0 &&
      __builtin_cpu_supports("fma") != 0 && __builtin_cpu_supports("f16c") != 0) {
    return *avx2_kernels();
  }
#endif
  return generic_kernels();
}

}  // namespace hadal::cpu
