// How a model is cut over ranks, as one value computed from flags.
//
// A layout has four degrees. Of `world` = pp * tp ranks, pp groups hold different layers. Within a
// group of tp ranks, attention is cut by heads over attn_tp ranks and repeated dp times for
// different sequences (tp = attn_tp * dp); dense and shared MLPs, embedding and head are cut over
// all tp. Routed experts are cut in two ways at once: moe_ep groups of ranks hold different
// experts, and the moe_tp ranks of a group hold slices of each (tp = moe_tp * moe_ep), so that one
// all-reduce over tp sums both cuts. pp and dp above 1 are described here and refused by
// make_parallel_layout.
#pragma once

#include <cstdint>

#include <hadal/base/result.h>
#include <hadal/model/config.h>

namespace hadal {

/// What flags say.
struct ParallelDegrees {
  int32_t tp = 1;  ///< --tp-size: ranks that hold one layer together
  int32_t ep = 1;  ///< --ep-size: groups of them with different experts
  int32_t pp = 1;  ///< --pp-size: groups with different layers
  int32_t dp = 1;  ///< --dp-size: groups with different sequences in attention
};

/// Model code asks for its part by name and knows no flag.
struct ParallelLayout {
  int32_t rank = 0;
  int32_t tp = 1;       ///< ranks that an all-reduce joins
  int32_t attn_tp = 1;  ///< ranks that share the heads
  int32_t moe_tp = 1;   ///< ranks that share an expert
  int32_t moe_ep = 1;   ///< groups of ranks with different experts
  int32_t pp = 1;
  int32_t dp = 1;

  int32_t attn_tp_rank() const { return rank % attn_tp; }

  int32_t moe_tp_rank() const { return rank % moe_tp; }

  int32_t moe_ep_rank() const { return rank / moe_tp; }
};

/// invalid_argument when ep does not divide tp or the rank is outside; unsupported, naming the
/// flag, for pp or dp above 1.
Result<ParallelLayout> make_parallel_layout(const ParallelDegrees& degrees, int32_t rank);
/// The same with pp and dp of 1.
Result<ParallelLayout> make_parallel_layout(int32_t tp, int32_t ep, int32_t rank);

/// invalid_argument naming the first size of the model that the layout does not divide, and the
/// degrees that fit.
Status check_layout(const DeepseekConfig& config, const ParallelLayout& layout);

/// invalid_argument when a cut falls inside a 128 x 128 block of an FP8 checkpoint, naming the size
/// and the degrees that fit. Such a cut is computed rightly on the host; a GPU's kernels take whole
/// blocks, and its activations would be quantised in other groups than the model was made for.
Status check_fp8_blocks(const DeepseekConfig& config, const ParallelLayout& layout);

}  // namespace hadal
