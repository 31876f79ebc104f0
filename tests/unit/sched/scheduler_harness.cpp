// See scheduler_harness.h.
#include "scheduler_harness.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace hadal {
namespace {

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return (x ^ (x >> 31U)) + 0x9E3779B97F4A7C15U;
}

uint64_t extend_hash(uint64_t prefix, TokenId token) {
  return mix(prefix ^ (static_cast<uint64_t>(token) + 1)) | 1U;
}

bool verifies_drafts(const PlanRow& row) {
  return row.sample && row.form == AttentionForm::generated && row.num_logits > 1;
}

}  // namespace

void need(bool holds, const char* rule) {
  if (holds)
    return;
  std::fprintf(stderr, "broken rule: %s\n", rule);
  std::fflush(stderr);
  std::abort();
}

SchedulerHarness::SchedulerHarness(const SchedulerConfig& config)
    : config_(config),
      scheduler_(config),
      kv_(static_cast<size_t>(config.num_pages), std::vector<Position>(64)),
      host_(static_cast<size_t>(config.num_host_pages), std::vector<Position>(64)) {}

SchedulerHarness::~SchedulerHarness() = default;

TokenId SchedulerHarness::sampled_token(RequestId id, int32_t position, int32_t vocab_size) {
  return static_cast<TokenId>(mix(id * 1'000'003 + static_cast<uint64_t>(position)) %
                              static_cast<uint64_t>(vocab_size));
}

RequestId SchedulerHarness::submit(Ask ask) {
  const RequestId id = next_id_++;
  Record record;
  record.name_space = ask.name_space;
  record.prompt = ask.prompt;
  record.max_new_tokens = ask.max_new_tokens;
  record.stop_tokens = ask.stop_tokens;
  record.wants_prompt_logprobs = ask.wants_prompt_logprobs;
  record.priority = ask.priority;
  records_.emplace(id, std::move(record));
  GenerateRequest request;
  request.prompt = std::move(ask.prompt);
  request.max_new_tokens = ask.max_new_tokens;
  request.cache_namespace = std::move(ask.name_space);
  request.stop_token_ids = std::move(ask.stop_tokens);
  request.wants_prompt_logprobs = ask.wants_prompt_logprobs;
  request.sampling.num_top_logprobs = ask.wants_prompt_logprobs ? 0 : -1;
  request.sampling.seed = id;  // how the device knows whose slot it is
  request.priority = ask.priority;
  need(static_cast<bool>(Scheduler::validate(config_, request)), "the request is valid");
  scheduler_.submit(id, std::move(request));
  collect();
  return id;
}

void SchedulerHarness::cancel(RequestId id) {
  scheduler_.cancel(id);
  collect();
}

bool SchedulerHarness::plan() {
  const int64_t num_retractions = stats().num_retractions;
  std::optional<BatchPlan> plan = scheduler_.plan_next();
  const int64_t num_retracted = stats().num_retractions - num_retractions;
  collect();
  if (!plan) {
    need(num_retracted == 0, "a plan that was not made has retracted");
    return false;
  }
  need(++last_step_id_ == plan->step_id, "T1: step ids grow by one");
  last_plan_ = std::move(*plan);
  const bool was_idle = in_flight_.empty();
  execute(last_plan_);
  check_retractions(num_retracted, was_idle);
  note_placements();
  return true;
}

/// S9, and the order of admission where nothing but the policy decides it.
void SchedulerHarness::note_placements() {
  std::vector<RequestId> first;
  for (const SlotUpdate& update : last_plan_.slot_updates) {
    if (!update.reset)
      continue;
    const RequestId id = slots_.at(update.slot).id;
    if (++records_.at(id).num_placements == 1)
      first.push_back(id);
    need(records_.at(id).num_placements <= 1 + kMaxRetractions, "S9: retractions of one request");
    running_.insert(id);
    uncertain_.erase(id);
  }
  if (!config_.enable_radix_cache)
    check_order_of_first_placements(first);
}

/// S6: whoever still waits for a first slot comes after all that got one.
void SchedulerHarness::check_order_of_first_placements(const std::vector<RequestId>& placed) const {
  for (const auto& [id, record] : records_) {
    if (record.num_placements > 0 || record.num_terminal > 0)
      continue;
    for (const RequestId other : placed) {
      need(config_.policy != SchedulePolicy::fcfs || other < id, "S6: fcfs admits by age");
      need(config_.policy != SchedulePolicy::priority ||
               records_.at(other).priority >= record.priority,
           "S6: priority admits the most urgent first");
    }
  }
}

