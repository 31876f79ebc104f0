// What sampling leaves of a step: arrays side by side on the device, fetched as one block, and read
// into the rows of a StepResult.
#pragma once

#include <vector>

#include <hadal/plan/batch_plan.h>
#include <hadal/tensor/tensor.h>

#include "step_inputs.h"

namespace hadal {

/// N entries, T best tokens each; the top arrays are absent when nobody asks.
struct SampleOutputs {
  TensorView tokens;        ///< [N] i32
  TensorView logprobs;      ///< [N] f32
  TensorView has_nan;       ///< [N] u8
  TensorView top_tokens;    ///< [N, T] i32
  TensorView top_logprobs;  ///< [N, T] f32
  int64_t size_bytes = 0;   ///< of all, from the first on
};

/// At the same offsets from `base`, whatever memory that is; null = only their size is wanted.
SampleOutputs place_results(std::byte* base, Device device, int64_t num_entries, int64_t num_top);

/// Room for the largest step's.
int64_t result_bytes(int64_t num_entries, int64_t num_top);

/// `host` has been fetched. One result for each row with logits.
StepResult read_results(uint64_t step_id,
                        const std::vector<PlanRow>& rows,
                        const SamplePlan& sampling,
                        const SampleOutputs& host);

}  // namespace hadal
