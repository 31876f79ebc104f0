// See simulator.h. The device is a queue of steps with the time each ends; time moves when the
// engine would wait for it.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <map>
#include <queue>
#include <set>

#include <hadal/base/check.h>
#include <hadal/sim/simulator.h>

namespace hadal::sim {
namespace {

constexpr double kOutputWeight = 4.0;
constexpr double kLeastGap = 1e-6;
constexpr double kGapFactor = 1.01;

struct Arrival {
  double time_s = 0.0;
  int32_t index = 0;

  bool operator>(const Arrival& other) const {
    return time_s != other.time_s ? time_s > other.time_s : index > other.index;
  }
};

/// The slots of the device, as far as sampling needs them.
struct Slot {
  int32_t request = 0;
  int32_t num_prompt = 0;
};

struct DeviceStep {
  StepResult result;
  double start_s = 0.0;
  double end_s = 0.0;
  double seconds = 0.0;
};

struct Tenant {
  int32_t num_waiting = 0;
  double second_tokens = 0.0;     ///< in the current second
  bool waited_throughout = true;  ///< in the current second
  double contended_tokens = 0.0;
};

class Simulation {
 public:
  Simulation(const SimConfig& config, const StepModel& model, const Trace& trace)
      : config_(config),
        model_(model),
        trace_(trace),
        scheduler_(config.scheduler),
        gate_(config.queue),
        slots_(static_cast<size_t>(config.scheduler.max_slots)),
        followers_(trace.requests.size()) {
    result_.requests.resize(trace.requests.size());
    for (size_t i = 0; i < trace.requests.size(); ++i) {
      const SimRequest& request = trace.requests[i];
      if (request.after >= 0)
        followers_[static_cast<size_t>(request.after)].push_back(static_cast<int32_t>(i));
      else
        arrivals_.push({request.arrival_s, static_cast<int32_t>(i)});
    }
  }

  SimResult run() {
    while (true) {
      wait_to_plan();
      take_arrivals();
      if (!scheduler_.has_work()) {
        if (arrivals_.empty())
          break;
        move_to(arrivals_.top().time_s);
        continue;
      }
      const std::optional<BatchPlan> plan = scheduler_.plan_next();
      if (plan) {
        submit_step(*plan);
        take_admitted();
        if (scheduler_.num_in_flight() < config_.scheduler.max_steps_in_flight)
          continue;
      }
      if (!device_.empty())
        retire_step();
      else
        HADAL_CHECK(!scheduler_.has_work(), "sim: there is work, but no step for it");
      take_events();
    }
    finish();
    return std::move(result_);
  }

 private:
  void move_to(double time_s) {
    HADAL_CHECK(time_s >= now_s_, "sim: time goes back");
    while (next_sample_s_ <= time_s) {
      take_sample();
      next_sample_s_ += 1.0;
    }
    now_s_ = time_s;
    scheduler_.advance_to(time_point(now_s_));
  }

  static TimePoint time_point(double time_s) {
    return TimePoint{} +
           std::chrono::duration_cast<TimePoint::duration>(std::chrono::duration<double>(time_s));
  }

  void take_sample() {
    const SchedulerStats stats = scheduler_.stats();
    result_.samples.push_back({next_sample_s_,
                               stats.num_running,
                               stats.num_waiting,
                               stats.pages_leased,
                               stats.pages_cached});
    const auto num_backlogged =
        std::count_if(tenants_.begin(), tenants_.end(), [](const auto& entry) {
          return entry.second.waited_throughout && entry.second.num_waiting > 0;
        });
    for (auto& [name, tenant] : tenants_) {
      if (num_backlogged > 1 && tenant.waited_throughout && tenant.num_waiting > 0)
        tenant.contended_tokens += tenant.second_tokens;
      tenant.second_tokens = 0.0;
      tenant.waited_throughout = tenant.num_waiting > 0;
    }
  }

  /// The device works on a step: the next one is planned as late as its end allows.
  void wait_to_plan() {
    if (device_.size() != 1 || config_.scheduler.max_steps_in_flight < 2)
      return;
    const double delay_s = scheduler_.plan_delay_seconds(config_.host_step_s);
    move_to(std::max(now_s_, device_.front().start_s + delay_s));
  }

  void take_arrivals() {
    while (!arrivals_.empty() && arrivals_.top().time_s <= now_s_) {
      const Arrival arrival = arrivals_.top();
      arrivals_.pop();
      submit(arrival);
    }
  }