/// S2: the oldest running sequence is never retracted. A retraction is not announced; but when
/// nothing is in flight, every decoding sequence has a row and so does the oldest one.
void SchedulerHarness::check_retractions(int64_t num_retracted, bool was_idle) {
  const std::set<RequestId> planned = planned_requests();
  for (const RequestId id : planned) {
    running_.insert(id);
    uncertain_.erase(id);
  }
  if (num_retracted == 0)
    return;
  need(was_idle, "P6: a retraction with a step in flight");
  const RequestId oldest = running_.empty() ? 0 : *running_.begin();
  if (uncertain_.empty() || *uncertain_.begin() > oldest)
    need(planned.count(oldest) > 0, "S2: the oldest sequence is never retracted");
  for (auto id = running_.begin(); id != running_.end();) {
    const bool is_planned = planned.count(*id) > 0;
    if (!is_planned)
      uncertain_.insert(*id);
    id = is_planned ? std::next(id) : running_.erase(id);
  }
}

void SchedulerHarness::abandon() {
  in_flight_.clear();
  scheduler_.abandon("the runner has failed");
  collect();
  need(!scheduler_.has_work(), "L1: abandoned work goes on");
}

bool SchedulerHarness::retire() {
  if (in_flight_.empty())
    return false;
  const StepResult result = std::move(in_flight_.front().result);
  in_flight_.pop_front();
  const double seconds = times_steps_ ? 1e-3 * static_cast<double>(mix(result.step_id) % 50) : 0.0;
  scheduler_.commit(result, seconds);
  collect();
  return true;
}

void SchedulerHarness::turn() {
  while (num_in_flight() < config_.max_steps_in_flight && plan()) {
  }
  retire();
}

