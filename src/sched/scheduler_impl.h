// State of the scheduler, shared by the files that implement it: scheduler.cpp (interface),
// planner.cpp (plan_next), admission.cpp (who comes next), retire.cpp (commit and page return).
#pragma once

#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <hadal/sched/scheduler.h>

#include "fair_share.h"
#include "page_allocator.h"
#include "radix_cache.h"
#include "sequence.h"
#include "step_time.h"

namespace hadal {

/// A plan that is out: what commit() needs to know about it.
struct PlannedStep {
  struct Row {
    SlotId slot = 0;
    int32_t kv_end = 0;
    int32_t num_logits = 0;
    int32_t num_drafts = 0;
    bool samples = false;
    bool ends_scoring = false;  ///< last row of a prompt without anything to generate
  };

  uint64_t step_id = 0;
  std::vector<Row> rows;
  std::vector<Lease> copy_sources;
  StepWork work;
  double plan_delay_seconds = 0.0;  ///< that was asked for of the plan after it
};

/// What is left of a step's limits while its plan is made.
struct StepBudget {
  int32_t prefill_tokens = 0;        ///< of max_prefill_tokens and chunked_prefill_tokens
  int32_t step_tokens = 0;           ///< of max_step_tokens
  int32_t scoring_logits = 0;        ///< of max_step_logits, what sampling rows can never need
  double target_seconds = 0.0;       ///< for all prefill of the step; 0 = no target
  int32_t least_prefill_tokens = 0;  ///< that it may have however slow they are
  /// With a target: that sequences which is_bound() may have in all.
  int32_t bounded_prefill_tokens = std::numeric_limits<int32_t>::max();
  /// With chunks of the share that goes first: what the step's prefill may take with all others.
  double leading_seconds = 0.0;
  StepWork work;  ///< so far
};

/// Waiting sequences of one share while the next to admit are chosen.
struct ShareGroup {
  ShareId share = -1;
  double served = 0.0;  ///< with what is chosen so far
  int32_t num_sequences = 0;
  size_t next = 0;
  size_t end = 0;
};

double initial_reserve_ratio(double conservativeness);

struct Scheduler::Impl {
  explicit Impl(const SchedulerConfig& scheduler_config);
  ~Impl();

  // planner.cpp
  bool plan_next(BatchPlan& plan);
  void recycle(BatchPlan& plan);
  StepBudget make_budget() const;
  void bound_step_time(StepBudget& budget) const;
  void bound_stretch(int32_t num_decodes, StepBudget& budget) const;
  bool is_bound(const Sequence& sequence, const StepBudget& budget) const;
  int32_t count_pending_prompts() const;
  void plan_prefills(BatchPlan& plan, StepBudget& budget);
  SlotUpdate& add_update(SlotId slot, BatchPlan& plan);
  int32_t count_decode_pages() const;
  void make_room_for_decodes();
  Sequence& choose_victim() const;
  void plan_decodes(BatchPlan& plan, StepBudget& budget);
  int32_t num_drafts_to_verify(const Sequence& sequence,
                               const StepBudget& budget,
                               int32_t num_decodes_left,
                               int32_t num_spare_pages) const;
  void add_decode_row(Sequence& sequence, int32_t num_drafts, BatchPlan& plan);
  void plan_chunk(Sequence& sequence, BatchPlan& plan, StepBudget& budget);
  int32_t bounded_room(int32_t computed, int32_t most, const StepBudget& budget) const;
  int32_t chunk_end(const Sequence& sequence, int32_t computed, const StepBudget& budget) const;
  AttentionForm form_of(const Sequence& sequence, int32_t begin, int32_t end) const;
  void add_rows(Sequence& sequence, int32_t begin, int32_t end, BatchPlan& plan);
  void add_row(Sequence& sequence, const PlanRow& row, BatchPlan& plan);
  PageId take_page();

