// A plan comes from rank 0, perhaps over a network: every number is checked before it indexes
// anything.
#include "slot_table.h"

#include <string>

namespace hadal {
namespace {

Error bad_plan(const std::string& what) {
  return {ErrorCode::data_loss, "plan: " + what};
}

}  // namespace

bool Slot::has_penalty() const {
  return sampling.frequency_penalty != 0.0F || sampling.presence_penalty != 0.0F ||
         sampling.repetition_penalty != 1.0F;
}

SlotTable::SlotTable(const SlotLimits& limits)
    : limits_(limits), slots_(static_cast<size_t>(limits.num_slots)) {}

Status SlotTable::check_reset(const SlotReset& reset) const {
  const auto is_token = [&](TokenId token) { return token >= 0 && token < limits_.vocab_size; };
  if (reset.sampling.logit_bias.size() + reset.sampling.stop_tokens.size() > kMaxSlotBiases) {
    return bad_plan("more than " + std::to_string(kMaxSlotBiases) + " biases and stop tokens");
  }
  for (const auto& [token, bias] : reset.sampling.logit_bias) {
    if (!is_token(token)) {
      return bad_plan("logit_bias of token " + std::to_string(token));
    }
  }
  for (const TokenId token : reset.sampling.stop_tokens) {
    if (!is_token(token)) {
      return bad_plan("stop token " + std::to_string(token));
    }
  }
  if (reset.history.size() > static_cast<size_t>(limits_.max_context_tokens)) {
    return bad_plan("history of " + std::to_string(reset.history.size()) + " tokens");
  }
  for (const TokenId token : reset.history) {
    if (!is_token(token)) {
      return bad_plan("history token " + std::to_string(token));
    }
  }
  if (reset.sampling.num_top_logprobs > kMaxTopLogprobs || reset.num_prompt_tokens < 0) {
    return bad_plan("num_top_logprobs " + std::to_string(reset.sampling.num_top_logprobs) +
                    " or num_prompt_tokens " + std::to_string(reset.num_prompt_tokens));
  }
  return ok_status();
}

Status SlotTable::apply(const SlotUpdate& update) {
  if (update.slot < 0 || update.slot >= limits_.num_slots) {
    return bad_plan("slot " + std::to_string(update.slot) + " of " +
                    std::to_string(limits_.num_slots));
  }
  Slot& slot = slots_[static_cast<size_t>(update.slot)];
  if (update.reset) {
    HADAL_RETURN_IF_ERROR(check_reset(*update.reset));
    slot.pages.clear();
    slot.sampling = update.reset->sampling;
    slot.num_prompt_tokens = update.reset->num_prompt_tokens;
  }
  const auto most = static_cast<size_t>(limits_.max_context_tokens / kPageTokens + 1);
  for (const PageId page : update.append_pages) {
    if (page < 0 || page >= limits_.num_pages || slot.pages.size() == most) {
      return bad_plan("page " + std::to_string(page) + " as number " +
                      std::to_string(slot.pages.size()) + " of slot " +
                      std::to_string(update.slot));
    }
    slot.pages.push_back(page);
  }
  return ok_status();
}

Status SlotTable::check_row(const PlanRow& row) const {
  const std::string who = "row of slot " + std::to_string(row.slot);
  if (row.slot < 0 || row.slot >= limits_.num_slots) {
    return bad_plan(who + ", expected a slot below " + std::to_string(limits_.num_slots));
  }
  const int64_t end = static_cast<int64_t>(row.kv_begin) + row.num_tokens;
  const int64_t room = static_cast<int64_t>(at(row.slot).pages.size()) * kPageTokens;
  if (row.kv_begin < 0 || row.num_tokens < 1 || end > room || end > limits_.max_context_tokens) {
    return bad_plan(who + ": tokens " + std::to_string(row.kv_begin) + " to " +
                    std::to_string(end) + ", its pages have room for " + std::to_string(room));
  }
  if (row.num_logits < 0 || row.num_logits > row.num_tokens || (row.sample && row.num_logits < 1)) {
    return bad_plan(who + ": num_logits " + std::to_string(row.num_logits) + " of " +
                    std::to_string(row.num_tokens) + " tokens");
  }
  if (row.sample && row.form == AttentionForm::generated && row.num_logits > 1) {
    return bad_plan(who + ": " + std::to_string(row.num_logits - 1) +
                    " drafts, but nothing here verifies drafts");
  }
  if (row.form != AttentionForm::prompt && row.form != AttentionForm::generated) {
    return bad_plan(who + ": unknown attention form");
  }
  return ok_status();
}

}  // namespace hadal
