// See probe.h.
#include "cuda_check.h"
#include "probe.h"

namespace hadal::cuda {

namespace {

__global__ void probe_kernel() {}

}  // namespace

Status probe_kernels() {
  cudaFuncAttributes attributes{};
  return to_status(cudaFuncGetAttributes(&attributes, probe_kernel), "cudaFuncGetAttributes");
}

}  // namespace hadal::cuda
