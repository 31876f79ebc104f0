// Stands in for the CUDA backend in builds without CUDA.
#include <hadal/backend/backend.h>

namespace hadal {

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendConfig& /*config*/) {
  return Error{ErrorCode::unsupported, "hadal was built without CUDA (HADAL_CUDA is OFF)"};
}

}  // namespace hadal