  void submit(const Arrival& arrival) {
    const SimRequest& request = trace_.requests[static_cast<size_t>(arrival.index)];
    RequestResult& result = result_.requests[static_cast<size_t>(arrival.index)];
    result.arrival_s = arrival.time_s;
    result.num_prompt_tokens = request.num_prompt_tokens();
    result.outcome = Outcome::rejected;
    result.end_s = now_s_;
    GenerateRequest generate = make_request(request, arrival.index);
    if (config_.request_timeout_s > 0.0)
      generate.deadline = time_point(arrival.time_s + config_.request_timeout_s);
    if (!Scheduler::validate(config_.scheduler, generate) ||
        !gate_.try_enter(queued(arrival.index, generate.deadline), time_point(now_s_))) {
      release_followers(arrival.index);
      return;
    }
    result.outcome = Outcome::failed;  // until its last event says otherwise
    const RequestId id = next_id_++;
    indices_.emplace(id, arrival.index);
    ++tenants_[request.tenant].num_waiting;
    queued_.insert(id);
    scheduler_.submit(id, std::move(generate));
  }

  QueuedRequest queued(int32_t index, TimePoint deadline = TimePoint::max()) const {
    const SimRequest& request = trace_.requests[static_cast<size_t>(index)];
    return {request.tenant, 1.0, request.num_prompt_tokens(), deadline};
  }

  static GenerateRequest make_request(const SimRequest& request, int32_t index) {
    GenerateRequest generate;
    generate.prompt.reserve(static_cast<size_t>(request.num_prompt_tokens()));
    for (const TokenSegment& segment : request.prompt)
      append_tokens(segment, generate.prompt);
    generate.max_new_tokens = request.max_new_tokens;
    generate.stop_token_ids.push_back(kStopToken);
    generate.priority = request.priority;
    generate.share_key = request.tenant;
    generate.sampling.temperature = 0.0F;
    generate.sampling.seed = static_cast<uint64_t>(index);  // how the device knows whose slot it is
    return generate;
  }

  void submit_step(const BatchPlan& plan) {
    for (const SlotUpdate& update : plan.slot_updates) {
      if (update.reset)
        slots_[static_cast<size_t>(update.slot)] = {
            static_cast<int32_t>(update.reset->sampling.seed), update.reset->num_prompt_tokens};
    }
    DeviceStep step;
    step.result.step_id = plan.step_id;
    for (const PlanRow& row : plan.rows) {
      if (row.num_logits == 0)
        continue;
      RowResult& result = step.result.rows.emplace_back();
      result.slot = row.slot;
      if (row.sample)
        result.token = sample(slots_[static_cast<size_t>(row.slot)], row.kv_begin + row.num_tokens);
    }
    move_to(now_s_ + config_.host_step_s);
    const double seconds = model_.seconds(StepShape::of(plan));
    step.start_s = std::max(now_s_, device_free_s_);
    device_free_s_ = step.start_s + seconds;
    step.end_s = device_free_s_;
    step.seconds = seconds;
    result_.device_busy_s += seconds;
    ++result_.num_steps;
    device_.push_back(std::move(step));
  }

  TokenId sample(const Slot& slot, int32_t position) const {
    const SimRequest& request = trace_.requests[static_cast<size_t>(slot.request)];
    const int32_t index = position - slot.num_prompt;
    const bool stops =
        index == request.output_tokens - 1 && request.max_new_tokens > request.output_tokens;
    return stops ? kStopToken : token_of(request.output_seed, index);
  }

  void retire_step() {
    const DeviceStep step = std::move(device_.front());
    device_.pop_front();
    move_to(std::max(now_s_, step.end_s));
    scheduler_.commit(step.result, step.seconds);
  }

  void take_admitted() {
    admitted_.clear();
    scheduler_.take_admitted(admitted_);
    for (const RequestId id : admitted_) {
      const int32_t index = indices_.at(id);
      result_.requests[static_cast<size_t>(index)].admitted_s = now_s_;
      queued_.erase(id);
      gate_.on_admitted(queued(index), time_point(now_s_));
      Tenant& tenant = tenants_[trace_.requests[static_cast<size_t>(index)].tenant];
      if (--tenant.num_waiting == 0)
        tenant.waited_throughout = false;
    }
  }

