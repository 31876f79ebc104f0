// The paged latent cache of one rank: every page holds kPageTokens tokens of all layers.
#pragma once

#include <hadal/backend/backend.h>
#include <hadal/plan/batch_plan.h>

namespace hadal {

class KvPool {
 public:
  /// resource_exhausted when the device has no room.
  static Result<KvPool> create(
      Backend& backend, DType dtype, int64_t num_pages, int64_t num_layers, int64_t width) {
    const Shape shape{num_pages, num_layers, kPageTokens, width};
    auto memory = backend.allocate(shape.numel() * size_of(dtype), MemoryKind::device);
    if (!memory) {
      return memory.error();
    }
    KvPool pool;
    pool.memory_ = std::move(memory).value();
    pool.view_ = make_view(pool.memory_.data(), dtype, shape, backend.device());
    return pool;
  }

  /// [num_pages, num_layers, 64, width], dense. Lives as long as the pool.
  TensorView view() const { return view_; }

 private:
  Buffer memory_;
  TensorView view_;
};

}  // namespace hadal
