// The CUDA form of Stream.
#pragma once

#include <hadal/backend/backend.h>

#include "cuda_check.h"

namespace hadal::cuda {

class CudaStream final : public Stream {
 public:
  explicit CudaStream(int32_t device_index) : device_index_(device_index) {
    HADAL_CUDA_CHECK(cudaSetDevice(device_index_));
    HADAL_CUDA_CHECK(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking));
  }

  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  ~CudaStream() override { (void)cudaStreamDestroy(handle_); }

  void synchronize() override { HADAL_CUDA_CHECK(cudaStreamSynchronize(handle_)); }

  cudaStream_t handle() const { return handle_; }

 private:
  int32_t device_index_;
  cudaStream_t handle_ = nullptr;
};

/// Of a stream that a CUDA backend made.
inline cudaStream_t handle_of(Stream& stream) {
  return static_cast<CudaStream&>(stream).handle();
}

}  // namespace hadal::cuda
