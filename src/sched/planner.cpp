// plan_next(): which rows the next step has. Every running decode first, then prefill chunks of
// running sequences, then new sequences, all within the step's limits.
//
// A row's token may not be known on the host yet (kTokenFromDevice); everything else of a plan
// depends only on counts, so planning a step ahead needs no result.
#include <algorithm>

#include <hadal/base/check.h>

#include "scheduler_impl.h"

namespace hadal {
namespace {

constexpr int32_t kMaxRetractions = 2;   ///< after that others are retracted first
constexpr double kReserveDecay = 0.995;  ///< per step, towards the floor: half in 140 steps
constexpr double kReserveFloor = 0.14;   ///< of the initial ratio
constexpr double kReserveRise = 0.2;     ///< per plan that had to retract

bool wants_history(const SamplingParams& params) {
  return params.frequency_penalty != 0.0F || params.presence_penalty != 0.0F ||
         params.repetition_penalty != 1.0F || params.min_new_tokens > 0;
}

}  // namespace

double initial_reserve_ratio(double conservativeness) {
  return std::clamp(0.7 * conservativeness, 0.0, 1.0);
}

std::optional<BatchPlan> Scheduler::Impl::plan_next() {
  if (static_cast<int32_t>(in_flight.size()) >= config.max_steps_in_flight)
    return std::nullopt;
  const bool is_short = count_decode_pages() > num_available();
  if (is_short) {
    // A sequence in flight cannot be retracted: its rows still write to its pages.
    if (!in_flight.empty())
      return std::nullopt;
    make_room_for_decodes();
  }
  BatchPlan plan;
  plan.step_id = next_step_id;
  in_flight.emplace_back().step_id = next_step_id;
  StepBudget budget;
  budget.step_tokens = config.max_step_tokens;
  budget.prefill_tokens = config.max_prefill_tokens;
  budget.scoring_logits = config.max_step_logits - max_running;
  plan_decodes(plan, budget);
  for (Sequence* sequence : running) {
    if (sequence->needs_row() && sequence->is_prefilling())
      plan_chunk(*sequence, plan, budget);
  }
  if (!is_short)
    admit(plan, budget);
  if (plan.rows.empty()) {
    in_flight.pop_back();
    return std::nullopt;
  }
  ++next_step_id;
  const double floor = initial_reserve_ratio(config.conservativeness) * kReserveFloor;
  reserve_ratio = floor + (reserve_ratio - floor) * kReserveDecay;
  return plan;
}

int32_t Scheduler::Impl::count_decode_pages() const {
  int32_t count = 0;
  for (const Sequence* sequence : running) {
    if (sequence->needs_row() && !sequence->is_prefilling() &&
        sequence->computed == static_cast<int32_t>(sequence->pages.size()) * kPageTokens)
      ++count;
  }
  return count;
}

void Scheduler::Impl::make_room_for_decodes() {
  reserve_ratio = std::min(1.0, reserve_ratio + kReserveRise);
  while (count_decode_pages() > num_available())
    retract(choose_victim());
}

/// The newest (of the least urgent, under policy `priority`), but never the oldest: alone it has
/// every page, so it always finishes and then the next is the oldest.
Sequence& Scheduler::Impl::choose_victim() const {
  HADAL_CHECK(running.size() > 1, "scheduler: the oldest sequence does not fit in the pool");
  Sequence* victim = nullptr;
  for (size_t i = running.size() - 1; i > 0; --i) {
    Sequence* candidate = running[i];
    if (victim == nullptr) {
      victim = candidate;
      continue;
    }
    const bool is_spent = victim->num_retractions >= kMaxRetractions;
    const bool candidate_is_spent = candidate->num_retractions >= kMaxRetractions;
    if (is_spent != candidate_is_spent) {
      victim = is_spent ? candidate : victim;
    } else if (config.policy == SchedulePolicy::priority &&
               candidate->request.priority < victim->request.priority) {
      victim = candidate;
    }
  }
  return *victim;
}

void Scheduler::Impl::plan_decodes(BatchPlan& plan, StepBudget& budget) {
  for (Sequence* sequence : running) {
    if (!sequence->needs_row() || sequence->is_prefilling())
      continue;
    if (sequence->computed == static_cast<int32_t>(sequence->pages.size()) * kPageTokens) {
      sequence->pages.push_back(take_page());
      SlotUpdate update;
      update.slot = sequence->slot;
      update.append_pages.push_back(sequence->pages.back());
      plan.slot_updates.push_back(std::move(update));
    }
    add_rows(*sequence, sequence->computed, sequence->computed + 1, plan);
    --budget.step_tokens;
  }
  HADAL_CHECK(budget.step_tokens >= 0, "scheduler: more decodes than max_step_tokens");
}

void Scheduler::Impl::plan_chunk(Sequence& sequence, BatchPlan& plan, StepBudget& budget) {
  const int32_t end = chunk_end(sequence, sequence.computed, budget);
  if (end <= sequence.computed)
    return;
  // Prompt logprobs across a chunk boundary need the last logits of the chunk before again.
  const bool scores = sequence.scores_prompt();
  const int32_t begin = scores && sequence.computed > 0 ? sequence.computed - 1 : sequence.computed;
  add_rows(sequence, begin, end, plan);
  budget.step_tokens -= end - begin;
  budget.prefill_tokens -= end - begin;
  if (scores)
    budget.scoring_logits -= end - begin;
  budget.has_prefill = true;
}

/// Where a chunk that starts after `computed` tokens ends; `computed` when there is no room for it.
int32_t Scheduler::Impl::chunk_end(const Sequence& sequence,
                                   int32_t computed,
                                   const StepBudget& budget) const {
  const int32_t remaining = sequence.num_known() - computed;
  int32_t room = std::min(budget.step_tokens, budget.prefill_tokens);
  if (config.chunked_prefill_tokens > 0) {
    room = std::min(room, config.chunked_prefill_tokens);
  } else if (remaining > room) {
    // Unchunked prompts wait for a step of their own, which max_prefill_tokens does not bound.
    room = budget.has_prefill ? 0 : budget.step_tokens;
  }
  if (sequence.scores_prompt()) {
    room = std::min(room, budget.scoring_logits);
    if (computed > 0)
      --room;
  }
  return computed + std::clamp(room, 0, remaining);
}

void Scheduler::Impl::add_rows(Sequence& sequence, int32_t begin, int32_t end, BatchPlan& plan) {
  const bool is_last = end == sequence.num_planned();
  const bool samples = is_last && sequence.request.max_new_tokens > 0;
  const int32_t prompt_end = std::min(end, sequence.num_prompt);
  if (begin < prompt_end) {
    PlanRow row;
    row.slot = sequence.slot;
    row.kv_begin = begin;
    row.num_tokens = prompt_end - begin;
    row.form = AttentionForm::prompt;
    row.sample = samples && prompt_end == end;
    row.num_logits = sequence.scores_prompt() ? row.num_tokens : (row.sample ? 1 : 0);
    add_row(sequence, row, plan);
  }
  if (end > sequence.num_prompt) {
    PlanRow row;
    row.slot = sequence.slot;
    row.kv_begin = std::max(begin, sequence.num_prompt);
    row.num_tokens = end - row.kv_begin;
    row.form = AttentionForm::generated;
    row.sample = samples;
    row.num_logits = samples ? 1 : 0;
    add_row(sequence, row, plan);
  }
}

void Scheduler::Impl::add_row(Sequence& sequence, const PlanRow& row, BatchPlan& plan) {
  const int32_t end = row.kv_begin + row.num_tokens;
  plan.rows.push_back(row);
  for (int32_t i = row.kv_begin; i < end; ++i)
    plan.tokens.push_back(i < sequence.num_known() ? sequence.tokens[static_cast<size_t>(i)]
                                                   : kTokenFromDevice);
  PlannedStep& step = in_flight.back();
  const bool ends_scoring = sequence.request.max_new_tokens == 0 && end == sequence.num_prompt;
  step.rows.push_back({row.slot, end, row.num_logits, row.sample, ends_scoring});
  sequence.computed = end;
  sequence.last_step = step.step_id;
  if (row.sample)
    ++sequence.num_pending_samples;
}

PageId Scheduler::Impl::take_page() {
  if (pages.num_free() == 0)
    cache.evict(1);
  return pages.allocate();
}

void Scheduler::Impl::place(Sequence& sequence, const PrefixMatch& match, BatchPlan& plan) {
  const std::string& name_space = sequence.request.cache_namespace;
  const int32_t num_pages = pages_for(sequence.num_known());
  if (config.enable_radix_cache) {
    sequence.lease = cache.acquire(name_space, match);
    cache.append_pages(sequence.lease, sequence.pages);
    if (match.tail != kNoPage)
      in_flight.back().copy_sources.push_back(cache.acquire_tail(name_space, match));
  }
  while (static_cast<int32_t>(sequence.pages.size()) < num_pages)
    sequence.pages.push_back(take_page());
  if (match.tail != kNoPage)
    plan.page_copies.push_back(
        {match.tail, sequence.pages[static_cast<size_t>(match.num_pages)], match.num_tail_tokens});
  sequence.computed = match.num_tokens();
  sequence.retired = match.num_pages * kPageTokens;
  sequence.publishes = config.enable_radix_cache;
  sequence.slot = free_slots.back();
  free_slots.pop_back();
  slots[static_cast<size_t>(sequence.slot)] = &sequence;

  SlotUpdate update;
  update.slot = sequence.slot;
  update.reset.emplace();
  update.reset->sampling = sequence.request.sampling;
  if (wants_history(sequence.request.sampling))
    update.reset->history = sequence.tokens;
  update.reset->num_prompt_tokens = sequence.num_prompt;
  update.append_pages = sequence.pages;
  plan.slot_updates.push_back(std::move(update));

  sequence.state = SequenceState::running;
  waiting.erase(sequence.id);
  num_waiting_tokens -= sequence.num_prompt;
  const auto younger = std::find_if(running.begin(), running.end(), [&](const Sequence* other) {
    return other->id > sequence.id;
  });
  running.insert(younger, &sequence);
  if (!sequence.was_admitted) {
    sequence.was_admitted = true;
    admitted.push_back(sequence.id);
    sequence.num_cached_tokens = match.num_tokens();
    num_cached_tokens += match.num_tokens();
    num_prompt_tokens += sequence.num_prompt;
  }
}

}  // namespace hadal
