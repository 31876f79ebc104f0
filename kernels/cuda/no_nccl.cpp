// Stands in for NCCL in builds without it.
#include <hadal/comm/nccl_communicator.h>

namespace hadal {

namespace {

Error no_nccl() {
  return Error{ErrorCode::unsupported, "hadal was built without NCCL"};
}

}  // namespace

Result<NcclId> make_nccl_id() {
  return no_nccl();
}

Result<std::unique_ptr<NcclCommunicator>> make_nccl_communicator(const NcclCommConfig& /*config*/) {
  return no_nccl();
}

}  // namespace hadal
