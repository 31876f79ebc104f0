// Decisions before anything is loaded. What memory they take is in memory_fit.cpp.
#include "model_setup.h"

#include <algorithm>
#include <thread>

#include <hadal/weights/shards.h>

namespace hadal {
namespace {

Error bad_flag(const std::string& what) {
  return {ErrorCode::invalid_argument, "runner: " + what};
}

Status check_flags(const ModelRunnerConfig& config) {
  if (config.max_slots < 1 || config.max_slots > 4096) {
    return bad_flag("max_slots " + std::to_string(config.max_slots) + ", expected 1 to 4096");
  }
  if (config.max_step_tokens < config.max_slots || config.max_step_tokens > (1 << 20)) {
    return bad_flag("max_step_tokens " + std::to_string(config.max_step_tokens) +
                    ", expected at least max_slots " + std::to_string(config.max_slots) +
                    " and at most 1048576");
  }
  if (!(config.memory_fraction > 0.0 && config.memory_fraction <= 1.0)) {
    return bad_flag("memory_fraction " + std::to_string(config.memory_fraction) +
                    ", expected above 0 and at most 1");
  }
  if (config.context_length < 0 || config.max_total_tokens < 0 || config.num_threads < 0) {
    return bad_flag("context_length, max_total_tokens and num_threads cannot be negative");
  }
  if (config.max_steps_in_flight < 1 || config.max_steps_in_flight > 2) {
    return bad_flag("max_steps_in_flight " + std::to_string(config.max_steps_in_flight) +
                    ", expected 1 or 2");
  }
  return ok_status();
}

Result<std::unique_ptr<WeightStore>> open_weights(const ModelRunnerConfig& config) {
  if (config.load_format == LoadFormat::dummy) {
    return make_dummy_weights(config.dummy_seed);
  }
  if (has_shards(config.model_dir)) {
    return open_shards(config.model_dir, {config.tp, config.ep});
  }
  return open_checkpoint(config.model_dir);
}

}  // namespace

DType kv_dtype_of(const ModelRunnerConfig& config) {
  const bool is_exact = config.device == DeviceType::cpu && config.cpu_mode == CpuMode::exact;
  switch (config.kv_dtype) {
    case KvDtype::f32:
      return DType::f32;
    case KvDtype::bf16:
      return DType::bf16;
    case KvDtype::fp8_e4m3:
      return DType::f8_e4m3;
    case KvDtype::automatic:
      return is_exact ? DType::f32 : DType::bf16;
  }
  return DType::bf16;
}

Result<std::unique_ptr<Backend>> make_rank_backend(const ModelRunnerConfig& config,
                                                   int32_t local_rank,
                                                   int32_t ranks_on_host) {
  if (config.device != DeviceType::cpu) {
    return make_cuda_backend({.device_index = config.base_gpu_id + local_rank,
                              .kernel_family = config.kernel_family,
                              .e4m3_activations = config.e4m3_activations});
  }
  const auto hardware = static_cast<int32_t>(std::thread::hardware_concurrency());
  const int32_t threads = config.num_threads > 0 ? config.num_threads : std::max(1, hardware);
  return make_cpu_backend({.mode = config.cpu_mode,
                           .num_threads = std::max(1, threads / ranks_on_host),
                           .e4m3_activations = config.e4m3_activations});
}

Result<ModelSetup> make_setup(const ModelRunnerConfig& config) {
  HADAL_RETURN_IF_ERROR(check_flags(config));
  auto model = load_deepseek_config(config.model_dir);
  if (!model) {
    return model.error();
  }
  ModelSetup setup;
  setup.model = std::move(model).value();
  for (int32_t rank = 0; rank < std::max(1, config.tp); ++rank) {
    auto layout = make_parallel_layout(config.tp, config.ep, rank);
    if (!layout) {
      return layout.error();
    }
    HADAL_RETURN_IF_ERROR(check_layout(setup.model, layout.value()));
    if (!config.allow_cut_blocks) {
      HADAL_RETURN_IF_ERROR(check_fp8_blocks(setup.model, layout.value()));
    }
    setup.layouts.push_back(layout.value());
  }
  const int64_t longest = setup.model.max_position_embeddings;
  setup.context_length = config.context_length > 0 ? config.context_length : longest;
  if (setup.context_length > longest) {
    return bad_flag("--context-length: expected at most the model's max_position_embeddings " +
                    std::to_string(longest) + ", got " + std::to_string(setup.context_length));
  }
  auto weights = open_weights(config);
  if (!weights) {
    return weights.error();
  }
  setup.weights = std::move(weights).value();
  HADAL_RETURN_IF_ERROR(check_weights(setup.model, setup.layouts.front(), *setup.weights, false));
  setup.kv_dtype = kv_dtype_of(config);
  return setup;
}

}  // namespace hadal
