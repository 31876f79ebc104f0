// Stands in for the CUDA backend in builds without CUDA.
#include <hadal/backend/backend.h>

namespace hadal {

namespace {

Error no_cuda() {
  return Error{ErrorCode::unsupported, "this build has no CUDA (HADAL_CUDA is OFF)"};
}

}  // namespace

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendConfig& /*config*/) {
  return no_cuda();
}

Result<CudaDevice> find_cuda_device(int32_t /*device_index*/, KernelFamily /*kernel_family*/) {
  return no_cuda();
}

}  // namespace hadal
