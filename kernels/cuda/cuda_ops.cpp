// What all ops share.
#include "cuda_ops.h"

#include <algorithm>

#include "attention.h"
#include "cuda_check.h"

namespace hadal::cuda {

namespace {

/// Least workspace: what ops that cut their work to fit (moe_down) run well with.
constexpr int64_t kBaseWorkspaceBytes = int64_t{256} << 20;

int64_t workspace_bytes(const OpsLimits& limits) {
  return std::max(
      {kBaseWorkspaceBytes, attention_workspace_bytes(limits), sample_workspace_bytes(limits)});
}

}  // namespace

int64_t CudaOps::reserve_bytes(const OpsLimits& limits) {
  return workspace_bytes(limits) + schedule_bytes(limits.max_step_tokens, limits.max_rows);
}

Status CudaOps::reserve(Backend& backend, const OpsLimits& limits) {
  auto memory = backend.allocate(workspace_bytes(limits), MemoryKind::device);
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
