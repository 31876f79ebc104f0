// Ranks on GPUs, over NCCL. Present in builds with CUDA and NCCL; elsewhere it says so.
#pragma once

#include <array>
#include <memory>

#include <hadal/backend/backend.h>
#include <hadal/base/result.h>
#include <hadal/comm/communicator.h>

namespace hadal {

/// What rank 0 makes and the rendezvous brings to every rank of one communicator.
using NcclId = std::array<std::byte, 128>;

/// unsupported in a build without NCCL, unavailable with NCCL's words.
Result<NcclId> make_nccl_id();

struct NcclCommConfig {
  NcclId id{};
  int32_t rank = 0;
  int32_t world_size = 1;
  int32_t device_index = 0;
  /// Longest wait for the other ranks: for all of them to come here, and for a connection that the
  /// first collectives of a size make.
  int32_t deadline_ms = 120000;
  /// NVLink multicast (`--enable-nccl-nvls`). Decided once in a process, before its first
  /// communicator.
  bool enable_nvls = false;
};

/// Collectives run in stream order and may be captured in CUDA graphs. Each rank's thread owns its
/// communicator but for poll_error, abort and fail (any thread). A thread of its own looks for
/// asynchronous errors ten times a second and aborts on one, so that work on the stream ends.
class NcclCommunicator : public Communicator {
 public:
  /// Zeroed memory that all ranks of the group allocate together, in the same order and sizes,
  /// registered as symmetric where the library has it: collectives on it need no copies. Owned by
  /// the communicator. resource_exhausted, or poll_error's.
  virtual Result<std::byte*> allocate_symmetric(int64_t size_bytes) = 0;
};

/// Waits for all ranks. invalid_argument for a rank outside, unavailable with NCCL's words,
/// unsupported in a build without NCCL.
Result<std::unique_ptr<NcclCommunicator>> make_nccl_communicator(const NcclCommConfig& config);

}  // namespace hadal
