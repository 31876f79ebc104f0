// The CUDA forms of Event and Graph. While a stream is captured, an event becomes a node of the
// graph that records it anew at every launch.
#pragma once

#include <memory>

#include <hadal/backend/backend.h>

#include "cuda_check.h"
#include "cuda_stream.h"

namespace hadal::cuda {

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(int32_t device_index) {
    HADAL_CUDA_CHECK(cudaSetDevice(device_index));
    HADAL_CUDA_CHECK(cudaEventCreate(&handle_));
  }

  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  ~CudaEvent() override { (void)cudaEventDestroy(handle_); }

  void record(Stream& stream) override {
    const cudaStream_t handle = handle_of(stream);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    HADAL_CUDA_CHECK(cudaStreamIsCapturing(handle, &status));
    HADAL_CUDA_CHECK(cudaEventRecordWithFlags(handle_,
                                              handle,
                                              status == cudaStreamCaptureStatusActive
                                                  ? cudaEventRecordExternal
                                                  : cudaEventRecordDefault));
  }

  void synchronize() override { HADAL_CUDA_CHECK(cudaEventSynchronize(handle_)); }

  double seconds_since(const Event& earlier) const override {
    float milliseconds = 0.0F;
    HADAL_CUDA_CHECK(cudaEventElapsedTime(
        &milliseconds, static_cast<const CudaEvent&>(earlier).handle_, handle_));
    return static_cast<double>(milliseconds) * 1e-3;
  }

 private:
  cudaEvent_t handle_ = nullptr;
};

class CudaGraph final : public Graph {
 public:
  explicit CudaGraph(cudaGraphExec_t handle) : handle_(handle) {}

  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  ~CudaGraph() override { (void)cudaGraphExecDestroy(handle_); }

  void launch(Stream& stream) override {
    HADAL_CUDA_CHECK(cudaGraphLaunch(handle_, handle_of(stream)));
  }

 private:
  cudaGraphExec_t handle_;
};

/// See Backend::capture. Other threads may go on using CUDA meanwhile.
inline Result<std::unique_ptr<Graph>> capture_graph(Stream& stream,
                                                    const std::function<void()>& work) {
  const cudaStream_t handle = handle_of(stream);
  HADAL_RETURN_IF_ERROR(to_status(cudaStreamBeginCapture(handle, cudaStreamCaptureModeThreadLocal),
                                  "cannot capture a graph"));
  work();
  cudaGraph_t graph = nullptr;
  HADAL_RETURN_IF_ERROR(to_status(cudaStreamEndCapture(handle, &graph), "cannot capture a graph"));
  cudaGraphExec_t executable = nullptr;
  cudaError_t code = cudaGraphInstantiate(&executable, graph, 0);
  (void)cudaGraphDestroy(graph);
  if (code == cudaSuccess) {
    code = cudaGraphUpload(executable, handle);
  }
  if (code == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return Error{ErrorCode::resource_exhausted, "no device memory for a graph"};
  }
  HADAL_RETURN_IF_ERROR(to_status(code, "cannot make a graph"));
  return std::unique_ptr<Graph>(std::make_unique<CudaGraph>(executable));
}

}  // namespace hadal::cuda