void SchedulerHarness::drain() {
  for (int i = 0; i < 20'000 && scheduler_.has_work(); ++i)
    turn();
  need(!scheduler_.has_work(), "L6: a drain ends");
  const SchedulerStats now = stats();
  need(now.pages_leased == 0, "D1: no lease after a drain");
  need(now.pages_free + now.pages_cached == now.pages_total, "D2: no page is lost");
  for (const auto& [id, record] : records_)
    need(record.num_terminal == 1, "L1: a request has no end");
}

std::set<RequestId> SchedulerHarness::planned_requests() const {
  std::set<RequestId> ids;
  for (const PlanRow& row : last_plan_.rows)
    ids.insert(slots_.at(row.slot).id);
  return ids;
}

SchedulerHarness::Position& SchedulerHarness::kv(const Slot& slot, int32_t position) {
  const PageId page = slot.pages.at(static_cast<size_t>(position / 64));
  return kv_[static_cast<size_t>(page)][static_cast<size_t>(position % 64)];
}

void SchedulerHarness::apply_updates(const BatchPlan& plan, Step& step) {
  for (const SlotUpdate& update : plan.slot_updates) {
    Slot& slot = slots_[update.slot];
    if (update.reset) {
      slot = Slot{};
      slot.id = update.reset->sampling.seed;
      slot.is_fresh = records_.at(slot.id).num_placements == 0;
      slot.num_prompt = update.reset->num_prompt_tokens;
      need(static_cast<size_t>(slot.num_prompt) == records_.at(slot.id).prompt.size(),
           "a slot's prompt length");
    }
    need(slot.id != 0, "update of a slot that was never reset");
    slot.pages.insert(slot.pages.end(), update.append_pages.begin(), update.append_pages.end());
  }
  std::set<PageId> read_on_host;
  std::set<PageId> written_on_host;
  for (const PageMove& move : plan.page_moves) {
    auto& page = kv_.at(static_cast<size_t>(move.page));
    auto& host = host_.at(static_cast<size_t>(move.host_page));
    (move.to_host ? written_on_host : read_on_host).insert(move.host_page);
    (move.to_host ? host : page) = move.to_host ? page : host;
  }
  for (const PageId page : read_on_host)
    need(written_on_host.count(page) == 0, "T6: a plan reads a host page that it writes");
  for (const PageCopy& copy : plan.page_copies) {
    auto& dst = kv_.at(static_cast<size_t>(copy.dst));
    const auto& src = kv_.at(static_cast<size_t>(copy.src));
    std::fill(dst.begin(), dst.end(), Position{});
    std::copy(src.begin(), src.begin() + copy.num_tokens, dst.begin());
    step.written.insert(copy.dst);
    step.read.insert(copy.src);
  }
}

void SchedulerHarness::execute(const BatchPlan& plan) {
  Step step;
  step.result.step_id = plan.step_id;
  apply_updates(plan, step);
  size_t next = 0;
  std::set<SlotId> seen;
  SlotId last_slot = -1;
  for (const PlanRow& row : plan.rows) {
    need(row.num_tokens > 0, "S7: empty row");
    need(row.slot == last_slot || seen.insert(row.slot).second, "S5: a request twice in a step");
    last_slot = row.slot;
    const auto count = static_cast<size_t>(row.num_tokens);
    need(next + count <= plan.tokens.size(), "tokens of a plan");
    run_row(row, std::span(plan.tokens).subspan(next, count), step);
    next += count;
  }
  need(next == plan.tokens.size(), "tokens of a plan");
  need(next > 0 && static_cast<int32_t>(next) <= config_.max_step_tokens, "S3: token budget");
  need(static_cast<int32_t>(seen.size()) <= config_.max_running_requests, "S4: running limit");
  check_in_flight(step);
  in_flight_.push_back(std::move(step));
}

/// P6: nothing that a step in flight writes is used by another sequence's step, and nothing that it
/// reads is written.
void SchedulerHarness::check_in_flight(const Step& step) const {
  for (const Step& before : in_flight_) {
    for (const SlotUpdate& update : last_plan_.slot_updates) {
      for (const PageId page : update.append_pages)
        need(before.written.count(page) == 0, "P6: a page with a write in flight changes hands");
    }
    for (const PageId page : step.written) {
      const bool is_new = std::any_of(
          last_plan_.slot_updates.begin(), last_plan_.slot_updates.end(), [&](const auto& update) {
            return std::count(update.append_pages.begin(), update.append_pages.end(), page) > 0;
          });
      need(!is_new || before.read.count(page) == 0, "P6: a page that is read in flight is written");
    }
  }
}

void SchedulerHarness::check_prefix(const Slot& slot, int32_t num_tokens) {
  const Record& record = records_.at(slot.id);
  uint64_t hash = 0;
  for (int32_t i = 0; i < num_tokens; ++i) {
    const auto at = static_cast<size_t>(i);
    const TokenId token =
        at < record.prompt.size() ? record.prompt[at] : record.tokens.at(at - record.prompt.size());
    hash = extend_hash(hash, token);
    need(kv(slot, i).prefix_hash == hash, "R6: reused KV is not this prefix");
    need(kv(slot, i).name_space == record.name_space, "R7: KV of another namespace");
  }
}

/// V1: what sampling would have given is accepted, and the rest was never there: the next row
/// starts behind it.
void SchedulerHarness::verify_drafts(const PlanRow& row,
                                     std::span<const TokenId> tokens,
                                     RowResult& result) {
  Slot& slot = slots_.at(row.slot);
  const auto num_drafts = static_cast<int32_t>(tokens.size()) - 1;
  need(row.num_logits == row.num_tokens, "every draft has logits");
  need(num_drafts <= config_.max_draft_tokens, "S3: drafts of one row");
  const Record& record = records_.at(slot.id);
  need(row.kv_begin + row.num_tokens <
           static_cast<int32_t>(record.prompt.size()) + record.max_new_tokens,
       "drafts beyond the end of the answer");
  while (result.num_accepted < num_drafts &&
         tokens[static_cast<size_t>(result.num_accepted) + 1] ==
             sampled_token(slot.id, row.kv_begin + 1 + result.num_accepted, config_.vocab_size))
    ++result.num_accepted;
  slot.kv_end = row.kv_begin + 1 + result.num_accepted;
  num_drafts_accepted_ += result.num_accepted;
  num_drafts_rejected_ += num_drafts - result.num_accepted;
}

/// Up to five guesses, three of four right.
std::vector<TokenId> SchedulerHarness::guess_drafts(RequestId id, int32_t position) const {
  std::vector<TokenId> drafts;
  const uint64_t luck = mix(id ^ (static_cast<uint64_t>(position) << 32U));
  for (uint64_t i = 0; i < luck % 6; ++i) {
    const bool is_right = (luck >> (8 + 2 * i)) % 4 != 0;
    const TokenId right = sampled_token(id, position + static_cast<int32_t>(i), config_.vocab_size);
    drafts.push_back(is_right ? right : (right + 1) % config_.vocab_size);
  }
  return drafts;
}

void SchedulerHarness::run_row(const PlanRow& row, std::span<const TokenId> tokens, Step& step) {
  Slot& slot = slots_.at(row.slot);
  const Record& record = records_.at(slot.id);
  const int32_t end = row.kv_begin + row.num_tokens;
  need(static_cast<size_t>(end) <= slot.pages.size() * 64, "S11: a row beyond its pages");
  if (slot.kv_end < 0) {
    check_prefix(slot, row.kv_begin);
    need(row.kv_begin < static_cast<int32_t>(record.prompt.size() + record.tokens.size()),
         "R12: a match leaves a token to compute");
    if (slot.is_fresh)
      records_.at(slot.id).num_reused_tokens = row.kv_begin;
  } else
    need(row.kv_begin == slot.kv_end ||
             (record.wants_prompt_logprobs && row.kv_begin == slot.kv_end - 1),
         "S10: every position once and in order");
  need(end <= slot.num_prompt ||
           (row.form == AttentionForm::generated && row.kv_begin >= slot.num_prompt),
       "a row crosses the end of the prompt");
  uint64_t hash = row.kv_begin == 0 ? 0 : kv(slot, row.kv_begin - 1).prefix_hash;
  for (int32_t i = row.kv_begin; i < end; ++i) {
    TokenId token = tokens[static_cast<size_t>(i - row.kv_begin)];
    if (token == kTokenFromDevice) {
      need(slot.last_position == i, "no token on the device for this position");
      token = slot.last_token;
    }
    const TokenId expected = i < slot.num_prompt ? record.prompt[static_cast<size_t>(i)]
                                                 : sampled_token(slot.id, i, config_.vocab_size);
    const bool is_draft = verifies_drafts(row) && i > row.kv_begin;
    need(is_draft || token == expected, "L3: the plan carries a wrong token");
    hash = extend_hash(hash, token);
    kv(slot, i) = {hash, record.name_space};
    step.written.insert(slot.pages[static_cast<size_t>(i / 64)]);
  }
  for (int32_t i = 0; i < end; i += 64)
    step.read.insert(slot.pages[static_cast<size_t>(i / 64)]);
  slot.kv_end = end;
  if (row.num_logits == 0)
    return;
  RowResult result;
  result.slot = row.slot;
  for (size_t i = tokens.size() - static_cast<size_t>(row.num_logits); i + 1 < tokens.size(); ++i)
    result.prompt_logprobs.push_back({tokens[i + 1], -1.0F});
  if (verifies_drafts(row))
    verify_drafts(row, tokens, result);
  if (row.sample) {
    result.token = sampled_token(slot.id, slot.kv_end, config_.vocab_size);
    result.drafts = guess_drafts(slot.id, slot.kv_end + 1);
    slot.last_token = result.token;
    slot.last_position = slot.kv_end;
  }
  result.has_nan = poisoned_.erase(slot.id) > 0;
  step.result.rows.push_back(std::move(result));
}

void SchedulerHarness::collect() {
  std::vector<TokenEvent> events;
  scheduler_.take_events(events);
  for (const TokenEvent& event : events) {
    Record& record = records_.at(event.id);
    need(record.num_terminal == 0, "L2: an event after the terminal one");
    if (event.token) {
      const auto position = static_cast<int32_t>(record.prompt.size() + record.tokens.size());
      need(*event.token == sampled_token(event.id, position, config_.vocab_size),
           "L3: a token is not the reference's");
      record.tokens.push_back(*event.token);
    }
    record.num_cached_tokens = event.num_cached_tokens;
    need(event.num_cached_tokens == record.num_reused_tokens,
         "L7: cached_tokens is what was not computed");
    record.prompt_logprobs.insert(
        record.prompt_logprobs.end(), event.prompt_logprobs.begin(), event.prompt_logprobs.end());
    if (event.finish) {
      ++record.num_terminal;
      running_.erase(event.id);
      uncertain_.erase(event.id);
      record.finish = *event.finish;
      need(record.finish != FinishReason::length ||
               static_cast<int32_t>(record.tokens.size()) == record.max_new_tokens,
           "L7: length");
    }
  }
  scheduler_.check_invariants();
}

}  // namespace hadal
