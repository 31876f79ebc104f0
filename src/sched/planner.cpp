// plan_next(): which rows the next step has. Every running decode first, then prefill chunks of
// running sequences, then new sequences, all within the step's limits.
//
// A row's token may not be known on the host yet (kTokenFromDevice); everything else of a plan
// depends only on counts, so planning a step ahead needs no result.
#include <algorithm>
#include <limits>
#include <utility>

#include <hadal/base/check.h>

#include "scheduler_impl.h"

namespace hadal {
namespace {

constexpr double kReserveDecay = 0.995;   ///< per step, towards the floor: half in 140 steps
constexpr double kReserveFloor = 0.14;    ///< of the initial ratio
constexpr double kReserveRise = 0.2;      ///< per plan that had to retract
constexpr int32_t kMinPrefill = 4;        ///< tokens that every step may prefill, however slow
constexpr int32_t kModestPrefill = 64;    ///< the same where it costs hardly more; tried unseen
constexpr double kTryLarger = 1.25;       ///< times the largest chunk known to be in time
constexpr int32_t kFarBelow = 10;         ///< times: a chunk too small for any efficiency
constexpr double kPressureToHold = 0.15;  ///< prompts a decode up to which decodes come first
constexpr double kPressureToLift = 0.5;   ///< and from which on they don't
constexpr double kHardlyDearer = 1.1;     ///< times the least that a prompt gets
constexpr double kHardlyLonger = 1.02;    ///< times a step that carries a prompt which goes first
constexpr int32_t kReservedTokens = 8192;
constexpr int32_t kMinChunk = 16;  ///< worth its fixed cost

bool wants_history(const SamplingParams& params) {
  return params.frequency_penalty != 0.0F || params.presence_penalty != 0.0F ||
         params.repetition_penalty != 1.0F || params.min_new_tokens > 0;
}

}  // namespace

double initial_reserve_ratio(double conservativeness) {
  return std::clamp(0.7 * conservativeness, 0.0, 1.0);
}

bool Scheduler::Impl::plan_next(BatchPlan& plan) {
  recycle(plan);
  if (static_cast<int32_t>(in_flight.size()) >= config.max_steps_in_flight)
    return false;
  const bool is_short = count_decode_pages() > num_available();
  if (is_short) {
    // A sequence in flight cannot be retracted: its rows still write to its pages.
    if (!in_flight.empty())
      return false;
    make_room_for_decodes();
  }
  plan.step_id = next_step_id;
  if (!spare_steps.empty()) {
    in_flight.push_back(std::move(spare_steps.back()));
    spare_steps.pop_back();
  } else {
    in_flight.emplace_back();
  }
  in_flight.back().step_id = next_step_id;
  StepBudget budget = make_budget();
  plan_decodes(plan, budget);
  plan_prefills(plan, budget);
  pages_back_left = config.max_pages_back_per_step;
  if (!is_short) {
    admit(plan, budget);
    bring_back_ahead(plan);
  }
  in_flight.back().work = budget.work;
  if (plan.rows.empty()) {
    spare_steps.push_back(std::move(in_flight.back()));
    in_flight.pop_back();
    return false;  // moves that were decided stay with the cache for the next plan
  }
  cache.take_moves(plan.page_moves);
  ++next_step_id;
  const double floor = initial_reserve_ratio(config.conservativeness) * kReserveFloor;
  reserve_ratio = floor + (reserve_ratio - floor) * kReserveDecay;
  return true;
}

/// Empties a plan and keeps its memory.
void Scheduler::Impl::recycle(BatchPlan& plan) {
  for (SlotUpdate& update : plan.slot_updates) {
    if (spare_page_lists.size() < slots.size() && update.append_pages.capacity() > 0) {
      update.append_pages.clear();
      spare_page_lists.push_back(std::move(update.append_pages));
    }
  }
  plan.step_id = 0;
  plan.slot_updates.clear();
  plan.page_moves.clear();
  plan.page_copies.clear();
  plan.rows.clear();
  plan.tokens.clear();
}

StepBudget Scheduler::Impl::make_budget() const {
  StepBudget budget;
  budget.step_tokens = config.max_step_tokens;
  budget.prefill_tokens = config.max_prefill_tokens;
  if (config.chunked_prefill_tokens > 0)
    budget.prefill_tokens = std::min(budget.prefill_tokens, config.chunked_prefill_tokens);
  budget.scoring_logits = config.max_step_logits - max_running;
  bound_step_time(budget);
  return budget;
}

void Scheduler::Impl::bound_step_time(StepBudget& budget) const {
  if (config.chunked_prefill_tokens <= 0 || !step_time.is_ready())
    return;
  int32_t num_decodes = 0;
  for (const Sequence* sequence : running)
    num_decodes += sequence->needs_row() && !sequence->is_prefilling() ? 1 : 0;
  if (num_decodes == 0)
    return;
  if (config.target_step_ms > 0.0) {
    const double left = config.target_step_ms * 1e-3 - step_time.decode_seconds(num_decodes);
    budget.target_seconds = std::max(1e-9, left);
    if (left <= 0.0)
      budget.least_prefill_tokens = kModestPrefill;
  } else if (config.max_decode_stretch > 0.0) {
    bound_stretch(num_decodes, budget);
  }
}

/// Prompts that prefill alone holds up: those being computed, and the waiting ones for which there
/// is a slot and, as far as is known, room.
int32_t Scheduler::Impl::count_pending_prompts() const {
  const auto num_prefilling = std::count_if(running.begin(), running.end(), [](const auto* other) {
    return other->needs_row() && other->is_prefilling();
  });
  const int32_t num_running = static_cast<int32_t>(running.size());
  const int32_t num_admissible =
      next_step_id < admission_blocked_until
          ? 0
          : std::min(static_cast<int32_t>(waiting.size()), max_running - num_running);
  return static_cast<int32_t>(num_prefilling) + num_admissible;
}

/// The step may take max_decode_stretch times its decodes, and longer where that bound protects few
/// at the cost of many: it goes as the prompts that wait for prefill grow from a seventh of the
/// decodes to half as many. And where the bound leaves next to no prefill (few decodes are fast,
/// while any prefill reads most experts) it only draws the disturbance out; then a chunk that is
/// half as efficient as a full one is allowed.
void Scheduler::Impl::bound_stretch(int32_t num_decodes, StepBudget& budget) const {
  const double pressure = static_cast<double>(count_pending_prompts()) / num_decodes;
  if (pressure >= kPressureToLift)
    return;
  const double extra = (config.max_decode_stretch - 1.0) * step_time.decode_seconds(num_decodes);
  const double lift =
      std::clamp((pressure - kPressureToHold) / (kPressureToLift - kPressureToHold), 0.0, 1.0);
  const int32_t most = budget.prefill_tokens;
  StepWork full;
  full.add_chunk(0, most);
  budget.target_seconds =
      std::max(1e-9, extra + lift * std::max(0.0, step_time.prefill_seconds(full) - extra));
  const int32_t within = step_time.tokens_within(extra, {}, 0, most);
  const int32_t efficient = step_time.efficient_tokens(num_decodes, most);
  if (within < efficient / kFarBelow)
    budget.least_prefill_tokens = std::max(kModestPrefill, efficient);
  // Larger chunks than have been seen to be in time are tried by small steps: what lies between two
  // known sizes is guessed too low where most of the cost is in the first tokens.
  const double confirmed = step_time.confirmed_tokens(budget.target_seconds);
  budget.bounded_prefill_tokens = std::max(
      {budget.least_prefill_tokens, kModestPrefill, static_cast<int32_t>(kTryLarger * confirmed)});
}

/// Of several busy shares the one that has had least is not held back for the decodes of the
/// others.
bool Scheduler::Impl::is_bound(const Sequence& sequence, const StepBudget& budget) const {
  return budget.target_seconds > 0.0 &&
         (config.target_step_ms > 0.0 || shares.num_busy() < 2 || !shares.is_least(sequence.share));
}

/// Chunks of running sequences: by age, or, with several shares, the least served first.
void Scheduler::Impl::plan_prefills(BatchPlan& plan, StepBudget& budget) {
  candidates.clear();
  for (Sequence* sequence : running) {
    if (sequence->needs_row() && sequence->is_prefilling())
      candidates.push_back(sequence);
  }
  if (candidates.empty())
    return;
  if (shares.num_busy() > 1) {
    std::sort(candidates.begin(), candidates.end(), [&](const Sequence* a, const Sequence* b) {
      const double a_served = shares.served(a->share);
      const double b_served = shares.served(b->share);
      return a_served != b_served ? a_served < b_served : a->id < b->id;
    });
  }
  for (Sequence* sequence : candidates) {
    const int32_t kept =
        std::min(budget.prefill_tokens, count_tokens_waiting_before(sequence->share));
    budget.prefill_tokens -= kept;
    plan_chunk(*sequence, plan, budget);
    budget.prefill_tokens += kept;
  }
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

/// The newest (of the least urgent, under policy `priority`) that has not been retracted too often,
/// but never the oldest of those: keeps_guarantee() has seen that it and the spent ones all fit.
Sequence& Scheduler::Impl::choose_victim() const {
  Sequence* oldest = nullptr;
  Sequence* victim = nullptr;
  for (Sequence* candidate : running) {
    if (candidate->is_spent())
      continue;
    if (oldest == nullptr) {
      oldest = candidate;
      continue;
    }
    if (victim == nullptr || config.policy != SchedulePolicy::priority ||
        candidate->request.priority <= victim->request.priority)
      victim = candidate;
  }
  HADAL_CHECK(victim != nullptr, "scheduler: the oldest sequence does not fit in the pool");
  return *victim;
}

void Scheduler::Impl::plan_decodes(BatchPlan& plan, StepBudget& budget) {
  const auto is_decode = [](const Sequence* sequence) {
    return sequence->needs_row() && !sequence->is_prefilling();
  };
  auto num_left = static_cast<int32_t>(std::count_if(running.begin(), running.end(), is_decode));
  int32_t num_spare_pages = num_available() - count_decode_pages();
  for (Sequence* sequence : running) {
    if (!is_decode(sequence))
      continue;
    const int32_t num_drafts = num_drafts_to_verify(*sequence, budget, --num_left, num_spare_pages);
    const int32_t end = sequence->computed + 1 + num_drafts;
    const bool needs_page =
        sequence->computed == static_cast<int32_t>(sequence->pages.size()) * kPageTokens;
    for (bool is_first = needs_page; static_cast<int32_t>(sequence->pages.size()) < pages_for(end);
         is_first = false) {
      num_spare_pages -= is_first ? 0 : 1;
      sequence->pages.push_back(take_page());
      add_update(sequence->slot, plan).append_pages.push_back(sequence->pages.back());
    }
    add_decode_row(*sequence, num_drafts, plan);
    budget.step_tokens -= 1 + num_drafts;
    budget.scoring_logits -= num_drafts;
    budget.work.num_decodes += 1 + num_drafts;
  }
  HADAL_CHECK(budget.step_tokens >= 0, "scheduler: more decodes than max_step_tokens");
}

/// As many of the sequence's drafts as there is room for beside the decodes that are left, and that
/// can become part of its answer. They take spare pages only, and never make anybody give way.
int32_t Scheduler::Impl::num_drafts_to_verify(const Sequence& sequence,
                                              const StepBudget& budget,
                                              int32_t num_decodes_left,
                                              int32_t num_spare_pages) const {
  if (sequence.drafts.empty() || sequence.num_pending_samples > 0 ||
      sequence.computed + 1 != sequence.num_known())
    return 0;
  const auto held = static_cast<int32_t>(sequence.pages.size());
  const int32_t own_page = sequence.computed == held * kPageTokens ? 1 : 0;
  const int32_t room_in_pages =
      (held + own_page + std::max(0, num_spare_pages)) * kPageTokens - sequence.computed - 1;
  const int32_t most = std::min({static_cast<int32_t>(sequence.drafts.size()),
                                 sequence.num_remaining() - 1,
                                 budget.step_tokens - 1 - num_decodes_left,
                                 budget.scoring_logits,
                                 room_in_pages});
  return std::max(0, most);
}

void Scheduler::Impl::add_decode_row(Sequence& sequence, int32_t num_drafts, BatchPlan& plan) {
  const int32_t begin = sequence.computed;
  if (num_drafts == 0) {
    add_rows(sequence, begin, begin + 1, plan);
  } else {
    PlanRow row;
    row.slot = sequence.slot;
    row.kv_begin = begin;
    row.num_tokens = 1 + num_drafts;
    row.form = AttentionForm::generated;
    row.sample = true;
    row.num_logits = row.num_tokens;
    sequence.drafts.resize(static_cast<size_t>(num_drafts));
    add_row(sequence, row, plan);
  }
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
  const int32_t prompt_end = std::clamp(sequence.num_prompt, begin, end);
  budget.work.add_chunk(begin, prompt_end, form_of(sequence, begin, end));
  budget.work.add_chunk(prompt_end, end, AttentionForm::generated);
  if (shares.num_busy() > 1 && step_time.is_ready() && shares.is_least(sequence.share))
    budget.leading_seconds = kHardlyLonger * step_time.prefill_seconds(budget.work);
}

/// Tokens after `computed`, up to `most`, that the step's target leaves. What one chunk leaves is
/// not used up by a rest that costs more than it brings; but the first chunk is never left out, and
/// has as many tokens as cost hardly more than the few that it gets at least.
int32_t Scheduler::Impl::bounded_room(int32_t computed,
                                      int32_t most,
                                      const StepBudget& budget) const {
  const int32_t so_far = budget.work.prefill_tokens;
  const int32_t room = std::max(0, std::min(most, budget.bounded_prefill_tokens - so_far));
  int32_t in_time = step_time.tokens_within(budget.target_seconds, budget.work, computed, room);
  if (so_far > 0 && in_time < std::min(kMinChunk, most))
    in_time = 0;
  if (so_far == 0 && in_time < kMinChunk) {
    StepWork few;
    const int32_t count = std::min(room, std::max(in_time, kMinPrefill));
    few.add_chunk(
        computed, computed + count, cheaper_form(computed, count, config.absorbed_chunk_tokens));
    in_time = step_time.tokens_within(kHardlyDearer * step_time.prefill_seconds(few),
                                      {},
                                      computed,
                                      std::min(room, kModestPrefill));
  }
  return std::min(room, std::max(in_time, budget.least_prefill_tokens - so_far));
}

/// Where a chunk that starts after `computed` tokens ends; `computed` when there is no room for it.
int32_t Scheduler::Impl::chunk_end(const Sequence& sequence,
                                   int32_t computed,
                                   const StepBudget& budget) const {
  const int32_t remaining = sequence.num_known() - computed;
  int32_t room = std::min(budget.step_tokens, budget.prefill_tokens);
  if (config.chunked_prefill_tokens <= 0) {
    // Unchunked prompts wait for a step of their own, which max_prefill_tokens does not bound.
    if (remaining > room)
      room = budget.work.prefill_tokens > 0 ? 0 : budget.step_tokens;
  } else if (budget.leading_seconds > 0.0 && !shares.is_least(sequence.share)) {
    // Others ride along with the prompt of the share that goes first, and don't hold it up.
    room = step_time.tokens_within(
        budget.leading_seconds, budget.work, computed, std::max(0, std::min(room, remaining)));
  } else if (is_bound(sequence, budget)) {
    const int32_t repeated = sequence.scores_prompt() && computed > 0 ? 1 : 0;
    room = bounded_room(computed, std::min(room, remaining + repeated), budget);
  }
  if (sequence.scores_prompt()) {
    room = std::min(room, budget.scoring_logits);
    if (computed > 0)
      --room;
  }
  return computed + std::clamp(room, 0, remaining);
}

/// Of the tokens of a chunk that belong to the prompt. One that is scored has logits for each of
/// them, which would make a generated row one that verifies drafts.
AttentionForm Scheduler::Impl::form_of(const Sequence& sequence, int32_t begin, int32_t end) const {
  if (begin >= sequence.num_prompt)
    return AttentionForm::generated;
  const int32_t count = std::min(end, sequence.num_prompt) - begin;
  return cheaper_form(begin, count, sequence.scores_prompt() ? 0 : config.absorbed_chunk_tokens);
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
    row.form = form_of(sequence, begin, end);
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
  const int32_t num_drafts =
      row.sample && row.form == AttentionForm::generated && row.num_logits > 1 ? row.num_logits - 1
                                                                               : 0;
  for (int32_t i = row.kv_begin; i < end - num_drafts; ++i)
    plan.tokens.push_back(i < sequence.num_known() ? sequence.tokens[static_cast<size_t>(i)]
                                                   : kTokenFromDevice);
  if (num_drafts > 0)
    plan.tokens.insert(plan.tokens.end(), sequence.drafts.begin(), sequence.drafts.end());
  PlannedStep& step = in_flight.back();
  const bool ends_scoring = sequence.request.max_new_tokens == 0 && end == sequence.num_prompt;
  step.rows.push_back({row.slot, end, row.num_logits, num_drafts, row.sample, ends_scoring});
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
    const int32_t priority = sequence.request.priority;
    sequence.lease = cache.acquire(name_space, match, priority);
    cache.append_pages(sequence.lease, sequence.pages);
    if (match.tail != kNoNode)
      in_flight.back().copy_sources.push_back(cache.acquire_tail(name_space, match, priority));
  }
  while (static_cast<int32_t>(sequence.pages.size()) < num_pages)
    sequence.pages.push_back(take_page());
  if (match.tail != kNoNode)
    plan.page_copies.push_back({cache.page_of(match.tail),
                                sequence.pages[static_cast<size_t>(match.num_pages)],
                                match.num_tail_tokens});
  // Room for what comes, so that decode does not allocate; longer answers grow it rarely.
  const int32_t expected =
      sequence.num_known() + std::min(sequence.num_remaining(), kReservedTokens);
  sequence.tokens.reserve(static_cast<size_t>(expected));
  sequence.pages.reserve(static_cast<size_t>(pages_for(expected)));
  sequence.computed = match.num_tokens();
  sequence.retired = match.num_pages * kPageTokens;
  sequence.publishes = config.enable_radix_cache;
  sequence.slot = free_slots.back();
  free_slots.pop_back();
  slots[static_cast<size_t>(sequence.slot)] = &sequence;

  SlotUpdate& update = add_update(sequence.slot, plan);
  update.reset.emplace();
  update.reset->sampling = sequence.request.sampling;
  if (wants_history(sequence.request.sampling))
    update.reset->history = sequence.tokens;
  update.reset->num_prompt_tokens = sequence.num_prompt;
  update.append_pages.assign(sequence.pages.begin(), sequence.pages.end());

  dequeue(sequence);
  sequence.state = SequenceState::running;
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
    shares.charge(sequence.share,
                  FairShares::kInputCost * (sequence.num_prompt - match.num_tokens()));
  }
}

SlotUpdate& Scheduler::Impl::add_update(SlotId slot, BatchPlan& plan) {
  SlotUpdate& update = plan.slot_updates.emplace_back();
  update.slot = slot;
  if (!spare_page_lists.empty()) {
    update.append_pages = std::move(spare_page_lists.back());
    spare_page_lists.pop_back();
  }
  return update;
}

}  // namespace hadal
