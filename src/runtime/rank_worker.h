// One rank: its backend, shard, cache and sampling state, and the execution of plans on them, one
// at a time. It has no policy: what it does follows from the plan alone.
#pragma once

#include <memory>

#include <hadal/backend/backend.h>
#include <hadal/comm/communicator.h>
#include <hadal/model/model.h>
#include <hadal/runtime/runner.h>

#include "kv_pool.h"
#include "slot_table.h"
#include "step_inputs.h"

namespace hadal {

/// What a rank needs to get ready for steps, the same on all ranks.
struct RankSizes {
  RunnerLimits limits;
  DType kv_dtype = DType::bf16;
  /// The host tier of all ranks of this process, or empty; outlives the workers.
  TensorView host_pages = {};
};

/// Logits are computed in pieces of this many rows, so that scoring a long prompt needs no more
/// memory than a batch of decodes.
inline constexpr int64_t kLogitRowsMax = 128;

/// Work space beside the model's arena, for the largest step: logits and sampling results.
int64_t sampling_bytes(int64_t vocab_per_rank, int64_t max_step_tokens);
/// Sampling state of all slots (penalty counts, prompt marks, last tokens).
int64_t sampler_state_bytes(int64_t vocab_size, int64_t max_slots);

class RankWorker {
 public:
  RankWorker(std::unique_ptr<Backend> backend, std::unique_ptr<Communicator> comm);
  ~RankWorker();
  RankWorker(const RankWorker&) = delete;
  RankWorker& operator=(const RankWorker&) = delete;

  Backend& backend() { return *backend_; }

  Communicator& comm() { return *comm_; }

  const Model& model() const { return *model_; }

  /// [num_pages, num_layers, 64, kv_width]; between steps.
  TensorView kv_pages() const { return pool_.view(); }

  /// args.backend is this worker's. Call before prepare.
  Status load(const ModelLoadArgs& args);
  /// Allocates everything that steps need. resource_exhausted says what did not fit.
  Status prepare(const RankSizes& sizes);

  /// Runs one step to its end. Every rank samples; every rank's result is the same. Errors are
  /// fatal for the group: data_loss for a plan that breaks the limits, or the communicator's
  /// failure.
  Result<StepResult> run(const BatchPlan& plan);

 private:
  Status check_plan(const BatchPlan& plan) const;
  Status apply_updates(const BatchPlan& plan);
  void move_pages(const BatchPlan& plan);
  void reset_sampler(SlotId slot, const SlotReset& reset);
  struct SampleOutputs;
  void sample(const StagedStep& step, const ForwardResult& forward, SampleOutputs& out);
  StepResult collect(const BatchPlan& plan, const SamplePlan& sampling, const SampleOutputs& out);
  ForwardContext context();

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Communicator> comm_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Model> model_;
  RankSizes sizes_;
  std::unique_ptr<SlotTable> slots_;
  KvPool pool_;
  Buffer arena_memory_;
  StepArena arena_;
  StagingBlock staging_;
  StagingBlock history_;
  Buffer sampler_memory_;
  SamplerState sampler_;
  Buffer results_;  ///< pinned host copy of a step's sampling results
  uint64_t last_step_id_ = 0;
  bool has_step_ = false;
};

}  // namespace hadal
