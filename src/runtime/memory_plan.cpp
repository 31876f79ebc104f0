// Pages from bytes, and the plan in words.
#include <algorithm>
#include <cstdio>

#include <hadal/plan/batch_plan.h>
#include <hadal/runtime/memory_plan.h>

namespace hadal {
namespace {

std::string size_text(int64_t bytes) {
  const double value = static_cast<double>(bytes);
  char text[48];
  if (bytes >= 1'000'000'000) {
    std::snprintf(text, sizeof text, "%.2f GB", value / 1e9);
  } else if (bytes >= 1'000'000) {
    std::snprintf(text, sizeof text, "%.2f MB", value / 1e6);
  } else {
    std::snprintf(text, sizeof text, "%.1f kB", value / 1e3);
  }
  return text;
}

std::string line(const std::string& name, const std::string& value) {
  std::string text = "  " + name;
  text.resize(std::max<size_t>(text.size() + 1, 32), ' ');
  return text + value + "\n";
}

int64_t budget_of(int64_t free_bytes, double fraction) {
  return static_cast<int64_t>(static_cast<double>(free_bytes) * fraction);
}

}  // namespace

Result<int32_t> plan_pages(const PageBudget& budget) {
  const int64_t page_bytes = budget.kv_bytes_per_token * kPageTokens;
  HADAL_CHECK(page_bytes > 0, "a page takes memory");
  const int64_t allowed = budget_of(budget.free_bytes, budget.memory_fraction);
  const int64_t fitting = std::max<int64_t>(0, allowed - budget.fixed_bytes) / page_bytes;
  const int64_t tokens =
      budget.max_total_tokens > 0 ? budget.max_total_tokens : budget.useful_tokens;
  const int64_t wanted = std::max<int64_t>(1, (tokens + kPageTokens - 1) / kPageTokens);
  const bool is_fixed = budget.max_total_tokens > 0;
  if (fitting < (is_fixed ? wanted : 1)) {
    return Error{ErrorCode::resource_exhausted,
                 "memory: weights and work space take " + size_text(budget.fixed_bytes) + " and " +
                     std::to_string(is_fixed ? wanted : 1) + " KV pages " +
                     size_text((is_fixed ? wanted : 1) * page_bytes) + ", but only " +
                     size_text(allowed) + " of " + size_text(budget.free_bytes) +
                     " free may be used"};
  }
  return static_cast<int32_t>(std::min<int64_t>({fitting, wanted, INT32_MAX / kPageTokens}));
}

std::string to_text(const MemoryPlan& plan) {
  std::string text = "memory of one rank:\n";
  for (const WeightGroupBytes& group : plan.weights) {
    if (group.bytes > 0) {
      text += line(group.group, size_text(group.bytes));
    }
  }
  text += line("weights together", size_text(plan.weight_bytes));
  text += line("rotary table", size_text(plan.rope_bytes));
  text += line("work space of a step", size_text(plan.work_bytes));
  text += line("scratch of the ops", size_text(plan.ops_bytes));
  text += line("sampling state", size_text(plan.sampler_bytes));
  if (plan.graph_bytes > 0) {
    text += line("CUDA graphs, at most", size_text(plan.graph_bytes));
  }
  text += line("KV a token", std::to_string(plan.kv_bytes_per_token) + " bytes");
  text += line(
      "free",
      size_text(plan.free_bytes) + ", of which " + size_text(plan.budget_bytes) + " may be used");
  text += line("KV pages",
               std::to_string(plan.num_pages) + " of " + std::to_string(kPageTokens) +
                   " tokens: " + std::to_string(plan.max_total_tokens) + " tokens, " +
                   size_text(plan.max_total_tokens * plan.kv_bytes_per_token));
  text += line("longest sequence", std::to_string(plan.context_length) + " tokens");
  return text;
}

}  // namespace hadal
