// The paged latent cache of one rank, or the host tier of a node: every page holds kPageTokens
// tokens of all layers, so that a page moves between them as one block.
#pragma once

#include <hadal/backend/backend.h>
#include <hadal/plan/batch_plan.h>

namespace hadal {

class KvPool {
 public:
  /// resource_exhausted when the device has no room.
  static Result<KvPool> create(Backend& backend,
                               DType dtype,
                               int64_t num_pages,
                               int64_t num_layers,
                               int64_t width,
                               MemoryKind kind = MemoryKind::device) {
    const Shape shape{num_pages, num_layers, kPageTokens, width};
    auto memory = backend.allocate(shape.numel() * size_of(dtype), kind);
    if (!memory) {
      return memory.error();
    }
    KvPool pool;
    pool.memory_ = std::move(memory).value();
    pool.view_ = make_view(pool.memory_.data(),
                           dtype,
                           shape,
                           kind == MemoryKind::device ? backend.device() : Device{});
    return pool;
  }

  /// [num_pages, num_layers, 64, width], dense. Lives as long as the pool.
  TensorView view() const { return view_; }

 private:
  Buffer memory_;
  TensorView view_;
};

}  // namespace hadal
