// From a ModelRunnerConfig to what is to be built: pure decisions, errors that name the flag.
#pragma once

#include <span>
#include <vector>

#include <hadal/model/model.h>
#include <hadal/runtime/model_runner.h>

namespace hadal {

/// A configuration that has been checked, with every automatic value decided.
struct ModelSetup {
  DeepseekConfig model;
  std::vector<ParallelLayout> layouts;  ///< of each rank
  std::unique_ptr<WeightStore> weights;
  DType kv_dtype = DType::bf16;
  int64_t context_length = 0;
};

/// Reads config.json, opens the weights and checks every tensor of rank 0 against the config.
Result<ModelSetup> make_setup(const ModelRunnerConfig& config);

/// What the ranks of these layouts read, each byte once.
LoadPlan plan_load(const ModelSetup& setup, std::span<const ParallelLayout> layouts);

/// What a plan of memory depends on beside the configuration.
struct MemoryGiven {
  const Backend& backend;    ///< of one rank
  int64_t free_bytes = 0;    ///< a rank's, before weights are loaded
  int64_t weight_bytes = 0;  ///< of the prepared weights; 0 = not loaded yet
};

/// One rank's memory. resource_exhausted names the nearest flags that would make it fit.
Result<MemoryPlan> plan_memory(const ModelRunnerConfig& config,
                               const ModelSetup& setup,
                               const MemoryGiven& given);

/// Largest sizes that the ops of a rank see.
OpsLimits ops_limits(const DeepseekConfig& model,
                     const ParallelLayout& layout,
                     int32_t max_step_tokens,
                     int32_t max_slots,
                     int64_t max_context_tokens);

/// The backend of one rank; `local_rank` counts the ranks of this host, which share its threads.
Result<std::unique_ptr<Backend>> make_rank_backend(const ModelRunnerConfig& config,
                                                   int32_t local_rank,
                                                   int32_t ranks_on_host);

}  // namespace hadal
