// Batches are dense where a step's time grows with every row and sparse where it does not.
#include "graph_shapes.h"

#include <algorithm>

namespace hadal {
namespace {

constexpr int32_t kBatchMost = 256;
/// Sixteen splits of attention; longer sequences have up to sixty-four.
constexpr int32_t kShortLength = 4096;
/// A kernel's node with its arguments. An allowance: the driver does not say.
constexpr int64_t kNodeBytes = 8 << 10;
constexpr int64_t kNodesPerLayer = 24;

int32_t next_batch(int32_t batch) {
  if (batch < 8) {
    return batch * 2;
  }
  return batch + (batch < 32 ? 8 : batch < 128 ? 16 : 32);
}

/// The first of ascending values that is no less; null when all are.
const int32_t* at_least(const std::vector<int32_t>& values, int32_t value) {
  const auto found = std::lower_bound(values.begin(), values.end(), value);
  return found == values.end() ? nullptr : &*found;
}

}  // namespace

std::vector<int32_t> graph_batches(const GraphConfig& config, int32_t max_slots) {
  std::vector<int32_t> batches;
  if (!config.is_enabled) {
    return batches;
  }
  if (!config.batches.empty()) {
    batches = config.batches;
    std::sort(batches.begin(), batches.end());
    batches.erase(std::unique(batches.begin(), batches.end()), batches.end());
    std::erase_if(batches, [&](int32_t batch) {
      return batch < 1 || batch > max_slots || (config.max_batch > 0 && batch > config.max_batch);
    });
    return batches;
  }
  const int32_t largest = std::min(max_slots, config.max_batch > 0 ? config.max_batch : kBatchMost);
  for (int32_t batch = 1; batch < largest; batch = next_batch(batch)) {
    batches.push_back(batch);
  }
  batches.push_back(largest);
  return batches;
}

std::vector<int32_t> graph_lengths(int32_t max_context_tokens) {
  if (max_context_tokens <= kShortLength) {
    return {max_context_tokens};
  }
  return {kShortLength, max_context_tokens};
}

GraphShapes::GraphShapes(std::vector<int32_t> batches, std::vector<int32_t> lengths, bool pads)
    : batches_(std::move(batches)), lengths_(std::move(lengths)), pads_(pads) {}

std::optional<GraphShape> GraphShapes::find(const BatchPlan& plan) const {
  if (!is_decode(plan)) {
    return std::nullopt;
  }
  const auto num_rows = static_cast<int32_t>(plan.rows.size());
  const int32_t* rows = at_least(batches_, num_rows);
  const int32_t* length = at_least(lengths_, longest_row(plan));
  if (rows == nullptr || length == nullptr || (!pads_ && *rows != num_rows)) {
    return std::nullopt;
  }
  return GraphShape{*rows, *length};
}

bool is_decode(const BatchPlan& plan) {
  return !plan.rows.empty() && std::all_of(plan.rows.begin(), plan.rows.end(), [](const auto& row) {
    return row.num_tokens == 1 && row.form == AttentionForm::generated;
  });
}

int32_t longest_row(const BatchPlan& plan) {
  int32_t longest = 0;
  for (const PlanRow& row : plan.rows) {
    longest = std::max(longest, row.kv_begin + row.num_tokens);
  }
  return longest;
}

int64_t graph_bytes(size_t num_graphs, int64_t num_layers) {
  return static_cast<int64_t>(num_graphs) * num_layers * kNodesPerLayer * kNodeBytes;
}

}  // namespace hadal
