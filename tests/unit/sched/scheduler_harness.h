// The scheduler on a pretended device that remembers what the KV of every page holds.
//
// The device runs a plan when it is submitted and keeps the result until commit, as hardware with a
// step in flight does. After every call the rules of the reliability model are checked: content of
// reused KV (R6, R7), writes of a step in flight (P6), limits of a plan (S3, S4, S7), the life of a
// request (L1-L4), pages and tree (P1-P5, R1-R10, L5 in Scheduler::check_invariants). A broken rule
// is named on stderr and aborts, as HADAL_CHECK does: Catch reports it with its case, and
// property_main.cpp catches it in a child process.
#pragma once

#include <deque>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <hadal/sched/scheduler.h>

namespace hadal {

/// Aborts with the name of the rule unless it holds.
void need(bool holds, const char* rule);

class SchedulerHarness {
 public:
  /// What is known of one request: what was asked, and what came.
  struct Record {
    std::string name_space;
    std::vector<TokenId> prompt;
    int32_t max_new_tokens = 0;
    std::vector<TokenId> stop_tokens;
    std::vector<TokenId> tokens;
    std::vector<TokenLogprob> prompt_logprobs;
    int32_t num_cached_tokens = 0;  ///< as events tell
    int32_t num_reused_tokens = 0;  ///< as the first plan with it shows
    int num_terminal = 0;
    FinishReason finish = FinishReason::error;
    bool wants_prompt_logprobs = false;
    int32_t priority = 0;
    int32_t num_placements = 0;  ///< times it was given a slot: 1 + retractions it came back from
  };

  struct Ask {
    std::vector<TokenId> prompt;
    int32_t max_new_tokens = 1;
    std::string name_space = {};
    std::vector<TokenId> stop_tokens = {};
    bool wants_prompt_logprobs = false;
    int32_t priority = 0;
  };

  static constexpr int32_t kMaxRetractions = 2;  ///< of one request

  explicit SchedulerHarness(const SchedulerConfig& config);
  ~SchedulerHarness();

  RequestId submit(Ask ask);
  void cancel(RequestId id);
  /// Plans and submits a step if there is one; true when there was.
  bool plan();
  /// Retires the oldest step in flight; true when there was one.
  bool retire();
  /// The runner has failed: nothing that is in flight comes back.
  void abandon();
  /// One turn of the engine: as many steps ahead as allowed, then the oldest retires.
  void turn();
  /// Turns until there is no work; fails when that takes too many.
  void drain();

  void flush() { scheduler_.flush_cache(); }

  /// From now on steps take some time, so that the budgets that are learned from it apply.
  void time_steps() { times_steps_ = true; }

  int64_t num_drafts_accepted() const { return num_drafts_accepted_; }

  int64_t num_drafts_rejected() const { return num_drafts_rejected_; }

  const Record& record(RequestId id) const { return records_.at(id); }

  const BatchPlan& last_plan() const { return last_plan_; }

  SchedulerStats stats() const { return scheduler_.stats(); }

  int32_t num_in_flight() const { return static_cast<int32_t>(in_flight_.size()); }

  /// Slots that the newest plan has rows of, as requests.
  std::set<RequestId> planned_requests() const;

  /// The next row of this request is reported as not a number.
  void poison(RequestId id) { poisoned_.insert(id); }

  /// The token that the device samples for a request at a position.
  static TokenId sampled_token(RequestId id, int32_t position, int32_t vocab_size);

 private:
  struct Position {
    uint64_t prefix_hash = 0;
    std::string name_space;
  };

  struct Slot {
    RequestId id = 0;
    std::vector<PageId> pages;
    int32_t kv_end = -1;
    int32_t num_prompt = 0;
    bool is_fresh = false;  ///< no row since it was placed for the first time
    TokenId last_token = -1;
    int32_t last_position = -1;
  };

  struct Step {
    StepResult result;
    std::set<PageId> written;
    std::set<PageId> read;
  };

  void execute(const BatchPlan& plan);
  void note_placements();
  void check_order_of_first_placements(const std::vector<RequestId>& placed) const;
  void check_retractions(int64_t num_retracted, bool was_idle);
  void apply_updates(const BatchPlan& plan, Step& step);
  void run_row(const PlanRow& row, std::span<const TokenId> tokens, Step& step);
  void verify_drafts(const PlanRow& row, std::span<const TokenId> tokens, RowResult& result);
  std::vector<TokenId> guess_drafts(RequestId id, int32_t position) const;
  void check_prefix(const Slot& slot, int32_t num_tokens);
  void check_in_flight(const Step& step) const;
  void collect();
  Position& kv(const Slot& slot, int32_t position);

  SchedulerConfig config_;
  Scheduler scheduler_;
  std::map<RequestId, Record> records_;
  std::map<SlotId, Slot> slots_;
  std::vector<std::vector<Position>> kv_;    ///< [page][offset]
  std::vector<std::vector<Position>> host_;  ///< the same of the host tier
  std::deque<Step> in_flight_;
  BatchPlan last_plan_;
  std::set<RequestId> poisoned_;
  std::set<RequestId> running_;    ///< surely: had a row or a slot since the last retraction
  std::set<RequestId> uncertain_;  ///< running or retracted: no row in a plan that retracted
  bool times_steps_ = false;
  int64_t num_drafts_accepted_ = 0;
  int64_t num_drafts_rejected_ = 0;
  RequestId next_id_ = 1;
  uint64_t last_step_id_ = 0;
};

}  // namespace hadal
