// The data plane between ranks: sums, gathers and broadcasts of tensors, in stream order.
//
// Collectives must be called by all ranks in the same order with the same sizes. On the host a sum
// adds the ranks in one fixed order, whatever the transport: neighbours first, (0 + 1) + (2 + 3),
// then the pair sums, an odd one out moving up a level. So every rank gets the same bits, a run can
// be repeated, and a node of 2^k ranks is one branch of the tree: its partial sum is that of the
// whole. A failed peer or abort() makes every call return soon, with the data undefined;
// poll_error() then says why, and stays so.
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
  /// in: [world_size, N...] dense, f32, bf16 or i32; out: [N...] dense, this rank's part of the
  /// sum, of in's type. out may be this rank's part of in.
  virtual void reduce_scatter_sum(ConstTensorView in, TensorView out, Stream& stream) = 0;
  /// in: [N...] dense; out: [world_size, N...] dense, rank r's input at index r. in may be this
  /// rank's part of out.
  virtual void all_gather(ConstTensorView in, TensorView out, Stream& stream) = 0;
  /// Every rank ends with root's bytes. Dense.
  virtual void broadcast(TensorView inout, int32_t root, Stream& stream) = 0;
  /// ok, or the first failure (unavailable: a peer is lost; cancelled: aborted).
  virtual Status poll_error() = 0;
  /// Wakes every rank that waits in a collective of this group. Idempotent.
  virtual void abort() noexcept = 0;

  /// abort() with a reason, which poll_error() of every rank reports where the transport can carry
  /// it.
  virtual void fail(const Error& /*reason*/) noexcept { abort(); }
};

/// A world of one: every collective is the identity.
std::unique_ptr<Communicator> make_self_communicator();

/// Rank `rank` of a world whose other ranks do not exist, for measuring one rank's work: sums leave
/// this rank's part as it is, gathers repeat it, nothing is waited for. `backend`, whose memory it
/// works on, outlives it.
std::unique_ptr<Communicator> make_loopback_communicator(Backend& backend,
                                                         int32_t rank,
                                                         int32_t world_size);

/// world_size ranks as threads of one process over host memory; element r is rank r's.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int32_t world_size);

}  // namespace hadal
