// One step as rank 0 decides it: values only (no pointers), so a plan can be sent, recorded and
// replayed.
//
// Slots are rows of the running set. A slot's page list and sampling state live on every rank and
// change only through SlotUpdates; the token ids of a step travel in `tokens`, row after row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <hadal/base/result.h>
#include <hadal/text/token.h>

namespace hadal {

using PageId = int32_t;
using SlotId = int32_t;

inline constexpr int32_t kPageTokens = 64;  ///< tokens of KV in one page, all layers

/// How a row's attention is computed: prompt = non-absorbed, generated = absorbed. Generated
/// positions are always absorbed, also when they are recomputed; prompt positions as cheaper_form()
/// says.
enum class AttentionForm : uint8_t { prompt, generated };

/// Projecting one latent of 512 up to keys and values of 128 + 128 features, in pairs of a token
/// and one before it (192 + 128 multiplications): DeepSeek's sizes, the same for any number of
/// heads.
inline constexpr int32_t kPairsOfPrefixToken = 410;

/// The form in which `count` prompt tokens after `prefix` cached ones cost less. Non-absorbed, a
/// chunk projects its whole prefix up; absorbed, each pair of a token and one before it costs more.
/// `absorbed_tokens` is the chunk for which both cost the same after a prefix without end; 0 =
/// always `prompt`, so that a token's numerics never depend on how its prompt was cut.
constexpr AttentionForm cheaper_form(int32_t prefix, int32_t count, int32_t absorbed_tokens) {
  const int64_t begin = prefix;
  const int64_t absorbed_pairs = count * (2 * begin + count);
  return absorbed_pairs < 2 * begin * absorbed_tokens ? AttentionForm::generated
                                                      : AttentionForm::prompt;
}

/// Sampling parameters of one sequence; temperature 0 is greedy. Ranges are validated before the
/// engine.
struct SamplingParams {
  float temperature = 1.0F;
  float top_p = 1.0F;
  int32_t top_k = 0;  ///< 0 = all
  float min_p = 0.0F;
  float frequency_penalty = 0.0F;   ///< over generated tokens
  float presence_penalty = 0.0F;    ///< over generated tokens
  float repetition_penalty = 1.0F;  ///< over prompt and generated tokens
  uint64_t seed = 0;                ///< with the position the only source of randomness
  std::vector<std::pair<TokenId, float>> logit_bias;
  int32_t min_new_tokens = 0;  ///< stop tokens are impossible before this many
  std::vector<TokenId>
      stop_tokens;                ///< for min_new_tokens only; ending is the scheduler's business
  int32_t num_top_logprobs = -1;  ///< -1 = no logprobs, 0 = the sampled token's, n = and the n best
};

/// A slot is taken over by a sequence (again): state is replaced, pages are empty.
struct SlotReset {
  SamplingParams sampling;
  /// Tokens known so far, prompt first; only sent when a penalty or min_new_tokens needs them.
  std::vector<TokenId> history;
  int32_t num_prompt_tokens = 0;
};

struct SlotUpdate {
  SlotId slot = 0;
  std::optional<SlotReset> reset;
  std::vector<PageId> append_pages;
};

/// Moves the KV of one page between the device and the host tier. Moves happen in order, before the
/// page copies. A node's ranks share one host tier: each page is written there once, and in one
/// plan no host page is read that the plan writes, or written that it reads.
struct PageMove {
  PageId page = 0;       ///< on the device
  PageId host_page = 0;  ///< in the host tier
  bool to_host = false;
};

/// Copies the first `num_tokens` of page `src` to page `dst` before the step runs (a partly
/// matching cached page).
struct PageCopy {
  PageId src = 0;
  PageId dst = 0;
  int32_t num_tokens = 0;
};

/// `num_tokens` new tokens of one slot at positions kv_begin, kv_begin + 1, ... A sequence may have
/// two rows in one step (the end of its prompt and recomputed generated tokens), in order of
/// position.
///
/// A generated row that samples with num_logits > 1 verifies drafts: its first token is known, the
/// others are guesses, and all have logits. The KV of rejected ones is written again by later rows.
struct PlanRow {
  SlotId slot = 0;
  int32_t kv_begin = 0;
  int32_t num_tokens = 0;
  AttentionForm form = AttentionForm::prompt;
  int32_t num_logits = 0;  ///< logits are computed for the last num_logits tokens of the row
                           ///< (speculation, prompt logprobs)
  bool sample =
      false;  ///< the last logits are sampled and the token appended to the slot's sampling state
};

struct BatchPlan {
  uint64_t step_id = 0;
  std::vector<SlotUpdate> slot_updates;
  std::vector<PageMove> page_moves;
  std::vector<PageCopy> page_copies;
  std::vector<PlanRow> rows;
  std::vector<TokenId>
      tokens;  ///< concatenated over rows; kTokenFromDevice where the previous step sampled it
};

/// In BatchPlan::tokens: "the token that the step in flight samples for this slot"; it never visits
/// the host first.
inline constexpr TokenId kTokenFromDevice = -1;

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0.0F;
};

/// Result of one row with num_logits > 0, in plan order.
struct RowResult {
  SlotId slot = 0;
  TokenId token = -1;  ///< -1 when the row did not sample
  /// Of a row that verifies drafts: so many of them, from the first on, are what sampling gave, and
  /// `token` is what it gave after the last of them.
  int32_t num_accepted = 0;
  std::vector<TokenId> drafts;  ///< guesses for the tokens after `token`, nearest first
  float logprob = 0.0F;
  std::vector<TokenLogprob> top;  ///< num_top_logprobs best, best first
  /// For rows with num_logits > 1 and logprobs: num_logits - 1 entries, entry i is about the row's
  /// token after the i-th of its last num_logits (the last logits are about a token outside the
  /// row). A prompt that is scored in chunks repeats the last token of a chunk in the next.
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<std::vector<TokenLogprob>> prompt_top;
  bool has_nan =
      false;  ///< this row's logits were not finite: the request fails, nobody else's does
};

struct StepResult {
  uint64_t step_id = 0;
  std::vector<RowResult> rows;
  /// On the device, this rank: from its first kernel's turn to the end of its last, and how long
  /// the device waited before it since the last kernel of the step before. No part of any plan.
  double device_busy_s = 0.0;
  double device_idle_s = 0.0;
};

/// Versioned little-endian bytes.
std::vector<std::byte> encode(const BatchPlan& plan);
/// data_loss names the first field that is out of bounds.
Result<BatchPlan> decode_batch_plan(std::span<const std::byte> bytes);

}  // namespace hadal
