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
  Numerics numerics;
  DType kv_dtype = DType::bf16;
  int64_t context_length = 0;
};

/// Reads config.json, opens the weights and checks every tensor of rank 0 against the config.
Result<ModelSetup> make_setup(const ModelRunnerConfig& config);

/// What the ranks of these layouts read, each byte once.
LoadPlan plan_load(const ModelSetup& setup, std::span<const ParallelLayout> layouts);

/// One rank's memory, its share of `free_bytes` included. `weight_bytes` > 0 replaces the
/// checkpoint's count by what the prepared weights really take.
Result<MemoryPlan> plan_memory(const ModelRunnerConfig& config,
                               const ModelSetup& setup,
                               int64_t free_bytes,
                               int64_t weight_bytes);

/// The backend of one rank.
Result<std::unique_ptr<Backend>> make_rank_backend(const ModelRunnerConfig& config, int32_t rank);

}  // namespace hadal
