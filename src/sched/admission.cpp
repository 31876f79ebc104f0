// Who is admitted next: the order of the waiting sequences by policy, and whether the first of them
// fits next to those that run.
//
// Retracted sequences come first, oldest first, under every policy. Then the share that has been
// served least, and inside a share the policy decides. A sequence whose prompt begins like one that
// is being computed waits for those pages instead of computing them twice.
//
// The hard thing is the guarantee: the oldest sequence that was never retracted too often and all
// those that were ("spent") can grow to their ends without anybody's leave. keeps_guarantee()
// admits nobody who would break it, so nobody is retracted more than kMaxRetractions times, and
// everybody finishes.
#include <algorithm>
#include <limits>
#include <span>
#include <utility>

#include <hadal/base/check.h>

#include "scheduler_impl.h"

namespace hadal {
namespace {

constexpr size_t kMaxCandidates = 128;     ///< waiting sequences that are put in order
constexpr int32_t kMatchesPerStep = 16;    ///< of them, matched again when the cache has changed
constexpr int32_t kMaxWaitsForHost = 256;  ///< steps; then what is not back yet is computed again
constexpr size_t kBringBackAhead = 4;      ///< sequences whose pages come back before their turn
// A sequence that as many younger ones overtook as wait, within these bounds, is first, whatever
// the policy.
constexpr size_t kMinOvertaken = 8;
constexpr size_t kMaxOvertaken = 64;
constexpr int32_t kMaxReserved = 4096;     ///< output tokens that one sequence reserves at most
constexpr int32_t kSlotsAKept = 64;        ///< slots for each that no single key may take
constexpr uint64_t kRetryAfterSteps = 16;  ///< the reserve decays, so a blocked candidate may fit

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

/// Depth-first order of the tree with the subtrees that most waiting sequences share first: keys
/// are the paths, each page led by its negated weight; longer paths come before their prefixes.
void sort_by_subtree_weight(const RadixCache& cache, std::span<Sequence*> order) {
  std::map<NodeId, int32_t> weights;
  for (const Sequence* sequence : order) {
    for (NodeId id = sequence->match.tip; id != kNoNode; id = cache.parent(id))
      --weights[id];
  }
  using Key = std::vector<std::pair<int32_t, NodeId>>;
  std::vector<std::pair<Key, Sequence*>> keyed;
  for (Sequence* sequence : order) {
    Key key;
    for (NodeId id = sequence->match.tip; id != kNoNode; id = cache.parent(id))
      key.emplace_back(weights[id], id);
    std::reverse(key.begin(), key.end());
    key.emplace_back(1, kNoNode);
    keyed.emplace_back(std::move(key), sequence);
  }
  std::stable_sort(
      keyed.begin(), keyed.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t i = 0; i < order.size(); ++i)
    order[i] = keyed[i].second;
}

}  // namespace

void Scheduler::Impl::admit(BatchPlan& plan, StepBudget& budget) {
  const auto has_room = [&] {
    return static_cast<int32_t>(running.size()) < max_running && !free_slots.empty() &&
           budget.step_tokens > 0 && budget.prefill_tokens > 0;
  };
  if (waiting.empty() || !has_room() || next_step_id < admission_blocked_until)
    return;
  for (Sequence* sequence : admission_order()) {
    if (!has_room())
      return;
    refresh_match(*sequence);
    if (waits_for_prefix(*sequence) || is_slot_kept_from(*sequence))
      continue;
    if (sequence->match.num_host_pages > 0 && fits(*sequence, sequence->match) &&
        !bring_back(*sequence, plan))
      continue;
    PrefixMatch match = sequence->match;
    if (!fits(*sequence, match) && running.empty()) {
      // The page that is copied from would be one page too many for a sequence that fills the pool.
      match.tail = kNoNode;
      match.num_tail_tokens = 0;
    }
    if (!fits(*sequence, match)) {
      admission_blocked_until = next_step_id + kRetryAfterSteps;
      return;
    }
    if (chunk_end(*sequence, match.num_tokens(), budget) <= match.num_tokens())
      return;
    if (sequence->num_retractions == 0) {
      size_t num_counted = 0;
      for (auto& [id, older] : share_queues[static_cast<size_t>(sequence->share)]) {
        if (id >= sequence->id || ++num_counted > kMaxCandidates)
          break;
        ++older->num_overtaken;
      }
    }
    place(*sequence, match, plan);
    plan_chunk(*sequence, plan, budget);
  }
}

/// With several keys known, none that has its part of the slots takes the last ones: who comes new
/// need not wait for another's sequence to end.
bool Scheduler::Impl::is_slot_kept_from(const Sequence& sequence) const {
  const auto num_kept = static_cast<size_t>(max_running / kSlotsAKept);
  const size_t num_free =
      std::min(free_slots.size(), static_cast<size_t>(max_running) - running.size());
  if (shares.num_known() < 2 || sequence.num_retractions > 0 || num_free > num_kept)
    return false;
  const auto num_own = std::count_if(running.begin(), running.end(), [&](const Sequence* other) {
    return other->share == sequence.share;
  });
  return static_cast<size_t>(num_own) * shares.num_known() >= static_cast<size_t>(max_running);
}

void Scheduler::Impl::enqueue(Sequence& sequence) {
  waiting.emplace(sequence.id, &sequence);
  num_waiting_tokens += sequence.num_prompt;
  if (sequence.num_retractions > 0) {
    retracted.emplace(sequence.id, &sequence);
    return;
  }
  const auto share = static_cast<size_t>(sequence.share);
  if (share_queues.size() <= share)
    share_queues.resize(share + 1);
  share_queues[share].emplace(sequence.id, &sequence);
  queued_shares.insert(sequence.share);
}

void Scheduler::Impl::dequeue(Sequence& sequence) {
  waiting.erase(sequence.id);
  num_waiting_tokens -= sequence.num_prompt;
  if (sequence.num_retractions > 0) {
    retracted.erase(sequence.id);
    return;
  }
  auto& queue = share_queues[static_cast<size_t>(sequence.share)];
  queue.erase(sequence.id);
  if (queue.empty())
    queued_shares.erase(sequence.share);
}

/// What the first prompts of the shares that go before this one need of a step.
int32_t Scheduler::Impl::count_tokens_waiting_before(ShareId share) const {
  if (shares.num_busy() < 2 || next_step_id < admission_blocked_until ||
      static_cast<int32_t>(running.size()) == max_running || free_slots.empty())
    return 0;
  int64_t num_tokens = 0;
  for (const ShareId other : queued_shares) {
    if (other == share || !shares.goes_before(other, share))
      continue;
    const Sequence& first = *share_queues[static_cast<size_t>(other)].begin()->second;
    num_tokens += first.num_known() - first.match.num_tokens();
  }
  return static_cast<int32_t>(std::min<int64_t>(num_tokens, config.max_step_tokens));
}

/// Retracted sequences by age, then the waiting ones: the least served share first, and inside a
/// share the policy's order.
const std::vector<Sequence*>& Scheduler::Impl::admission_order() {
  ordered.clear();
  candidates.clear();
  groups.clear();
  for (const auto& [id, sequence] : retracted)
    ordered.push_back(sequence);
  for (const ShareId share : queued_shares)
    groups.push_back({share, shares.served(share), shares.num_sequences(share), 0, 0});
  if (groups.size() > kMaxCandidates) {
    const auto middle = groups.begin() + static_cast<ptrdiff_t>(kMaxCandidates);
    std::nth_element(groups.begin(), middle, groups.end(), [](const auto& a, const auto& b) {
      return a.served < b.served;
    });
    groups.erase(middle, groups.end());
  }
  for (ShareGroup& group : groups) {
    group.next = candidates.size();
    select_group(group.share, std::max<size_t>(1, kMaxCandidates / groups.size()));
    group.end = candidates.size();
  }
  merge_groups();
  return ordered;
}

/// The oldest `quota` of a share, in the policy's order, those that were overtaken too often first.
void Scheduler::Impl::select_group(ShareId share, size_t quota) {
  const size_t begin = candidates.size();
  const auto& queue = share_queues[static_cast<size_t>(share)];
  const bool is_by_priority = config.policy == SchedulePolicy::priority;
  const auto most_overtaken = static_cast<int32_t>(
      is_by_priority ? kMaxOvertaken : std::clamp(queue.size(), kMinOvertaken, kMaxOvertaken));
  for (const auto& [id, sequence] : queue) {
    if (candidates.size() - begin == quota)
      break;
    candidates.push_back(sequence);
  }
  const auto first = candidates.begin() + static_cast<ptrdiff_t>(begin);
  const auto late = std::stable_partition(first, candidates.end(), [&](const Sequence* sequence) {
    return sequence->num_overtaken >= most_overtaken;
  });
  sort_by_policy(static_cast<size_t>(late - candidates.begin()), candidates.size());
}

void Scheduler::Impl::sort_by_policy(size_t begin, size_t end) {
  const std::span<Sequence*> order = std::span(candidates).subspan(begin, end - begin);
  const auto sort = [&](auto less) {
    std::sort(order.begin(), order.end(), [&](const Sequence* a, const Sequence* b) {
      if (less(*a, *b))
        return true;
      return !less(*b, *a) && a->id < b->id;
    });
  };
  switch (config.policy) {
    case SchedulePolicy::fcfs:
      break;
    case SchedulePolicy::lpm:
      refresh_matches(order);
      sort([](const Sequence& a, const Sequence& b) {
        return a.match.num_tokens_in_all_tiers() > b.match.num_tokens_in_all_tiers();
      });
      break;
    case SchedulePolicy::dfs_weight:
      for (Sequence* sequence : order)
        refresh_match(*sequence);
      sort_by_subtree_weight(cache, order);
      break;
    case SchedulePolicy::random:
      sort([&](const Sequence& a, const Sequence& b) {
        return mix(a.id ^ config.policy_seed) < mix(b.id ^ config.policy_seed);
      });
      break;
    case SchedulePolicy::priority:
      sort([](const Sequence& a, const Sequence& b) {
        return a.request.priority > b.request.priority;
      });
      break;
  }
}

/// Brings the stalest matches up to date, a few a step: an order by matches that are some steps old
/// is as good, and what is placed is matched again anyway.
void Scheduler::Impl::refresh_matches(std::span<Sequence* const> order) {
  int32_t left = kMatchesPerStep;
  for (Sequence* sequence : order) {
    if (sequence->match_version == 0)
      refresh_match(*sequence);
  }
  const size_t count = order.size();
  for (size_t i = 0; i < count && left > 0; ++i) {
    Sequence& sequence = *order[(next_refresh + i) % count];
    if (sequence.match_version == cache.version())
      continue;
    refresh_match(sequence);
    --left;
    if (left == 0)
      next_refresh = (next_refresh + i + 1) % count;
  }
}

/// Takes from the group that has been served least, as if what is taken had been served already.
void Scheduler::Impl::merge_groups() {
  const bool by_priority = config.policy == SchedulePolicy::priority;
  const auto is_later = [&](const ShareGroup& a, const ShareGroup& b) {
    const Sequence& x = *candidates[a.next];
    const Sequence& y = *candidates[b.next];
    if (by_priority && x.request.priority != y.request.priority)
      return x.request.priority < y.request.priority;
    if (a.served != b.served)
      return a.served > b.served;
    return a.num_sequences != b.num_sequences ? a.num_sequences > b.num_sequences : x.id > y.id;
  };
  if (groups.size() == 1) {
    ordered.insert(ordered.end(), candidates.begin(), candidates.end());
    return;
  }
  std::make_heap(groups.begin(), groups.end(), is_later);
  while (!groups.empty()) {
    std::pop_heap(groups.begin(), groups.end(), is_later);
    ShareGroup& group = groups.back();
    const Sequence& taken = *candidates[group.next];
    ordered.push_back(candidates[group.next++]);
    group.served += FairShares::kInputCost * (taken.num_known() - taken.match.num_tokens()) /
                    shares.weight(group.share);
    if (group.next == group.end)
      groups.pop_back();
    else
      std::push_heap(groups.begin(), groups.end(), is_later);
  }
}

bool Scheduler::Impl::reads_cache(const Sequence& sequence) const {
  // Prompt logprobs need the logits of every prompt position, so nothing can be skipped.
  return config.enable_radix_cache && !sequence.scores_prompt();
}

void Scheduler::Impl::refresh_match(Sequence& sequence) {
  if (!reads_cache(sequence) || sequence.match_version == cache.version())
    return;
  // One token is always left to compute: its logits are what the sequence is for.
  const std::span<const TokenId> tokens(sequence.tokens);
  sequence.match = cache.match(sequence.request.cache_namespace, tokens.first(tokens.size() - 1));
  sequence.match_version = cache.version();
}

bool Scheduler::Impl::waits_for_prefix(const Sequence& sequence) const {
  if (!reads_cache(sequence))
    return false;
  const int32_t num_shared = (sequence.match.num_pages + 1) * kPageTokens;
  if (num_shared >= sequence.num_known())
    return false;
  return std::any_of(running.begin(), running.end(), [&](const Sequence* other) {
    return other->publishes && num_shared <= other->num_prompt &&
           other->lease.num_pages() < other->num_prompt / kPageTokens &&
           other->request.cache_namespace == sequence.request.cache_namespace &&
           std::equal(sequence.tokens.begin(),
                      sequence.tokens.begin() + num_shared,
                      other->tokens.begin());
  });
}

int32_t Scheduler::Impl::expected_growth(const Sequence& sequence) const {
  const int32_t remaining = sequence.num_remaining();
  const int32_t expected =
      sequence.is_spent() ? remaining
                          : static_cast<int32_t>(reserve_ratio * std::min(remaining, kMaxReserved));
  const int32_t held =
      std::max(static_cast<int32_t>(sequence.pages.size()), pages_for(sequence.num_known()));
  return std::max(0, pages_for(sequence.num_known() + expected) - held);
}

/// Whether the sequence can be placed and those that run can grow as expected. A sequence alone
/// reserves nothing: validate() has seen that it fits in the pool.
bool Scheduler::Impl::fits(const Sequence& sequence, const PrefixMatch& match) const {
  if (!keeps_guarantee(sequence))
    return false;
  int64_t needed = pages_for(sequence.num_known()) - match.num_pages;
  if (!running.empty()) {
    needed += expected_growth(sequence);
    for (const Sequence* other : running)
      needed += expected_growth(*other);
  }
  const int32_t available = num_available() - cache.num_evictable_in(match);
  return needed <= available;
}

/// Brings the sequence's pages back from the host, as many as this step may. True when none is left
/// there, or waiting for them is not worth it.
bool Scheduler::Impl::bring_back(Sequence& sequence, const BatchPlan& plan) {
  const std::string& name_space = sequence.request.cache_namespace;
  const bool is_alone = running.empty() && plan.rows.empty();
  const int32_t most = is_alone ? sequence.match.num_host_pages : pages_back_left;
  // A plan without rows would not be submitted, and its moves with it.
  if (is_alone || !plan.rows.empty())
    pages_back_left -= cache.bring_back(name_space, sequence.match, most);
  refresh_match(sequence);
  return sequence.match.num_host_pages == 0 || is_alone ||
         ++sequence.num_waits_for_host > kMaxWaitsForHost;
}

/// The next to be admitted get their pages back while they wait, where that takes none from those
/// that run.
void Scheduler::Impl::bring_back_ahead(const BatchPlan& plan) {
  if (config.num_host_pages == 0 || waiting.empty() || plan.rows.empty() || pages_back_left <= 0)
    return;
  size_t num_seen = 0;
  for (Sequence* sequence : admission_order()) {
    if (++num_seen > kBringBackAhead || pages_back_left <= 0)
      return;
    refresh_match(*sequence);
    if (sequence->match.num_host_pages > 0 && fits(*sequence, sequence->match))
      pages_back_left -=
          cache.bring_back(sequence->request.cache_namespace, sequence->match, pages_back_left);
  }
}

bool Scheduler::Impl::keeps_guarantee(const Sequence& sequence) const {
  int64_t spent = sequence.is_spent() ? sequence.num_pages_max() : 0;
  int32_t largest_other = sequence.is_spent() ? 0 : sequence.num_pages_max();
  for (const Sequence* other : running) {
    if (other->is_spent())
      spent += other->num_pages_max();
    else
      largest_other = std::max(largest_other, other->num_pages_max());
  }
  return spent == 0 || spent + largest_other <= pages.num_pages();
}

}  // namespace hadal
