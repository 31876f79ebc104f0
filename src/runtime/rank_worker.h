// One rank: its backend, shard, cache and sampling state, and the execution of plans on them, in
// order. It has no policy: what it does follows from the plan alone.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <utility>

#include <hadal/backend/backend.h>
#include <hadal/comm/communicator.h>
#include <hadal/model/model.h>
#include <hadal/runtime/graph_config.h>
#include <hadal/runtime/runner.h>

#include "graph_shapes.h"
#include "kv_pool.h"
#include "slot_table.h"
#include "step_inputs.h"
#include "step_results.h"

namespace hadal {

/// What a rank needs to get ready for steps, the same on all ranks.
struct RankSizes {
  RunnerLimits limits;
  DType kv_dtype = DType::bf16;
  /// The host tier of all ranks of this process, or empty; outlives the workers.
  TensorView host_pages = {};
  GraphConfig graphs = {};
};

/// Logits are computed in pieces of this many rows, so that scoring a long prompt needs no more
/// memory than a batch of decodes.
inline constexpr int64_t kLogitRowsMax = 128;

/// Steps of one rank that may be submitted and not collected.
inline constexpr size_t kStepsInFlightMost = 2;

/// Work space beside the model's arena, for the largest step: logits and sampling results.
int64_t sampling_bytes(int64_t vocab_per_rank, int64_t max_step_tokens);
/// Sampling state of all slots (penalty counts, prompt marks, last tokens).
int64_t sampler_state_bytes(int64_t vocab_size, int64_t max_slots);

/// How a step's forward pass is given to the device.
enum class StepMode : uint8_t {
  automatic,    ///< as a graph when there is one for the plan
  plain,        ///< op by op
  fresh_graph,  ///< a plan of decodes as a graph of its exact size, captured for this step
};

class RankWorker {
 public:
  RankWorker(std::unique_ptr<Backend> backend, std::unique_ptr<Communicator> comm);
  ~RankWorker();
  RankWorker(const RankWorker&) = delete;
  RankWorker& operator=(const RankWorker&) = delete;

  Backend& backend() { return *backend_; }

  Communicator& comm() { return *comm_; }

  const Model& model() const { return *model_; }

  /// [num_pages, num_layers, 64, record]; between steps.
  TensorView kv_pages() const { return pool_.view(); }

  /// args.backend is this worker's. Call before prepare.
  Status load(const ModelLoadArgs& args);
  /// Allocates everything that steps need. resource_exhausted says what did not fit.
  Status prepare(const RankSizes& sizes);
  /// After prepare, once: captures the graphs that sizes.graphs asks for, all ranks in step.
  /// `progress` is called after each with how many are done and how many there are.
  Result<CaptureReport> capture_graphs(const std::function<void(size_t, size_t)>& progress = {});

  /// Gives one step to the device and returns without waiting for it (the CPU backend is done by
  /// then). At most kStepsInFlightMost steps may be uncollected. Every rank samples; every rank's
  /// result is the same. Errors are fatal for the group: data_loss for a plan that breaks the
  /// limits, or the communicator's failure.
  Status submit(const BatchPlan& plan, StepMode mode = StepMode::automatic);
  /// Waits for the oldest submitted step. May be another thread than submit's.
  Result<StepResult> collect();
  /// Both.
  Result<StepResult> run(const BatchPlan& plan, StepMode mode = StepMode::automatic);

  /// From any thread.
  StepCounts counts() const;

 private:
  /// A forward pass over inputs at fixed places.
  struct Pass {
    BatchGeometry geometry;
    StepInputs inputs;
    ForwardResult result;
    std::unique_ptr<Graph> graph;
  };

  /// A submitted step: what collect needs of it.
  struct Flight {
    uint64_t step_id = 0;
    std::vector<PlanRow> rows;
    SamplePlan sampling;
    SampleOutputs host;
    Buffer results;  ///< pinned
    std::unique_ptr<Event> done;
  };

  /// Around a step's kernels. A step's marks outlive those of the next, for the time between.
  struct StepMarks {
    std::unique_ptr<Event> begin;
    std::unique_ptr<Event> end;
  };

  Status allocate(Buffer& buffer, int64_t size_bytes, MemoryKind kind);
  Status allocate_work_space();
  Status check_plan(const BatchPlan& plan) const;
  Status apply_updates(const BatchPlan& plan);
  void move_pages(const BatchPlan& plan);
  void reset_samplers(const BatchPlan& plan);
  Result<StagedStep> stage(const BatchPlan& plan, const std::optional<GraphShape>& shape);
  Result<std::unique_ptr<Pass>> capture(const StagedStep& step, bool warms_up);
  void run_pass(Pass& pass);
  ForwardResult forward(const StagedStep& step, const Pass* captured);
  void count_pass(const BatchPlan& plan, bool is_replayed);
  void sample(const SamplePlan& sampling, const ForwardResult& forward, const SampleOutputs& out);
  ForwardContext context();

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Communicator> comm_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Model> model_;
  RankSizes sizes_;
  std::unique_ptr<SlotTable> slots_;
  KvPool pool_;
  Buffer arena_memory_;
  TensorView logits_;             ///< [kLogitRowsMax, vocab_per_rank] f32
  std::byte* outputs_ = nullptr;  ///< of sampling, on the device
  StepArena arena_;               ///< of forward passes alone, so that graphs can keep its places
  StagingBlock staging_;
  StagingBlock history_;
  Buffer sampler_memory_;
  SamplerState sampler_;
  std::array<Flight, kStepsInFlightMost> flights_;
  std::array<StepMarks, kStepsInFlightMost + 1> marks_;
  size_t num_submitted_ = 0;
  size_t num_collected_ = 0;
  uint64_t last_step_id_ = 0;
  bool has_step_ = false;
  GraphShapes shapes_;
  std::map<std::pair<int32_t, int32_t>, std::unique_ptr<Pass>> passes_;  ///< by rows and length
  std::unique_ptr<Pass> fresh_;
  std::atomic<int64_t> num_replayed_ = 0;
  std::atomic<int64_t> num_plain_decodes_ = 0;
  std::atomic<int64_t> num_plain_others_ = 0;
};

}  // namespace hadal
