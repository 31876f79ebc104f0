// What all ops share.
#include "cuda_ops.h"

#include <algorithm>

#include "attention.h"
#include "cuda_check.h"

namespace hadal::cuda {

namespace {

/// Least workspace: what ops that cut their work to fit (moe_down) run well with.
constexpr int64_t kBaseWorkspaceBytes = int64_t{128} << 20;

}  // namespace

Status CudaOps::reserve(Backend& backend, const OpsLimits& limits) {
  const int64_t size_bytes = std::max(
      {kBaseWorkspaceBytes, attention_workspace_bytes(limits), sample_workspace_bytes(limits)});
  auto memory = backend.allocate(size_bytes, MemoryKind::device);
  if (!memory) {
    return memory.error();
  }
  workspace_.set_memory(std::move(memory).value());
  return reserve_schedule(backend, limits);
}

cudaStream_t CudaOps::begin(const char* op, const Status& status, Stream& stream) {
  if (!status) {
    HADAL_CHECK(false, std::string(op) + ": " + status.error().message);
  }
  HADAL_CUDA_CHECK(cudaSetDevice(device_.index));
  workspace_.reset();
  return handle_of(stream);
}

void CudaOps::end(const char* op, cudaStream_t stream) {
  cudaError_t code = cudaPeekAtLastError();
  if (code == cudaSuccess && sync_every_op_) {
    code = cudaStreamSynchronize(stream);
  }
  HADAL_CHECK(code == cudaSuccess, std::string(op) + ": " + describe(code));
}

}  // namespace hadal::cuda
