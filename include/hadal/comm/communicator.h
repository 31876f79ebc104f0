// The data plane between ranks: sums, gathers and broadcasts of tensors, in stream order.
//
// Collectives must be called by all ranks in the same order with the same sizes. Sums add the ranks
// in rank order, so every rank gets the same bits and a run can be repeated. A failed peer or
// abort() makes every call return at once, with the data undefined; poll_error() then says why, and
// stays so.
#pragma once

#include <memory>
#include <vector>

#include <hadal/backend/backend.h>
#include <hadal/base/result.h>
#include <hadal/tensor/tensor.h>

namespace hadal {

/// One rank's end. Used by the thread that runs the steps, except poll_error and abort (any
/// thread).
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int32_t rank() const = 0;
  virtual int32_t world_size() const = 0;
  /// inout: [M, N] f32, bf16 (summed in float32, rounded once) or i32, dense rows; every rank ends
  /// with the sum.
  virtual void all_reduce_sum(TensorView inout, Stream& stream) = 0;
  /// in: [N...] dense; out: [world_size, N...] dense, rank r's input at index r.
  virtual void all_gather(ConstTensorView in, TensorView out, Stream& stream) = 0;
  /// Every rank ends with root's bytes. Dense.
  virtual void broadcast(TensorView inout, int32_t root, Stream& stream) = 0;
  /// ok, or the first failure (unavailable: a peer is lost; cancelled: aborted).
  virtual Status poll_error() = 0;
  /// Wakes every rank that waits in a collective of this group. Idempotent.
  virtual void abort() noexcept = 0;
};

/// A world of one: every collective is the identity.
std::unique_ptr<Communicator> make_self_communicator();

/// world_size ranks as threads of one process over host memory; element r is rank r's.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int32_t world_size);

}  // namespace hadal
