// Where memory goes, as arithmetic: weights by group, KV bytes a token, work space, and the pages
// that fit. Pure, so that `hadal check` can print it without a device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <hadal/base/result.h>

namespace hadal {

struct WeightGroupBytes {
  std::string group;  ///< "attention", "routed experts", ...
  int64_t bytes = 0;
};

/// One rank's memory. All ranks of a layout are alike.
struct MemoryPlan {
  std::vector<WeightGroupBytes> weights;
  int64_t weight_bytes = 0;        ///< sum of the groups, as stored in the checkpoint
  int64_t kv_bytes_per_token = 0;  ///< all layers
  int64_t work_bytes = 0;          ///< activations of the largest step
  int64_t ops_bytes = 0;           ///< scratch of the ops (Backend::reserve)
  int64_t sampler_bytes = 0;       ///< penalties' counts, all slots
  int64_t graph_bytes = 0;         ///< of captured graphs: an allowance
  int64_t rope_bytes = 0;
  int64_t free_bytes = 0;    ///< what the plan was given
  int64_t budget_bytes = 0;  ///< free_bytes * memory_fraction
  int32_t num_pages = 0;
  int64_t max_total_tokens = 0;  ///< num_pages * kPageTokens
  int64_t context_length = 0;

  int64_t fixed_bytes() const {
    return weight_bytes + work_bytes + ops_bytes + sampler_bytes + graph_bytes + rope_bytes;
  }
};

/// What decides the number of pages.
struct PageBudget {
  int64_t free_bytes = 0;  ///< before anything is allocated
  double memory_fraction = 0.8;
  int64_t fixed_bytes = 0;  ///< weights and work space
  int64_t kv_bytes_per_token = 0;
  int64_t max_total_tokens = 0;  ///< 0 = as many as fit, but no more than useful_tokens
  int64_t useful_tokens = 0;     ///< more KV than this would never be used
};

/// Pages of kPageTokens tokens. resource_exhausted, with bytes needed and had, when not one page
/// fits or when max_total_tokens does not.
Result<int32_t> plan_pages(const PageBudget& budget);

/// Several lines for people: each group, each sum, with units.
std::string to_text(const MemoryPlan& plan);

}  // namespace hadal
