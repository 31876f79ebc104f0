// From CUDA's return codes to hadal's errors: a Status where the caller can act (start-up, memory),
// an abort that names the op where it cannot (a launch of ours was wrong, or the device is lost).
#pragma once

#include <string>

#include <cuda_runtime_api.h>

#include <hadal/base/check.h>
#include <hadal/base/result.h>

namespace hadal::cuda {

/// "cudaErrorInvalidValue: invalid argument".
inline std::string describe(cudaError_t code) {
  return std::string(cudaGetErrorName(code)) + ": " + cudaGetErrorString(code);
}

/// unavailable with `what` and CUDA's own words.
inline Status to_status(cudaError_t code, const std::string& what) {
  if (code == cudaSuccess) {
    return ok_status();
  }
  (void)cudaGetLastError();
  return Error{ErrorCode::unavailable, what + ": " + describe(code)};
}

}  // namespace hadal::cuda

/// Aborts when a CUDA call fails.
#define HADAL_CUDA_CHECK(call)                                                               \
  do {                                                                                       \
    const cudaError_t hadal_cuda_code_ = (call);                                             \
    HADAL_CHECK(hadal_cuda_code_ == cudaSuccess, ::hadal::cuda::describe(hadal_cuda_code_)); \
  } while (false)
