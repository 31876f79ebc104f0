// Every rank of a CPU process lives in the same memory, so a rank's share of it is free / tp.
#include "model_setup.h"

#include <algorithm>
#include <thread>

#include <hadal/weights/shards.h>

#include "rank_worker.h"

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

DType choose_kv_dtype(const ModelRunnerConfig& config) {
  switch (config.kv_dtype) {
    case KvDtype::f32:
      return DType::f32;
    case KvDtype::bf16:
      return DType::bf16;
    case KvDtype::automatic:
      return config.cpu_mode == CpuMode::exact ? DType::f32 : DType::bf16;
  }
  return DType::bf16;
}

/// Tokens of KV that are worth having when nobody said how many.
int64_t useful_tokens(const ModelRunnerConfig& config,
                      int64_t context_length,
                      int64_t kv_bytes_per_token) {
  constexpr int64_t kDefaultBytes = int64_t{2} << 30;
  const int64_t all_slots = config.max_slots * context_length;
  const int64_t modest = std::max(kDefaultBytes / kv_bytes_per_token, 4 * context_length);
  return std::min(all_slots, modest);
}

}  // namespace

Result<std::unique_ptr<Backend>> make_rank_backend(const ModelRunnerConfig& config, int32_t rank) {
  if (config.device != DeviceType::cpu) {
    return make_cuda_backend({.device_index = rank});
  }
  const auto hardware = static_cast<int32_t>(std::thread::hardware_concurrency());
  const int32_t threads = config.num_threads > 0 ? config.num_threads : std::max(1, hardware);
  return make_cpu_backend({.mode = config.cpu_mode,
                           .num_threads = std::max(1, threads / config.tp),
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
  auto backend = make_rank_backend(config, 0);
  if (!backend) {
    return backend.error();
  }
  setup.numerics = backend.value()->numerics();
  setup.kv_dtype = choose_kv_dtype(config);
  return setup;
}

Result<MemoryPlan> plan_memory(const ModelRunnerConfig& config,
                               const ModelSetup& setup,
                               int64_t free_bytes,
                               int64_t weight_bytes) {
  const DeepseekConfig& model = setup.model;
  const ParallelLayout& layout = setup.layouts.front();
  MemoryPlan plan;
  for (const WeightBytes& group : count_weight_bytes(model, layout, false)) {
    plan.weights.push_back({group.group, group.bytes});
    plan.weight_bytes += group.bytes;
  }
  plan.kv_bytes_per_token = model.num_hidden_layers * model.kv_width() * size_of(setup.kv_dtype);
  const int64_t vocab_per_rank = (model.vocab_size + layout.tp - 1) / layout.tp;
  plan.work_bytes =
      count_arena_bytes(model, layout, setup.numerics, config.max_step_tokens, false) +
      sampling_bytes(vocab_per_rank, config.max_step_tokens) +
      2 * staging_bytes(config.max_step_tokens, config.max_slots, setup.context_length);
  plan.sampler_bytes = sampler_state_bytes(model.vocab_size, config.max_slots);
  plan.rope_bytes = 4 * setup.context_length * model.qk_rope_head_dim;
  plan.free_bytes = free_bytes / layout.tp;
  plan.budget_bytes =
      static_cast<int64_t>(static_cast<double>(plan.free_bytes) * config.memory_fraction);
  // Prepared weights already include the rotary table.
  const int64_t fixed =
      weight_bytes > 0 ? plan.fixed_bytes() - plan.weight_bytes - plan.rope_bytes + weight_bytes
                       : plan.fixed_bytes();
  const auto pages = plan_pages(
      {.free_bytes = plan.free_bytes,
       .memory_fraction = config.memory_fraction,
       .fixed_bytes = fixed,
       .kv_bytes_per_token = plan.kv_bytes_per_token,
       .max_total_tokens = config.max_total_tokens,
       .useful_tokens = useful_tokens(config, setup.context_length, plan.kv_bytes_per_token)});
  if (!pages) {
    return pages.error();
  }
  plan.num_pages = pages.value();
  plan.max_total_tokens = static_cast<int64_t>(plan.num_pages) * kPageTokens;
  plan.context_length = std::min(setup.context_length, plan.max_total_tokens);
  return plan;
}

Result<MemoryPlan> plan_model_memory(const ModelRunnerConfig& config, int64_t free_bytes) {
  const auto setup = make_setup(config);
  if (!setup) {
    return setup.error();
  }
  return plan_memory(config, setup.value(), free_bytes, 0);
}

}  // namespace hadal
