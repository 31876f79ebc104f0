// What a rank's memory holds, and which flag would make it fit when it does not.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "model_setup.h"
#include "rank_worker.h"

namespace hadal {
namespace {

/// Fewer tokens of KV are not worth proposing, unless sequences cannot be that long.
constexpr int64_t kKvTokensMin = 4096;
constexpr int64_t kStepTokensMin = 256;
constexpr double kFractionMax = 0.99;
constexpr int32_t kTpMax = 64;

/// Tokens of KV that are worth having when nobody said how many. On the host memory is shared with
/// everything else; a GPU is there for this model alone.
int64_t useful_tokens(const ModelRunnerConfig& config,
                      int64_t context_length,
                      int64_t kv_bytes_per_token) {
  constexpr int64_t kDefaultBytes = int64_t{2} << 30;
  const int64_t all_slots = config.max_slots * context_length;
  if (config.device != DeviceType::cpu) {
    return all_slots;
  }
  const int64_t modest = std::max(kDefaultBytes / kv_bytes_per_token, 4 * context_length);
  return std::min(all_slots, modest);
}

/// A configuration as given, or with one flag changed.
struct Variant {
  ModelRunnerConfig config;
  ParallelLayout layout;
  int64_t context_length = 0;
};

/// Everything but the pages.
MemoryPlan plan_fixed(const Variant& variant, const ModelSetup& setup, const MemoryGiven& given) {
  const DeepseekConfig& model = setup.model;
  const ParallelLayout& layout = variant.layout;
  const int32_t step_tokens = variant.config.max_step_tokens;
  const int32_t slots = variant.config.max_slots;
  MemoryPlan plan;
  for (const WeightBytes& group : count_weight_bytes(model, layout, false)) {
    plan.weights.push_back({group.group, group.bytes});
    plan.weight_bytes += group.bytes;
  }
  plan.kv_bytes_per_token = model.num_hidden_layers * model.kv_record(setup.kv_dtype).size_bytes();
  const int64_t vocab_per_rank = (model.vocab_size + layout.tp - 1) / layout.tp;
  plan.work_bytes = count_arena_bytes(model, layout, given.backend.numerics(), step_tokens, false) +
                    sampling_bytes(vocab_per_rank, step_tokens) +
                    2 * staging_bytes(step_tokens, slots, variant.context_length);
  plan.ops_bytes = given.backend.reserve_bytes(
      ops_limits(model, layout, step_tokens, slots, variant.context_length));
  plan.sampler_bytes = sampler_state_bytes(model.vocab_size, slots);
  if (given.backend.has_graphs()) {
    const size_t num_graphs = graph_batches(variant.config.graphs, slots).size() *
                              graph_lengths(static_cast<int32_t>(variant.context_length)).size();
    plan.graph_bytes = graph_bytes(num_graphs, model.num_hidden_layers);
  }
  plan.rope_bytes = 4 * variant.context_length * model.qk_rope_head_dim;
  plan.free_bytes = given.free_bytes;
  plan.budget_bytes =
      static_cast<int64_t>(static_cast<double>(plan.free_bytes) * variant.config.memory_fraction);
  return plan;
}

PageBudget page_budget(const Variant& variant, const MemoryPlan& plan, int64_t weight_bytes) {
  // Prepared weights already include the rotary table.
  const int64_t fixed =
      weight_bytes > 0 ? plan.fixed_bytes() - plan.weight_bytes - plan.rope_bytes + weight_bytes
                       : plan.fixed_bytes();
  return {.free_bytes = plan.free_bytes,
          .memory_fraction = variant.config.memory_fraction,
          .fixed_bytes = fixed,
          .kv_bytes_per_token = plan.kv_bytes_per_token,
          .max_total_tokens = variant.config.max_total_tokens,
          .useful_tokens =
              useful_tokens(variant.config, variant.context_length, plan.kv_bytes_per_token)};
}

/// Looks for one flag that would do, the others as given.
class NearestFlags {
 public:
  NearestFlags(const Variant& given_flags, const ModelSetup& setup, const MemoryGiven& given)
      : flags_(given_flags), setup_(setup), given_(given) {}

  /// "--max-total-tokens 4096 or --tp-size 2"; empty when no single flag does.
  std::string text() {
    try_total_tokens();
    try_fraction();
    try_halves("--max-running-requests", flags_.config.max_slots, 1, [](Variant& v, int64_t n) {
      v.config.max_step_tokens += static_cast<int32_t>(n) - v.config.max_slots;
      v.config.max_slots = static_cast<int32_t>(n);
    });
    const int32_t slots = flags_.config.max_slots;
    try_halves("--max-prefill-tokens",
               flags_.config.max_step_tokens - slots,
               kStepTokensMin,
               [slots](Variant& v, int64_t n) {
                 v.config.max_step_tokens = static_cast<int32_t>(n) + slots;
               });
    try_halves(
        "--context-length", flags_.context_length, kStepTokensMin, [](Variant& v, int64_t n) {
          v.context_length = n;
        });
    try_graphs();
    try_tp();
    return text_;
  }

 private:
  PageBudget budget(const Variant& variant) const {
    return page_budget(variant, plan_fixed(variant, setup_, given_), given_.weight_bytes);
  }

