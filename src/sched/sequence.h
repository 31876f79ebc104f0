// One sequence from submission to the moment its last page is given back.
//
//   positions: |<- shared pages (lease) ->|<-- private pages -->|
//              0                     retired            computed        tokens.size() + pending
//   KV on the device: [0, retired) surely, [retired, computed) when the steps in flight have run.
#pragma once

#include <cstdint>
#include <vector>

#include <hadal/plan/batch_plan.h>
#include <hadal/sched/request.h>

#include "fair_share.h"
#include "radix_cache.h"

namespace hadal {

enum class SequenceState : uint8_t {
  waiting,
  running,
  retiring,  ///< has ended; holds slot and pages until its last step retires
};

inline constexpr int32_t kMaxRetractions = 2;

struct Sequence {
  RequestId id = 0;
  GenerateRequest request;  ///< prompt moved into `tokens`
  SequenceState state = SequenceState::waiting;
  std::vector<TokenId> tokens;  ///< prompt, then what was generated
  int32_t num_prompt = 0;

  SlotId slot = -1;
  Lease lease;                ///< covers pages[0, lease.num_pages())
  std::vector<PageId> pages;  ///< in order of position
  int32_t computed = 0;
  int32_t retired = 0;
  int32_t num_pending_samples = 0;  ///< tokens that steps in flight sample
  std::vector<TokenId> drafts;      ///< to be verified by its next row
  uint64_t last_step = 0;           ///< newest step with a row of this sequence
  bool publishes = false;           ///< whole prompt pages enter the cache as they retire
  ShareId share = -1;

  int32_t num_retractions = 0;
  int32_t num_overtaken = 0;      ///< younger sequences of its share admitted before this one
  int32_t num_cached_tokens = 0;  ///< at the first admission
  bool was_admitted = false;
  bool has_sent_event = false;
  bool is_kv_valid = true;  ///< false after non-finite logits: nothing of it may be reused
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<std::vector<TokenLogprob>> prompt_top_logprobs;

  int32_t num_waits_for_host = 0;  ///< steps in which its pages were on their way back
  PrefixMatch match;               ///< while waiting; good for cache version `match_version`
  uint64_t match_version = 0;

  int32_t num_known() const { return static_cast<int32_t>(tokens.size()); }

  int32_t num_remaining() const { return request.max_new_tokens - num_generated(); }

  /// Pages that it may come to hold.
  int32_t num_pages_max() const;

  int32_t num_generated() const { return num_known() - num_prompt; }

  /// Tokens whose KV must exist before the next sample, once the steps in flight have retired.
  int32_t num_planned() const { return num_known() + num_pending_samples; }

  bool is_prefilling() const { return num_planned() - computed > 1 || computed < num_prompt; }

  /// False when the steps in flight already bring the last token, or verify drafts: how far they
  /// get is not known yet (`computed` is then beyond num_planned()).
  bool needs_row() const {
    return computed < num_planned() &&
           (request.max_new_tokens == 0 ||
            num_generated() + num_pending_samples < request.max_new_tokens);
  }

  /// Retracted so often that it must not be retracted again.
  bool is_spent() const { return num_retractions >= kMaxRetractions; }

  bool scores_prompt() const { return request.wants_prompt_logprobs && !has_sent_event; }
};

inline int32_t pages_for(int32_t num_tokens) {
  return (num_tokens + kPageTokens - 1) / kPageTokens;
}

inline int32_t Sequence::num_pages_max() const {
  return pages_for(num_prompt + request.max_new_tokens);
}

}  // namespace hadal
