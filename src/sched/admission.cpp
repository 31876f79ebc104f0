// Who is admitted next: the order of the waiting sequences by policy, and whether the first of them
// fits next to those that run.
//
// Retracted sequences come first, oldest first, under every policy. A sequence whose prompt begins
// like one that is being computed waits for those pages instead of computing them twice.
#include <algorithm>
#include <utility>

#include <hadal/base/check.h>

#include "scheduler_impl.h"

namespace hadal {
namespace {

constexpr size_t kMaxMatched = 128;        ///< waiting sequences that are matched for their order
constexpr int32_t kMaxOvertaken = 64;      ///< then a sequence is first, whatever the policy
constexpr int32_t kMaxReserved = 4096;     ///< output tokens that one sequence reserves at most
constexpr int32_t kSafeRetractions = 2;    ///< from then on its whole output is reserved
constexpr uint64_t kRetryAfterSteps = 16;  ///< the reserve decays, so a blocked candidate may fit

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

/// Depth-first order of the tree with the subtrees that most waiting sequences share first: keys
/// are the paths, each page led by its negated weight; longer paths come before their prefixes.
void sort_by_subtree_weight(const RadixCache& cache, std::vector<Sequence*>& order) {
  std::map<PageId, int32_t> weights;
  for (const Sequence* sequence : order) {
    for (PageId page = sequence->match.tip; page != kNoPage; page = cache.parent(page))
      --weights[page];
  }
  using Key = std::vector<std::pair<int32_t, PageId>>;
  std::vector<std::pair<Key, Sequence*>> keyed;
  for (Sequence* sequence : order) {
    Key key;
    for (PageId page = sequence->match.tip; page != kNoPage; page = cache.parent(page))
      key.emplace_back(weights[page], page);
    std::reverse(key.begin(), key.end());
    key.emplace_back(1, kNoPage);
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
    if (waits_for_prefix(*sequence))
      continue;
    PrefixMatch match = sequence->match;
    if (!fits(*sequence, match) && running.empty()) {
      // The page that is copied from would be one page too many for a sequence that fills the pool.
      match.tail = kNoPage;
      match.num_tail_tokens = 0;
    }
    if (!fits(*sequence, match)) {
      admission_blocked_until = next_step_id + kRetryAfterSteps;
      return;
    }
    if (chunk_end(*sequence, match.num_tokens(), budget) <= match.num_tokens())
      return;
    for (auto older = waiting.begin(); older->first < sequence->id; ++older)
      ++older->second->num_overtaken;
    place(*sequence, match, plan);
    plan_chunk(*sequence, plan, budget);
  }
}

std::vector<Sequence*> Scheduler::Impl::admission_order() {
  std::vector<Sequence*> first;
  std::vector<Sequence*> order;
  const bool is_matching =
      config.policy == SchedulePolicy::lpm || config.policy == SchedulePolicy::dfs_weight;
  for (const auto& [id, sequence] : waiting) {
    if (sequence->num_retractions > 0 || sequence->num_overtaken >= kMaxOvertaken)
      first.push_back(sequence);
    else if (!is_matching || order.size() < kMaxMatched)
      order.push_back(sequence);
  }
  switch (config.policy) {
    case SchedulePolicy::fcfs:
      break;
    case SchedulePolicy::lpm:
      for (Sequence* sequence : order)
        refresh_match(*sequence);
      std::stable_sort(order.begin(), order.end(), [](const Sequence* a, const Sequence* b) {
        return a->match.num_tokens() > b->match.num_tokens();
      });
      break;
    case SchedulePolicy::dfs_weight:
      for (Sequence* sequence : order)
        refresh_match(*sequence);
      sort_by_subtree_weight(cache, order);
      break;
    case SchedulePolicy::random:
      std::stable_sort(order.begin(), order.end(), [&](const Sequence* a, const Sequence* b) {
        return mix(a->id ^ config.policy_seed) < mix(b->id ^ config.policy_seed);
      });
      break;
    case SchedulePolicy::priority:
      std::stable_sort(order.begin(), order.end(), [](const Sequence* a, const Sequence* b) {
        return a->request.priority > b->request.priority;
      });
      break;
  }
  first.insert(first.end(), order.begin(), order.end());
  return first;
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
  const int32_t remaining = sequence.request.max_new_tokens - sequence.num_generated();
  const bool is_safe = sequence.num_retractions >= kSafeRetractions;
  const int32_t expected =
      is_safe ? remaining : static_cast<int32_t>(reserve_ratio * std::min(remaining, kMaxReserved));
  const int32_t held =
      std::max(static_cast<int32_t>(sequence.pages.size()), pages_for(sequence.num_known()));
  return std::max(0, pages_for(sequence.num_known() + expected) - held);
}

/// Whether the sequence can be placed and those that run can grow as expected. A sequence alone
/// reserves nothing: validate() has seen that it fits in the pool.
bool Scheduler::Impl::fits(const Sequence& sequence, const PrefixMatch& match) const {
  int64_t needed = pages_for(sequence.num_known()) - match.num_pages;
  if (!running.empty()) {
    needed += expected_growth(sequence);
    for (const Sequence* other : running)
      needed += expected_growth(*other);
  }
  const int32_t available = num_available() - cache.num_evictable_in(match);
  return needed <= available;
}

}  // namespace hadal
