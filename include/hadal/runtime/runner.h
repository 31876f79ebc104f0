// What executes a step: a model on a backend, or the null runner that only keeps time.
#pragma once

#include <memory>

#include <hadal/base/result.h>
#include <hadal/plan/batch_plan.h>
#include <hadal/runtime/graph_config.h>

namespace hadal {

/// What the engine must know about the thing it plans for.
struct RunnerLimits {
  int32_t num_pages = 0;           ///< KV pages of kPageTokens tokens
  int32_t max_step_tokens = 0;     ///< largest sum of PlanRow::num_tokens
  int32_t max_slots = 0;           ///< rows of the running set
  int32_t max_context_tokens = 0;  ///< prompt plus generated
  int32_t vocab_size = 0;
  /// Steps that may be submitted before the oldest is waited for: 1 = submit, wait, submit, ...;
  /// 2 = the host plans a step ahead, decode tokens come as kTokenFromDevice.
  int32_t max_steps_in_flight = 1;
  /// Largest sum of PlanRow::num_logits; 0 = max_step_tokens. At least max_slots + 1.
  int32_t max_step_logits = 0;
  int32_t num_host_pages = 0;  ///< of the host tier, shared by a node's ranks; 0 = there is none
  int64_t page_bytes = 0;      ///< of one page on one rank; 0 = unknown
  int32_t absorbed_chunk_tokens = 0;  ///< of prompts: see cheaper_form()
};

/// Engine thread only. At most RunnerLimits::max_steps_in_flight steps are submitted and not yet
/// waited for; `wait` returns them in order.
class Runner {
 public:
  virtual ~Runner() = default;
  virtual const RunnerLimits& limits() const = 0;
  /// Starts a step; returns before it has run where the backend can. An Error is fatal for the
  /// group.
  virtual Status submit(const BatchPlan& plan) = 0;
  /// Blocks for the oldest submitted step.
  virtual Result<StepResult> wait() = 0;

  /// False when wait would block now; a runner that cannot tell says true.
  virtual bool has_result() const { return true; }

  /// What giving a step to the device has lately taken at most, beyond submit(): a step that comes
  /// later than this before the last one ends leaves the device idle. 0 where nothing is given.
  virtual double launch_seconds() const { return 0.0; }

  /// Since the start; zeros where there is no model. From any thread.
  virtual StepCounts step_counts() const { return {}; }
};

/// `--runner null:STEP_US`: every step takes step_us; the token at (seed, position) is a keyed hash
/// of both, so answers are reproducible in any batch. No model, no memory.
struct NullRunnerConfig {
  int64_t step_us = 0;
  RunnerLimits limits;
};

/// The token that the null runner samples at `position` (0 = first prompt token), uniform over the
/// vocabulary. Of the sampling parameters it honours seed, min_new_tokens and num_top_logprobs; a
/// token that min_new_tokens forbids is redrawn with the next `attempt`.
TokenId null_runner_token(uint64_t seed,
                          int64_t position,
                          int32_t vocab_size,
                          uint32_t attempt = 0);

std::unique_ptr<Runner> make_null_runner(const NullRunnerConfig& config);

}  // namespace hadal
