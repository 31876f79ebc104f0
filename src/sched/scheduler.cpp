// The scheduler's interface: submission, cancellation, statistics and the checks.
#include <algorithm>
#include <utility>

#include <hadal/base/check.h>
#include <hadal/sched/scheduler.h>

#include "scheduler_impl.h"

namespace hadal {
namespace {

Error invalid(std::string message) {
  return Error{ErrorCode::invalid_argument, std::move(message)};
}

}  // namespace

Scheduler::Impl::Impl(const SchedulerConfig& scheduler_config)
    : config(scheduler_config),
      pages(scheduler_config.num_pages),
      cache(pages, {scheduler_config.eviction, scheduler_config.num_host_pages}),
      step_time(scheduler_config.absorbed_chunk_tokens),
      slots(static_cast<size_t>(scheduler_config.max_slots), nullptr),
      reserve_ratio(initial_reserve_ratio(scheduler_config.conservativeness)) {
  HADAL_CHECK(config.num_pages > 0 && config.max_slots > 0, "scheduler: no pages or no slots");
  HADAL_CHECK(config.max_step_tokens >= 2, "scheduler: max_step_tokens below 2");
  HADAL_CHECK(config.max_steps_in_flight >= 1, "scheduler: max_steps_in_flight below 1");
  if (config.max_step_logits == 0)
    config.max_step_logits = config.max_step_tokens + config.max_slots;
  HADAL_CHECK(config.max_step_logits >= 3, "scheduler: max_step_logits below 3");
  // With every other sequence decoding, one prefill chunk still has two tokens (and logits): one
  // that is repeated when prompts are scored, and one of progress.
  max_running = std::min({config.max_running_requests,
                          config.max_slots,
                          config.max_step_tokens - 1,
                          config.max_step_logits - 2});
  HADAL_CHECK(max_running > 0, "scheduler: max_running_requests below 1");
  config.max_prefill_tokens = std::max(config.max_prefill_tokens, 2);
  if (config.chunked_prefill_tokens > 0)
    config.chunked_prefill_tokens = std::max(config.chunked_prefill_tokens, 2);
  for (SlotId slot = config.max_slots - 1; slot >= 0; --slot)
    free_slots.push_back(slot);
}

Scheduler::Impl::~Impl() {
  // Leases insist on being released.
  for (PlannedStep& step : in_flight) {
    for (Lease& lease : step.copy_sources)
      cache.release(lease);
  }
  for (auto& [id, sequence] : sequences) {
    if (sequence->lease.is_held())
      cache.release(sequence->lease);
  }
}

void Scheduler::Impl::advance_to(TimePoint time) {
  HADAL_CHECK(time >= now, "scheduler: time goes back");
  now = time;
  cache.set_now(now);
  while (!deadlines.empty() && deadlines.begin()->first <= now) {
    Sequence& late = *sequences.at(deadlines.begin()->second);
    end_sequence(late, FinishReason::deadline, "the request's deadline has passed");
  }
}

void Scheduler::Impl::end_sequence(Sequence& sequence,
                                   FinishReason reason,
                                   const std::string& error) {
  TokenEvent event = make_event(sequence);
  event.error = error;
  finish(sequence, std::move(event), reason);
  if (!is_in_flight(sequence))
    release(sequence);
}

bool Scheduler::Impl::is_in_flight(const Sequence& sequence) const {
  return sequence.last_step > retired_step_id;
}

/// P1 by counters: what sequences hold privately, what the tree holds and what is free are all.
void Scheduler::Impl::check_counts() const {
  int32_t num_private = 0;
  for (const Sequence* sequence : slots) {
    if (sequence != nullptr)
      num_private += static_cast<int32_t>(sequence->pages.size()) - sequence->lease.num_pages();
  }
  const int32_t sum = pages.num_free() + cache.num_cached() + cache.num_leased() + num_private;
  HADAL_CHECK(sum == pages.num_pages(),
              "P1: free + cached + leased is " + std::to_string(sum) + " of " +
                  std::to_string(pages.num_pages()));
}

Scheduler::Scheduler(const SchedulerConfig& config) : impl_(std::make_unique<Impl>(config)) {}

Scheduler::~Scheduler() = default;

Status Scheduler::validate(const SchedulerConfig& config, const GenerateRequest& request) {
  if (request.prompt.empty())
    return invalid("the prompt is empty, expected at least one token");
  if (request.max_new_tokens < 0)
    return invalid("max_new_tokens is " + std::to_string(request.max_new_tokens) +
                   ", expected 0 or more");
  for (const TokenId token : request.prompt) {
    if (token < 0 || token >= config.vocab_size)
      return invalid("prompt token " + std::to_string(token) + " is not in the vocabulary of " +
                     std::to_string(config.vocab_size));
  }
  if (!(request.share_weight > 0.0))
    return invalid("the weight of the share is " + std::to_string(request.share_weight) +
                   ", expected a positive number");
  const int64_t num_tokens = static_cast<int64_t>(request.prompt.size()) + request.max_new_tokens;
  const std::string needs = "the prompt has " + std::to_string(request.prompt.size()) +
                            " tokens and up to " + std::to_string(request.max_new_tokens) +
                            " are to be generated, together " + std::to_string(num_tokens);
  if (num_tokens > config.max_context_tokens)
    return invalid(needs + "; the context length is " + std::to_string(config.max_context_tokens));
  const int64_t capacity = int64_t{config.num_pages} * kPageTokens;
  if (num_tokens > capacity)
    return invalid(needs + "; the KV cache holds " + std::to_string(capacity));
  return ok_status();
}

void Scheduler::submit(RequestId id, GenerateRequest request) {
  HADAL_CHECK(impl_->sequences.empty() || impl_->sequences.rbegin()->first < id,
              "scheduler: ids must grow");
  auto owned = std::make_unique<Sequence>();
  Sequence& sequence = *owned;
  sequence.id = id;
  sequence.tokens = std::move(request.prompt);
  sequence.num_prompt = sequence.num_known();
  sequence.request = std::move(request);
  sequence.share = impl_->shares.open(sequence.request.share_key, sequence.request.share_weight);
  impl_->sequences.emplace(id, std::move(owned));
  impl_->enqueue(sequence);
  if (sequence.request.deadline != TimePoint::max())
    impl_->deadlines.emplace(sequence.request.deadline, id);
  impl_->admission_blocked_until = 0;
  if (sequence.request.max_new_tokens == 0 && !sequence.request.wants_prompt_logprobs) {
    // Nothing is asked of the model.
    impl_->finish(sequence, impl_->make_event(sequence), FinishReason::length);
    impl_->release(sequence);
  }
}

void Scheduler::cancel(RequestId id, std::string error) {
  const auto found = impl_->sequences.find(id);
  if (found == impl_->sequences.end() || found->second->state == SequenceState::retiring)
    return;
  impl_->end_sequence(
      *found->second, error.empty() ? FinishReason::cancelled : FinishReason::error, error);
}

void Scheduler::advance_to(TimePoint now) {
  impl_->advance_to(now);
}

std::optional<BatchPlan> Scheduler::plan_next() {
  BatchPlan plan;
  if (!plan_next(plan))
    return std::nullopt;
  return plan;
}

bool Scheduler::plan_next(BatchPlan& plan) {
  const bool is_planned = impl_->plan_next(plan);
#if HADAL_DEBUG_CHECKS
  impl_->check_counts();
#endif
  return is_planned;
}

double Scheduler::plan_delay_seconds(double host_seconds) {
  if (impl_->in_flight.size() != 1 || !impl_->step_time.is_ready())
    return 0.0;
  PlannedStep& step = impl_->in_flight.front();
  step.plan_delay_seconds =
      impl_->plan_pace.delay(impl_->step_time.known_seconds(step.work), host_seconds);
  return step.plan_delay_seconds;
}

void Scheduler::commit(const StepResult& result, double step_seconds) {
  impl_->commit(result, step_seconds);
#if HADAL_DEBUG_CHECKS
  impl_->check_counts();
#endif
}

void Scheduler::abandon(const std::string& error) {
  for (PlannedStep& step : impl_->in_flight) {
    for (Lease& lease : step.copy_sources)
      impl_->cache.release(lease);
  }
  impl_->in_flight.clear();
  impl_->retired_step_id = impl_->next_step_id - 1;
  while (!impl_->sequences.empty()) {
    Sequence& sequence = *impl_->sequences.begin()->second;
    sequence.is_kv_valid = false;
    if (sequence.state != SequenceState::retiring)
      impl_->fail(sequence, error);
    impl_->release(sequence);
  }
  // Moves between the tiers that were planned may not have happened.
  impl_->cache.clear();
}

void Scheduler::take_events(std::vector<TokenEvent>& out) {
  std::move(impl_->events.begin(), impl_->events.end(), std::back_inserter(out));
  impl_->events.clear();
}

void Scheduler::take_admitted(std::vector<RequestId>& out) {
  out.insert(out.end(), impl_->admitted.begin(), impl_->admitted.end());
  impl_->admitted.clear();
}

bool Scheduler::has_work() const {
  return !impl_->sequences.empty() || !impl_->in_flight.empty();
}

int32_t Scheduler::num_in_flight() const {
  return static_cast<int32_t>(impl_->in_flight.size());
}

int32_t Scheduler::flush_cache() {
  impl_->admission_blocked_until = 0;
  return impl_->cache.clear();
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats;
  stats.num_running = static_cast<int32_t>(impl_->running.size());
  stats.num_waiting = static_cast<int32_t>(impl_->waiting.size());
  stats.num_waiting_tokens = impl_->num_waiting_tokens;
  stats.pages_total = impl_->pages.num_pages();
  stats.pages_free = impl_->pages.num_free();
  stats.pages_cached = impl_->cache.num_cached();
  stats.pages_leased = stats.pages_total - stats.pages_free - stats.pages_cached;
  stats.num_retractions = impl_->num_retractions;
  stats.max_retractions_of_one = impl_->max_retractions_of_one;
  stats.num_evicted_pages = impl_->cache.num_evicted();
  stats.evicted_age_seconds = impl_->cache.evicted_age_seconds();
  stats.oldest_age_seconds = impl_->cache.oldest_age_seconds();
  stats.host_pages_total = impl_->config.num_host_pages;
  stats.host_pages_used = impl_->cache.num_host_pages_used();
  stats.num_pages_to_host = impl_->cache.num_moved_to_host();
  stats.num_pages_brought_back = impl_->cache.num_brought_back();
  stats.num_cached_tokens = impl_->num_cached_tokens;
  stats.num_prompt_tokens = impl_->num_prompt_tokens;
  return stats;
}

void Scheduler::check_invariants() const {
  const Impl& s = *impl_;
  s.check_counts();
  s.cache.check_invariants();
  std::vector<int32_t> num_owners(static_cast<size_t>(s.config.num_pages), 0);
  std::vector<int32_t> num_leases(static_cast<size_t>(s.config.num_pages), 0);
  const auto count_lease = [&](const Lease& lease) {
    for (NodeId id = lease.tip(); id != kNoNode; id = s.cache.parent(id))
      ++num_leases[static_cast<size_t>(s.cache.page_of(id))];
  };
  for (PageId page = 0; page < s.config.num_pages; ++page)
    num_owners[static_cast<size_t>(page)] += s.pages.is_free(page) + s.cache.contains(page);
  for (const PlannedStep& step : s.in_flight) {
    for (const Lease& lease : step.copy_sources)
      count_lease(lease);
  }
  for (const auto& [id, sequence] : s.sequences) {
    count_lease(sequence->lease);
    std::vector<PageId> path;
    s.cache.append_pages(sequence->lease, path);
    HADAL_CHECK(std::equal(path.begin(), path.end(), sequence->pages.begin()),
                "R9: a sequence's first pages are its lease");
    for (size_t i = path.size(); i < sequence->pages.size(); ++i)
      ++num_owners[static_cast<size_t>(sequence->pages[i])];
    const bool is_running =
        std::find(s.running.begin(), s.running.end(), sequence.get()) != s.running.end();
    HADAL_CHECK(s.waiting.count(id) == (sequence->state == SequenceState::waiting) &&
                    is_running == (sequence->state == SequenceState::running),
                "L5: a sequence is in exactly one queue");
    HADAL_CHECK(sequence->state != SequenceState::retiring || s.is_in_flight(*sequence),
                "P6: an ended sequence outlives its steps");
    HADAL_CHECK(sequence->state != SequenceState::running || sequence->needs_row() ||
                    s.is_in_flight(*sequence),
                "S8: a running sequence has a token to compute or a step in flight");
    HADAL_CHECK((sequence->slot >= 0) == (sequence->state != SequenceState::waiting) ||
                    sequence->state == SequenceState::retiring,
                "S5: slot of a sequence");
  }
  for (size_t page = 0; page < num_owners.size(); ++page) {
    HADAL_CHECK(num_owners[page] == 1,
                "P2-P5: page " + std::to_string(page) + " has " + std::to_string(num_owners[page]) +
                    " owners");
    HADAL_CHECK(num_leases[page] == (s.cache.contains(static_cast<PageId>(page))
                                         ? s.cache.refs(static_cast<PageId>(page))
                                         : 0),
                "R1: refs are the leases through a page");
  }
  HADAL_CHECK(static_cast<int32_t>(s.running.size()) <= s.max_running, "S4: too many running");
  HADAL_CHECK(s.max_retractions_of_one <= kMaxRetractions, "S9: a sequence retracted too often");
}

}  // namespace hadal
