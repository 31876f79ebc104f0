// What a rank remembers of the running set between steps: each slot's pages and sampling
// parameters. It changes only through the SlotUpdates of plans, so all ranks hold the same.
#pragma once

#include <vector>

#include <hadal/base/result.h>
#include <hadal/plan/batch_plan.h>

namespace hadal {

/// One row of the running set.
struct Slot {
  std::vector<PageId> pages;  ///< in order of position
  SamplingParams sampling;
  int32_t num_prompt_tokens = 0;

  bool wants_logprobs() const { return sampling.num_top_logprobs >= 0; }

  /// The sampler's counts matter for this slot.
  bool has_penalty() const;
};

struct SlotLimits {
  int32_t num_slots = 0;
  int32_t num_pages = 0;
  int32_t vocab_size = 0;
  int32_t max_context_tokens = 0;
};

/// Biases and stop tokens that one slot may have together.
inline constexpr size_t kMaxSlotBiases = 4096;
/// Best tokens that a row may ask for.
inline constexpr int32_t kMaxTopLogprobs = 128;

class SlotTable {
 public:
  explicit SlotTable(const SlotLimits& limits);

  /// data_loss names what a plan has out of bounds; the table is then undefined (the group is
  /// lost).
  Status apply(const SlotUpdate& update);
  /// Checks a row and its tokens against the limits and the slot's pages.
  Status check_row(const PlanRow& row) const;

  const Slot& at(SlotId slot) const { return slots_[static_cast<size_t>(slot)]; }

 private:
  Status check_reset(const SlotReset& reset) const;

  SlotLimits limits_;
  std::vector<Slot> slots_;
};

}  // namespace hadal