  static int64_t least_tokens(const Variant& variant) {
    return variant.config.max_total_tokens > 0 ? variant.config.max_total_tokens
                                               : std::min(kKvTokensMin, variant.context_length);
  }

  bool fits(const Variant& variant) const {
    const auto pages = plan_pages(budget(variant));
    return pages && int64_t{pages.value()} * kPageTokens >= least_tokens(variant);
  }

  void propose(const std::string& flag) { text_ += (text_.empty() ? "" : " or ") + flag; }

  void try_total_tokens() {
    if (flags_.config.max_total_tokens == 0) {
      return;
    }
    PageBudget less = budget(flags_);
    less.max_total_tokens = 0;
    less.useful_tokens = flags_.config.max_total_tokens;
    const auto pages = plan_pages(less);
    if (pages && int64_t{pages.value()} * kPageTokens >= kStepTokensMin) {
      propose("--max-total-tokens " + std::to_string(int64_t{pages.value()} * kPageTokens));
    }
  }

  void try_fraction() {
    Variant variant = flags_;
    const PageBudget budget_now = budget(variant);
    const int64_t tokens = least_tokens(variant);
    const double needed = static_cast<double>(
        budget_now.fixed_bytes + (tokens + kPageTokens) * budget_now.kv_bytes_per_token);
    const double fraction =
        std::ceil(100.0 * needed / static_cast<double>(std::max<int64_t>(1, given_.free_bytes))) /
        100.0;
    variant.config.memory_fraction = fraction;
    if (fraction > flags_.config.memory_fraction && fraction <= kFractionMax && fits(variant)) {
      char text[32];
      std::snprintf(text, sizeof text, "%.2f", fraction);
      propose(std::string("--mem-fraction-static ") + text);
    }
  }

  template <class Set>
  void try_halves(const std::string& flag, int64_t value, int64_t least, const Set& set) {
    for (value /= 2; value >= least; value /= 2) {
      Variant variant = flags_;
      set(variant, value);
      if (fits(variant)) {
        propose(flag + " " + std::to_string(value));
        return;
      }
    }
  }

  void try_graphs() {
    Variant variant = flags_;
    variant.config.graphs.is_enabled = false;
    if (given_.backend.has_graphs() && flags_.config.graphs.is_enabled && fits(variant)) {
      propose("--disable-cuda-graph");
    }
  }

  /// Ranks on one host share its memory; each GPU brings its own.
  void try_tp() {
    if (flags_.config.device == DeviceType::cpu || given_.weight_bytes > 0) {
      return;
    }
    for (int32_t tp = flags_.config.tp * 2; tp <= kTpMax; tp *= 2) {
      const auto layout = make_parallel_layout(tp, flags_.config.ep, 0);
      if (!layout || !check_layout(setup_.model, layout.value()) ||
          !check_fp8_blocks(setup_.model, layout.value())) {
        return;
      }
      Variant variant = flags_;
      variant.layout = layout.value();
      if (fits(variant)) {
        propose("--tp-size " + std::to_string(tp));
        return;
      }
    }
  }

  const Variant& flags_;
  const ModelSetup& setup_;
  const MemoryGiven& given_;
  std::string text_;
};

}  // namespace

OpsLimits ops_limits(const DeepseekConfig& model,
                     const ParallelLayout& layout,
                     int32_t max_step_tokens,
                     int32_t max_slots,
                     int64_t max_context_tokens) {
  return {.max_step_tokens = max_step_tokens,
          .max_rows = std::min(2 * max_slots, max_step_tokens),
          .max_context_tokens = static_cast<int32_t>(max_context_tokens),
          .num_heads = static_cast<int32_t>(model.num_attention_heads / layout.attn_tp),
          .qk_nope_head_dim = static_cast<int32_t>(model.qk_nope_head_dim),
          .qk_rope_head_dim = static_cast<int32_t>(model.qk_rope_head_dim),
          .v_head_dim = static_cast<int32_t>(model.v_head_dim),
          .kv_lora_rank = static_cast<int32_t>(model.kv_lora_rank),
          .vocab_size = static_cast<int32_t>(model.vocab_size)};
}

Result<MemoryPlan> plan_memory(const ModelRunnerConfig& config,
                               const ModelSetup& setup,
                               const MemoryGiven& given) {
  const Variant variant{config, setup.layouts.front(), setup.context_length};
  MemoryPlan plan = plan_fixed(variant, setup, given);
  const auto pages = plan_pages(page_budget(variant, plan, given.weight_bytes));
  if (!pages) {
    const std::string flags = NearestFlags(variant, setup, given).text();
    return Error{pages.error().code,
                 pages.error().message + (flags.empty() ? "; no single flag would make it fit"
                                                        : "; it would fit with " + flags)};
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
  const auto backend = make_rank_backend(config, 0, config.tp);
  if (!backend) {
    return backend.error();
  }
  const bool is_shared = config.device == DeviceType::cpu;
  return plan_memory(
      config,
      setup.value(),
      {.backend = *backend.value(), .free_bytes = is_shared ? free_bytes / config.tp : free_bytes});
}

}  // namespace hadal
