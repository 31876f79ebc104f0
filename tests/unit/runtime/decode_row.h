// A row of a plan that generates one token after those in the cache.
#pragma once

#include <hadal/plan/batch_plan.h>

namespace hadal {

inline void add_decode(BatchPlan& plan, SlotId slot, int32_t kv_begin) {
  plan.rows.push_back({.slot = slot,
                       .kv_begin = kv_begin,
                       .num_tokens = 1,
                       .form = AttentionForm::generated,
                       .num_logits = 1,
                       .sample = true});
  plan.tokens.push_back(kTokenFromDevice);
}

}  // namespace hadal
