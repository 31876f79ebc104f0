// The place of the CUDA backend. It is built when HADAL_CUDA is ON and says so while it has no ops.
#include <hadal/backend/backend.h>

namespace hadal {

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendConfig& /*config*/) {
#ifdef HADAL_CUDA
  return Error{ErrorCode::unsupported, "this build of hadal has a CUDA backend without ops"};
#else
  return Error{ErrorCode::unsupported, "hadal was built without CUDA (HADAL_CUDA is OFF)"};
#endif
}

}  // namespace hadal
