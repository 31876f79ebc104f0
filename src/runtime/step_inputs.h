// A plan as the flat arrays that ops read: built on the host in one block, copied to the device at
// once.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <hadal/backend/backend.h>
#include <hadal/model/model.h>
#include <hadal/ops/sample.h>
#include <hadal/plan/batch_plan.h>

#include "graph_shapes.h"
#include "slot_table.h"

namespace hadal {

/// A device block and two host copies that take turns. Arrays are appended, uploaded together, and
/// seen at equal offsets. The stream may be a whole upload behind the host.
class StagingBlock {
 public:
  /// `size_bytes` for each.
  static Result<StagingBlock> create(Backend& backend, int64_t size_bytes);

  /// Begins anew in the other host copy; waits while the upload from it is not done.
  void clear();

  /// Reserves a dense device array and returns the host copy to fill. Too much is our mistake.
  template <class T>
  std::span<T> add(DType dtype, const Shape& shape, ConstTensorView& device_view) {
    auto* host = reinterpret_cast<T*>(
        add_bytes(shape.numel() * static_cast<int64_t>(sizeof(T)), dtype, shape, device_view));
    return {host, static_cast<size_t>(shape.numel())};
  }

  void upload(Backend& backend, Stream& stream);

 private:
  std::byte* add_bytes(int64_t size_bytes,
                       DType dtype,
                       const Shape& shape,
                       ConstTensorView& device_view);

  struct HostCopy {
    Buffer memory;
    std::unique_ptr<Event> uploaded;
  };

  HostCopy host_[2];
  size_t turn_ = 0;
  Buffer device_;
  Device device_id_;
  int64_t used_bytes_ = 0;
};

/// Which logits are computed, and what is asked of each: entry i reads the logits of token rows[i].
struct SamplePlan {
  struct Ask {
    size_t row = 0;          ///< index into the plan's rows
    bool is_prompt = false;  ///< about a given token, not a draw
  };

  std::vector<Ask> asks;
  ConstTensorView token_rows;  ///< [N] i32: indices into M
  ConstTensorView entries;     ///< [N * sizeof(SampleEntry)] u8
  ConstTensorView bias_tokens;
  ConstTensorView bias_values;
  std::vector<int32_t> num_top;  ///< of each entry
  int32_t max_top = 0;
};

/// Everything a step reads, in device memory after upload.
struct StagedStep {
  BatchGeometry geometry;
  StepInputs inputs;            ///< inputs.geometry is set by the user of this struct
  ConstTensorView page_copies;  ///< [N, 3] i32; absent without copies
  SamplePlan sampling;
};

struct StageArgs {
  const BatchPlan& plan;
  const SlotTable& slots;
  const SamplerState& sampler;
  int32_t vocab_size = 0;
  int32_t logit_rows_max = 0;  ///< logits are made in pieces of this many rows
  /// The plan is one of decodes and padded to this: sizes and places of `geometry` and `inputs`
  /// then depend on the shape alone.
  std::optional<GraphShape> shape = std::nullopt;
};

/// Lays the plan out in `block` (cleared first). The plan's rows have been checked; tokens are
/// checked here: data_loss.
Result<StagedStep> stage_step(const StageArgs& args, StagingBlock& block);

/// Bytes that the largest step can need.
int64_t staging_bytes(int64_t max_step_tokens, int64_t max_slots, int64_t max_context_tokens);

}  // namespace hadal
