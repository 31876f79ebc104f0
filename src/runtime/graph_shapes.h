// Which graphs are captured, and which of them a plan can replay: pure functions of sizes, the same
// on every rank.
#pragma once

#include <optional>
#include <vector>

#include <hadal/plan/batch_plan.h>
#include <hadal/runtime/graph_config.h>

namespace hadal {

/// The size that a decode step is padded to.
struct GraphShape {
  int32_t rows = 0;
  int32_t length = 0;  ///< no sequence is longer, this step's token included
};

/// Batches to capture, ascending: 1, 2, 4, 8, then multiples of 8, 16 and 32 up to the largest,
/// which is always one of them. Empty when nothing is to be captured.
std::vector<int32_t> graph_batches(const GraphConfig& config, int32_t max_slots);

/// Longest sequences to capture for, ascending. Attention's grid grows with the longest sequence
/// that a graph allows, so short sequences have graphs of their own.
std::vector<int32_t> graph_lengths(int32_t max_context_tokens);

class GraphShapes {
 public:
  GraphShapes() = default;
  /// `batches` and `lengths` ascend; none = no plan has a graph.
  GraphShapes(std::vector<int32_t> batches, std::vector<int32_t> lengths, bool pads);

  const std::vector<int32_t>& batches() const { return batches_; }

  const std::vector<int32_t>& lengths() const { return lengths_; }

  /// The smallest shape that holds a plan of decodes; nullopt for other plans and larger ones.
  std::optional<GraphShape> find(const BatchPlan& plan) const;

 private:
  std::vector<int32_t> batches_;
  std::vector<int32_t> lengths_;
  bool pads_ = true;
};

/// Every row generates one token, and there is a row.
bool is_decode(const BatchPlan& plan);

/// Tokens in the cache of the plan's longest row once its tokens are written.
int32_t longest_row(const BatchPlan& plan);

/// Device memory that the graphs of a model of so many layers take, as the plan of memory counts
/// it.
int64_t graph_bytes(size_t num_graphs, int64_t num_layers);

}  // namespace hadal
