// What must be equal on all ranks, as numbers: the page tables and batch shape of a plan, and the
// ids that a step consumed and sampled. Rank 0 and every rank keep one ledger each.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include <hadal/base/result.h>
#include <hadal/plan/batch_plan.h>

namespace hadal {

class PlanLedger {
 public:
  /// Applies the plan's slot updates and digests what it will run on: step id, page copies, rows,
  /// the whole page table of every row's slot, and the ids known when the plan was made. In the
  /// order of plans.
  uint64_t apply(const BatchPlan& plan);

  /// Hash of the ids that this step's rows consume, the device's among them. After record() of the
  /// step before.
  uint64_t consumed(const BatchPlan& plan) const;
  /// Notes the sampled ids and hashes them.
  uint64_t record(const StepResult& result);

 private:
  std::unordered_map<SlotId, uint64_t> page_tables_;  ///< hash chain over the slot's pages
  std::unordered_map<SlotId, TokenId> last_tokens_;
};

/// A plan with its digest, as it travels.
std::vector<std::byte> encode_plan_record(const BatchPlan& plan, uint64_t digest);

struct PlanRecord {
  BatchPlan plan;
  uint64_t digest = 0;
};

/// data_loss names the field, as decode_batch_plan.
Result<PlanRecord> decode_plan_record(std::span<const std::byte> bytes);

}  // namespace hadal
