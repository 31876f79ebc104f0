// How much of a trace's prompts any cache could have served, to hold a hit rate against.
//
// Requests count in the order in which they were admitted, and an answer counts as known from then
// on: the first two are upper bounds for every cache under this order. A parent is used whenever
// its child is, so what Belady's rule keeps is always a tree, and its page bound is met exactly.
#pragma once

#include <cstdint>
#include <vector>

#include <hadal/sim/trace.h>

namespace hadal::sim {

struct ReuseBounds {
  int64_t num_prompt_tokens = 0;
  int32_t num_pages = 0;  ///< different pages of all prompts and answers: the working set
  /// Nothing is ever evicted: the longest common prefix with any earlier prompt and answer, less
  /// the one token that must be computed.
  int64_t infinite = 0;
  /// A pool of num_pages that always evicts the page whose next use is furthest away (Belady), as
  /// if pages were independent, running requests took no room and tails were always cached.
  int64_t belady = 0;
  /// A cache of whole prompts (and prompts with their answer) without limit: the longest one that
  /// the prompt begins with.
  int64_t whole_prompt = 0;

  double rate(int64_t tokens) const {
    return num_prompt_tokens > 0 ? static_cast<double>(tokens) / double(num_prompt_tokens) : 0.0;
  }
};

/// `order`: indices of the requests that count, as they were admitted.
ReuseBounds compute_bounds(const Trace& trace,
                           const std::vector<int32_t>& order,
                           int32_t num_pages);

}  // namespace hadal::sim
