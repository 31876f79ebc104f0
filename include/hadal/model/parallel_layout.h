// How a model is cut over ranks, as one value computed from flags.
//
// Attention, dense and shared MLPs, embedding and head are cut over all `tp` ranks. Routed experts
// are cut in two ways at once: `moe_ep` groups of ranks hold different experts, and the `moe_tp`
// ranks of a group hold slices of each. tp = moe_tp * moe_ep, and one all-reduce over tp sums both
// cuts.
#pragma once

#include <cstdint>

#include <hadal/base/result.h>
#include <hadal/model/config.h>

namespace hadal {

struct ParallelLayout {
  int32_t rank = 0;
  int32_t tp = 1;      ///< world size
  int32_t moe_tp = 1;  ///< ranks that share an expert
  int32_t moe_ep = 1;  ///< groups of ranks with different experts

  int32_t moe_tp_rank() const { return rank % moe_tp; }

  int32_t moe_ep_rank() const { return rank / moe_tp; }
};

/// tp ranks, of which `ep` groups hold different experts. invalid_argument when ep does not divide
/// tp or the rank is outside.
Result<ParallelLayout> make_parallel_layout(int32_t tp, int32_t ep, int32_t rank);

/// invalid_argument naming the first size of the model that the layout does not divide.
Status check_layout(const DeepseekConfig& config, const ParallelLayout& layout);

}  // namespace hadal