  void take_events() {
    events_.clear();
    scheduler_.take_events(events_);
    for (const TokenEvent& event : events_) {
      const auto found = indices_.find(event.id);
      HADAL_CHECK(found != indices_.end(), "sim: an event after the terminal one");
      const int32_t index = found->second;
      RequestResult& result = result_.requests[static_cast<size_t>(index)];
      Tenant& tenant = tenants_[trace_.requests[static_cast<size_t>(index)].tenant];
      if (event.token) {
        if (result.num_output_tokens > 0 && now_s_ >= config_.gaps_from_s &&
            now_s_ <= config_.gaps_until_s)
          result_.gaps.add(now_s_ - result.last_token_s);
        result.last_token_s = now_s_;
        if (result.num_output_tokens++ == 0) {
          result.first_token_s = now_s_;
          result.num_cached_tokens = event.num_cached_tokens;
          tenant.second_tokens += result.num_prompt_tokens - event.num_cached_tokens;
        }
        tenant.second_tokens += kOutputWeight;
      }
      if (!event.finish)
        continue;
      result.end_s = now_s_;
      const bool is_good =
          *event.finish == FinishReason::stop || *event.finish == FinishReason::length;
      result.outcome = is_good ? Outcome::finished : Outcome::failed;
      if (queued_.erase(event.id) > 0)
        gate_.on_left(queued(index), time_point(now_s_));
      indices_.erase(found);
      release_followers(index);
    }
  }

  /// The turns after this one come, whatever became of it.
  void release_followers(int32_t index) {
    for (const int32_t follower : followers_[static_cast<size_t>(index)])
      arrivals_.push({now_s_ + trace_.requests[static_cast<size_t>(follower)].arrival_s, follower});
  }

  void finish() {
    result_.end_s = now_s_;
    result_.scheduler = scheduler_.stats();
    for (const auto& [name, tenant] : tenants_)
      result_.contended.push_back({name, tenant.contended_tokens});
  }

  const SimConfig& config_;
  const StepModel& model_;
  const Trace& trace_;
  Scheduler scheduler_;
  QueueGate gate_;
  std::vector<Slot> slots_;
  std::vector<std::vector<int32_t>> followers_;
  std::priority_queue<Arrival, std::vector<Arrival>, std::greater<>> arrivals_;
  std::deque<DeviceStep> device_;
  std::map<RequestId, int32_t> indices_;  ///< of open requests
  std::set<RequestId> queued_;            ///< those that the gate counts
  std::map<std::string, Tenant> tenants_;
  std::vector<TokenEvent> events_;
  std::vector<RequestId> admitted_;
  RequestId next_id_ = 1;
  double now_s_ = 0.0;
  double device_free_s_ = 0.0;
  double next_sample_s_ = 0.0;
  SimResult result_;
};

}  // namespace

void GapCounts::add(double seconds) {
  const double index = std::log(std::max(seconds, kLeastGap) / kLeastGap) / std::log(kGapFactor);
  ++counts_[std::min(static_cast<size_t>(index), kClasses - 1)];
  ++count_;
  sum_ += seconds;
}

double GapCounts::quantile(double share) const {
  const auto rank =
      std::max<int64_t>(1, static_cast<int64_t>(std::ceil(share * static_cast<double>(count_))));
  int64_t seen = 0;
  for (size_t i = 0; i < kClasses && count_ > 0; ++i) {
    seen += counts_[i];
    if (seen >= rank)
      return kLeastGap * std::pow(kGapFactor, static_cast<double>(i + 1));
  }
  return 0.0;
}

Result<SimResult> simulate(const SimConfig& config, const StepModel& model, const Trace& trace) {
  SimConfig complete = config;
  complete.scheduler.vocab_size = kVocabSize;
  complete.scheduler.absorbed_chunk_tokens = model.absorbed_chunk_tokens;
  const bool any_fits =
      std::any_of(trace.requests.begin(), trace.requests.end(), [&](const SimRequest& request) {
        const int64_t tokens = int64_t{request.num_prompt_tokens()} + request.max_new_tokens;
        return tokens <= complete.scheduler.max_context_tokens &&
               tokens <= int64_t{complete.scheduler.num_pages} * kPageTokens;
      });
  if (!any_fits)
    return Error{ErrorCode::invalid_argument,
                 trace.name + ": no request fits the context length of " +
                     std::to_string(complete.scheduler.max_context_tokens) + " and the pool of " +
                     std::to_string(int64_t{complete.scheduler.num_pages} * kPageTokens) +
                     " tokens"};
  return Simulation(complete, model, trace).run();
}

}  // namespace hadal::sim