  // admission.cpp
  void admit(BatchPlan& plan, StepBudget& budget);
  const std::vector<Sequence*>& admission_order();
  void select_group(ShareId share, size_t quota);
  void sort_by_policy(size_t begin, size_t end);
  void refresh_matches(std::span<Sequence* const> order);
  void merge_groups();
  void enqueue(Sequence& sequence);
  void dequeue(Sequence& sequence);
  int32_t count_tokens_waiting_before(ShareId share) const;
  bool bring_back(Sequence& sequence, const BatchPlan& plan);
  void bring_back_ahead(const BatchPlan& plan);
  bool keeps_guarantee(const Sequence& sequence) const;
  void refresh_match(Sequence& sequence);
  bool reads_cache(const Sequence& sequence) const;
  bool waits_for_prefix(const Sequence& sequence) const;
  bool is_slot_kept_from(const Sequence& sequence) const;
  bool fits(const Sequence& sequence, const PrefixMatch& match) const;
  int32_t expected_growth(const Sequence& sequence) const;
  void place(Sequence& sequence, const PrefixMatch& match, BatchPlan& plan);

  // retire.cpp
  void commit(const StepResult& result, double step_seconds);
  void commit_row(const PlannedStep::Row& row, const RowResult* result);
  void accept_drafts(Sequence& sequence, const PlannedStep::Row& row, const RowResult& result);
  void keep_drafts(Sequence& sequence, const RowResult& result);
  void append_token(Sequence& sequence, const RowResult& result);
  void publish(Sequence& sequence);
  void finish(Sequence& sequence, TokenEvent event, FinishReason reason);
  void fail(Sequence& sequence, const std::string& error);
  void retract(Sequence& sequence);
  void give_back_pages(Sequence& sequence);
  void release(Sequence& sequence);
  TokenEvent make_event(Sequence& sequence);

  // scheduler.cpp
  void advance_to(TimePoint time);
  void end_sequence(Sequence& sequence, FinishReason reason, const std::string& error);
  bool is_in_flight(const Sequence& sequence) const;

  /// Free pages and those that eviction can free.
  int32_t num_available() const { return pages.num_free() + cache.num_cached(); }

  void check_counts() const;

  SchedulerConfig config;
  int32_t max_running = 0;
  PageAllocator pages;
  RadixCache cache;
  std::map<RequestId, std::unique_ptr<Sequence>> sequences;
  std::vector<Sequence*> running;          ///< by age, oldest first
  std::map<RequestId, Sequence*> waiting;  ///< by age
  /// The waiting ones again: retracted ones, and the others by share. `queued_shares` have any.
  std::map<RequestId, Sequence*> retracted;
  std::vector<std::map<RequestId, Sequence*>> share_queues;
  std::set<ShareId> queued_shares;
  FairShares shares;
  std::set<std::pair<TimePoint, RequestId>> deadlines;
  TimePoint now{};
  StepTimeModel step_time;
  PlanPace plan_pace;
  std::vector<Sequence*> slots;  ///< by SlotId; null = free
  std::vector<SlotId> free_slots;
  std::vector<PlannedStep> in_flight;  ///< oldest first
  // Memory of earlier steps, used again.
  std::vector<PlannedStep> spare_steps;
  std::vector<std::vector<PageId>> spare_page_lists;
  std::vector<Sequence*> candidates;
  std::vector<Sequence*> ordered;
  int32_t pages_back_left = 0;  ///< that this step may still bring back from the host
  std::vector<ShareGroup> groups;
  size_t next_refresh = 0;  ///< of the candidates, whose match is brought up to date first
  std::vector<TokenEvent> events;
  std::vector<RequestId> admitted;
  uint64_t next_step_id = 1;
  uint64_t retired_step_id = 0;
  /// Share of a running sequence's remaining output that admission reserves; falls with every step,
  /// rises with every retraction.
  double reserve_ratio = 0.0;
  /// The first candidate did not fit; until this step, or until pages come free, none is tried.
  uint64_t admission_blocked_until = 0;
  int64_t num_waiting_tokens = 0;
  int64_t num_retractions = 0;
  int32_t max_retractions_of_one = 0;
  int64_t num_cached_tokens = 0;
  int64_t num_prompt_tokens = 0;
};

}  // namespace hadal
