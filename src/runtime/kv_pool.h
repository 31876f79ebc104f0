// The paged latent cache of one rank, or the host tier of a node: every page holds kPageTokens
// tokens of all layers, so that a page moves between them as one block.
#pragma once

#include <hadal/backend/backend.h>
#include <hadal/ops/kv_record.h>
#include <hadal/plan/batch_plan.h>

namespace hadal {

class KvPool {
 public:
  /// resource_exhausted when the device has no room.
  static Result<KvPool> create(Backend& backend,
                               const KvRecord& record,
                               int64_t num_pages,
                               int64_t num_layers,
                               MemoryKind kind = MemoryKind::device) {
    const Shape shape{num_pages, num_layers, kPageTokens, record.elements()};
    auto memory = backend.allocate(shape.numel() * size_of(record.dtype), kind);
    if (!memory) {
      return memory.error();
    }
    KvPool pool;
    pool.memory_ = std::move(memory).value();
    pool.view_ = make_view(pool.memory_.data(),
                           record.dtype,
                           shape,
                           kind == MemoryKind::device ? backend.device() : Device{});
    return pool;
  }

  /// [num_pages, num_layers, 64, record], dense. Lives as long as the pool.
  TensorView view() const { return view_; }

 private:
  Buffer memory_;
  TensorView view_;
};

}  // namespace hadal
