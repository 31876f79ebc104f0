// What all ops share, and the ops that are not built yet.
#include "cuda_ops.h"

#include <algorithm>

#include "cuda_check.h"

namespace hadal::cuda {

namespace {

/// Least workspace: what ops that cut their work to fit (moe_down) run well with.
constexpr int64_t kBaseWorkspaceBytes = int64_t{128} << 20;

[[noreturn]] void not_built(const char* op) {
  check_failed(__FILE__, __LINE__, op, "this op of the CUDA backend is not built");
}

}  // namespace

Status CudaOps::reserve(Backend& backend, const OpsLimits& /*limits*/) {
  auto memory = backend.allocate(kBaseWorkspaceBytes, MemoryKind::device);
  if (!memory) {
    return memory.error();
  }
  workspace_.set_memory(std::move(memory).value());
  return ok_status();
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

void CudaOps::begin_step(const BatchGeometry& /*geometry*/, Stream& /*stream*/) {}

void CudaOps::attention_prompt(const AttentionArgs& /*args*/, Stream& /*stream*/) {
  not_built("attention_prompt");
}

void CudaOps::attention_generated(const AttentionArgs& /*args*/, Stream& /*stream*/) {
  not_built("attention_generated");
}

}  // namespace hadal::cuda
