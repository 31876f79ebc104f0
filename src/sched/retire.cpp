// commit(): a step has run. Its tokens become events, ended sequences give their pages back, and
// whole prompt pages of running ones enter the cache.
//
// The one rule: pages, leases and the slot of a sequence that ended or was cancelled stay where
// they are until the last step that was submitted with it has retired; the device may still write.
#include <algorithm>
#include <utility>

#include <hadal/base/check.h>

#include "scheduler_impl.h"

namespace hadal {

void Scheduler::Impl::commit(const StepResult& result, double step_seconds) {
  HADAL_CHECK(!in_flight.empty(), "scheduler: commit without a step in flight");
  PlannedStep step = std::move(in_flight.front());
  in_flight.erase(in_flight.begin());
  HADAL_CHECK(step.step_id == result.step_id, "scheduler: results out of order");
  if (step_seconds > 0.0) {
    step_time.observe(step.work, step_seconds);
    if (step.plan_delay_seconds > 0.0)
      plan_pace.observe(step.plan_delay_seconds, step_seconds);
  }
  retired_step_id = step.step_id;
  for (Lease& lease : step.copy_sources)
    cache.release(lease);
  size_t next_result = 0;
  for (const PlannedStep::Row& row : step.rows) {
    const RowResult* row_result = nullptr;
    if (row.num_logits > 0) {
      HADAL_CHECK(next_result < result.rows.size(), "scheduler: fewer results than rows");
      row_result = &result.rows[next_result++];
      HADAL_CHECK(row_result->slot == row.slot, "scheduler: a result is for another slot");
    }
    commit_row(row, row_result);
  }
  HADAL_CHECK(next_result == result.rows.size(), "scheduler: more results than rows");
  for (const PlannedStep::Row& row : step.rows) {
    Sequence* sequence = slots[static_cast<size_t>(row.slot)];
    if (sequence == nullptr)
      continue;  // released by an earlier row of this step
    if (sequence->state == SequenceState::running)
      publish(*sequence);
    else if (!is_in_flight(*sequence))
      release(*sequence);
  }
  step.rows.clear();
  step.copy_sources.clear();
  spare_steps.push_back(std::move(step));
}

void Scheduler::Impl::commit_row(const PlannedStep::Row& row, const RowResult* result) {
  Sequence& sequence = *slots[static_cast<size_t>(row.slot)];
  sequence.retired = std::max(sequence.retired, row.kv_end - row.num_drafts);
  if (row.samples)
    --sequence.num_pending_samples;
  if (result == nullptr)
    return;
  if (result->has_nan) {
    sequence.is_kv_valid = false;
    if (sequence.state == SequenceState::running)
      fail(sequence, "the model's output was not a number");
    return;
  }
  if (sequence.state != SequenceState::running)
    return;  // ended while this row was in flight: nothing follows the terminal event
  if (sequence.scores_prompt()) {
    sequence.prompt_logprobs.insert(sequence.prompt_logprobs.end(),
                                    result->prompt_logprobs.begin(),
                                    result->prompt_logprobs.end());
    sequence.prompt_top_logprobs.insert(
        sequence.prompt_top_logprobs.end(), result->prompt_top.begin(), result->prompt_top.end());
  }
  if (row.num_drafts > 0)
    accept_drafts(sequence, row, *result);
  else if (row.samples)
    append_token(sequence, *result);
  if (row.samples && sequence.state == SequenceState::running)
    keep_drafts(sequence, *result);
  if (row.ends_scoring)
    finish(sequence, make_event(sequence), FinishReason::length);
}

TokenEvent Scheduler::Impl::make_event(Sequence& sequence) {
  TokenEvent event;
  event.id = sequence.id;
  event.num_cached_tokens = sequence.num_cached_tokens;
  event.prompt_logprobs = std::exchange(sequence.prompt_logprobs, {});
  event.prompt_top_logprobs = std::exchange(sequence.prompt_top_logprobs, {});
  sequence.has_sent_event = true;
  return event;
}

/// The sequence goes on after the accepted drafts and the token that was sampled behind them; the
/// positions of the rejected ones are computed again. One event a token, as without drafts.
void Scheduler::Impl::accept_drafts(Sequence& sequence,
                                    const PlannedStep::Row& row,
                                    const RowResult& result) {
  const int32_t num_accepted = result.num_accepted;
  HADAL_CHECK(num_accepted >= 0 && num_accepted <= row.num_drafts,
              "scheduler: " + std::to_string(num_accepted) + " of " +
                  std::to_string(row.num_drafts) + " drafts accepted");
  sequence.computed = row.kv_end - row.num_drafts + num_accepted;
  const std::vector<TokenId> drafts = std::exchange(sequence.drafts, {});
  for (size_t i = 0; i < static_cast<size_t>(num_accepted); ++i) {
    RowResult accepted;
    accepted.token = drafts[i];
    if (i < result.prompt_logprobs.size())
      accepted.logprob = result.prompt_logprobs[i].logprob;
    if (i < result.prompt_top.size())
      accepted.top = result.prompt_top[i];
    append_token(sequence, accepted);
    if (sequence.state != SequenceState::running)
      return;  // a draft was a stop token: what was accepted behind it is nobody's
    sequence.retired = std::max(sequence.retired, sequence.num_known());
  }
  append_token(sequence, result);
}

void Scheduler::Impl::keep_drafts(Sequence& sequence, const RowResult& result) {
  const size_t count =
      std::min(result.drafts.size(), static_cast<size_t>(std::max(0, config.max_draft_tokens)));
  sequence.drafts.assign(result.drafts.begin(),
                         result.drafts.begin() + static_cast<ptrdiff_t>(count));
  for (const TokenId token : sequence.drafts)
    HADAL_CHECK(token >= 0 && token < config.vocab_size,
                "scheduler: draft token " + std::to_string(token));
}

void Scheduler::Impl::append_token(Sequence& sequence, const RowResult& result) {
  HADAL_CHECK(result.token >= 0 && result.token < config.vocab_size,
              "scheduler: sampled token " + std::to_string(result.token));
  const GenerateRequest& request = sequence.request;
  sequence.tokens.push_back(result.token);
  shares.charge(sequence.share, FairShares::kOutputCost);
  TokenEvent event = make_event(sequence);
  event.token = result.token;
  if (request.sampling.num_top_logprobs >= 0) {
    event.logprob = TokenLogprob{result.token, result.logprob};
    event.top_logprobs = result.top;
  }
  const auto& stops = request.stop_token_ids;
  if (!request.ignore_stop_tokens && sequence.num_generated() > request.sampling.min_new_tokens &&
      std::find(stops.begin(), stops.end(), result.token) != stops.end()) {
    event.matched_stop_token = result.token;
    finish(sequence, std::move(event), FinishReason::stop);
  } else if (sequence.num_generated() == request.max_new_tokens) {
    finish(sequence, std::move(event), FinishReason::length);
  } else {
    events.push_back(std::move(event));
  }
}

void Scheduler::Impl::finish(Sequence& sequence, TokenEvent event, FinishReason reason) {
  event.finish = reason;
  events.push_back(std::move(event));
  if (sequence.state == SequenceState::waiting) {
    dequeue(sequence);
  } else {
    running.erase(std::find(running.begin(), running.end(), &sequence));
  }
  if (sequence.request.deadline != TimePoint::max())
    deadlines.erase({sequence.request.deadline, sequence.id});
  sequence.state = SequenceState::retiring;  // the caller releases it when nothing is in flight
}

void Scheduler::Impl::fail(Sequence& sequence, const std::string& error) {
  TokenEvent event = make_event(sequence);
  event.error = error;
  finish(sequence, std::move(event), FinishReason::error);
}

void Scheduler::Impl::publish(Sequence& sequence) {
  if (!sequence.publishes || (sequence.scores_prompt() && sequence.retired < sequence.num_prompt))
    return;  // a scored prompt writes the last position of a chunk twice
  const int32_t num_ready = std::min(sequence.retired, sequence.num_prompt) / kPageTokens;
  const std::span<const TokenId> tokens(sequence.tokens);
  for (int32_t i = sequence.lease.num_pages(); i < num_ready; ++i) {
    const auto key =
        tokens.subspan(static_cast<size_t>(i * kPageTokens), static_cast<size_t>(kPageTokens));
    // Someone else was first. The slot's page list cannot change under the device, so this copy
    // stays private until the sequence ends.
    if (cache.extend(sequence.lease, key, sequence.pages[static_cast<size_t>(i)]) ==
        Extension::present) {
      sequence.publishes = false;
      return;
    }
  }
}

void Scheduler::Impl::give_back_pages(Sequence& sequence) {
  auto next = static_cast<size_t>(sequence.lease.num_pages());
  if (sequence.lease.is_held() && sequence.is_kv_valid) {
    const auto num_valid = static_cast<size_t>(std::min(sequence.retired, sequence.num_known()));
    const std::span<const TokenId> tokens = std::span(sequence.tokens).first(num_valid);
    constexpr auto kPage = static_cast<size_t>(kPageTokens);
    for (; next * kPage < num_valid; ++next) {
      const auto key = tokens.subspan(next * kPage, std::min(kPage, num_valid - next * kPage));
      const PageId page = sequence.pages[next];
      if (cache.extend(sequence.lease, key, page) == Extension::adopted)
        continue;
      pages.free(page);
      if (key.size() == kPage)
        cache.follow(sequence.lease, key);
    }
  }
  for (; next < sequence.pages.size(); ++next)
    pages.free(sequence.pages[next]);
  if (sequence.lease.is_held()) {
    if (sequence.is_kv_valid)
      cache.release(sequence.lease);
    else
      cache.release_and_drop(sequence.lease);
  }
  sequence.pages.clear();
  sequence.computed = 0;
  sequence.retired = 0;
  admission_blocked_until = 0;
}

void Scheduler::Impl::retract(Sequence& sequence) {
  HADAL_CHECK(in_flight.empty() && sequence.num_pending_samples == 0,
              "scheduler: retraction of a sequence in flight");
  give_back_pages(sequence);
  slots[static_cast<size_t>(sequence.slot)] = nullptr;
  free_slots.push_back(sequence.slot);
  sequence.slot = -1;
  sequence.prompt_logprobs.clear();
  sequence.prompt_top_logprobs.clear();
  sequence.drafts.clear();
  sequence.match = PrefixMatch{};
  sequence.match_version = 0;
  running.erase(std::find(running.begin(), running.end(), &sequence));
  sequence.state = SequenceState::waiting;
  ++sequence.num_retractions;
  ++num_retractions;
  max_retractions_of_one = std::max(max_retractions_of_one, sequence.num_retractions);
  enqueue(sequence);
}

void Scheduler::Impl::release(Sequence& sequence) {
  give_back_pages(sequence);
  if (sequence.slot >= 0) {
    slots[static_cast<size_t>(sequence.slot)] = nullptr;
    free_slots.push_back(sequence.slot);
  }
  shares.close(sequence.share);
  sequences.erase(sequence.id);
}

}  // namespace hadal
