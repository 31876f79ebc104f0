// The engine thread: inbox, plan, submit, wait, commit, publish, again. It sleeps when there is no
// work, and it alone calls the scheduler, the runner and the sinks.
//
// The hard thing is that every accepted request ends in exactly one terminal event whatever
// happens: requests leave `requests` only with that event, and stop() ends what is left.
#include <algorithm>
#include <chrono>
#include <utility>

#include <hadal/base/check.h>
#include <hadal/base/log.h>

#include "engine_impl.h"

namespace hadal {

void Engine::Impl::run() {
  while (true) {
    wait_to_plan();
    if (!take_inbox())
      break;
    apply_inbox();
    const Status status = run_step();
    publish();
    update_stats();
    answer_flushes();
    if (!status) {
      log_error("engine: a step failed: " + status.error().message);
      {
        const std::lock_guard lock(inbox.mutex);
        inbox.fatal_error = status.error().message;
      }
      scheduler.abandon("the engine has failed: " + status.error().message);
      step_starts.clear();
      stop("the engine has failed: " + status.error().message);
      return;
    }
  }
  stop("the server is shutting down");
}

/// While the runner works on one step, the next is planned as late as that step's end allows: what
/// arrives until then need not wait for a step that was planned without it. Nobody new comes while
/// the engine drains.
void Engine::Impl::wait_to_plan() {
  if (scheduler.num_in_flight() != 1 || scheduler_config.max_steps_in_flight < 2)
    return;
  const std::chrono::duration<double> delay(scheduler.plan_delay_seconds(host_seconds));
  const TimePoint due = std::max(step_starts.front(), last_retire) +
                        std::chrono::duration_cast<TimePoint::duration>(delay);
  const auto left = due - clock.now();
  if (left <= TimePoint::duration::zero())
    return;
  std::unique_lock lock(inbox.mutex);
  inbox.work.wait_for(lock, left, [&] { return inbox.phase == EnginePhase::draining; });
}

/// Takes what callers left, sleeping while there is nothing to do. False when it is time to stop.
bool Engine::Impl::take_inbox() {
  const bool is_idle = !scheduler.has_work();
  if (is_idle) {
    HADAL_CHECK(requests.empty(), "engine: a request is open that the scheduler does not know");
    HADAL_CHECK(scheduler.stats().pages_leased == 0, "P1: idle, but pages are leased");
#if HADAL_DEBUG_CHECKS
    scheduler.check_invariants();
#endif
    meter.on_idle();
  }
  std::unique_lock lock(inbox.mutex);
  if (is_idle)
    inbox.work.wait(lock, [&] {
      return !inbox.submissions.empty() || !inbox.cancels.empty() || !inbox.flushes.empty() ||
             inbox.phase == EnginePhase::draining;
    });
  if (inbox.phase == EnginePhase::draining) {
    const bool is_done = is_idle && inbox.submissions.empty();
    if (is_done || clock.now() >= inbox.deadline)
      return false;
  }
  new_submissions.swap(inbox.submissions);
  new_cancels.swap(inbox.cancels);
  new_flushes.swap(inbox.flushes);
  // They count as queued until the scheduler's own numbers are known.
  inbox.scheduler_stats.num_waiting += static_cast<int32_t>(new_submissions.size());
  return true;
}

void Engine::Impl::apply_inbox() {
  for (Submission& submission : new_submissions) {
    Request request;
    request.sink = std::move(submission.sink);
    request.times.submitted = submission.submitted;
    request.times.num_prompt_tokens = static_cast<int32_t>(submission.request.prompt.size());
    request.share_key = submission.request.share_key;
    request.share_weight = submission.request.share_weight;
    requests.emplace(submission.id, std::move(request));
    scheduler.submit(submission.id, std::move(submission.request));
  }
  new_submissions.clear();
  for (const RequestId id : new_cancels)
    scheduler.cancel(id);
  new_cancels.clear();
}

/// Submits the next step, if there is one, and retires the oldest when no more may be in flight.
Status Engine::Impl::run_step() {
  const TimePoint now = clock.now();
  scheduler.advance_to(now);
  if (scheduler.plan_next(plan)) {
    step_starts.push_back(now);
    HADAL_RETURN_IF_ERROR(runner->submit(plan));
    const std::chrono::duration<double> spent = clock.now() - now;
    host_seconds = std::max(0.9 * host_seconds, spent.count() + runner->launch_seconds());
    if (scheduler.num_in_flight() < scheduler_config.max_steps_in_flight)
      return ok_status();  // the host plans the next step while this one runs
  }
  if (scheduler.num_in_flight() > 0)
    return retire_step();
  HADAL_CHECK(!scheduler.has_work(), "engine: there is work, but no step for it");
  return ok_status();
}

Status Engine::Impl::retire_step() {
  const Result<StepResult> result = runner->wait();
  if (!result)
    return result.error();
  const TimePoint now = clock.now();
  meter.on_step(std::chrono::duration<double>(now - step_starts.front()).count(),
                runner->step_counts());
  // A step that was submitted ahead starts when the one before it has ended.
  const TimePoint start = std::max(step_starts.front(), last_retire);
  step_starts.pop_front();
  last_retire = now;
  scheduler.commit(result.value(), std::chrono::duration<double>(now - start).count());
  const std::lock_guard lock(inbox.mutex);
  inbox.last_step_id = result.value().step_id;
  inbox.last_step_time = now;
  return ok_status();
}

/// A request that runs, or that ended without, is no longer in the queue.
void Engine::Impl::publish_admissions(TimePoint now) {
  scheduler.take_admitted(admitted);
  if (admitted.empty())
    return;
  const std::lock_guard lock(inbox.mutex);
  for (const RequestId id : admitted) {
    const auto found = requests.find(id);
    HADAL_CHECK(found != requests.end(), "engine: an unknown request was admitted");
    meter.on_admission(found->second.times, now);
    inbox.gate.on_admitted(found->second.queued(), now);
    found->second.is_queued = false;
  }
  admitted.clear();
}

void Engine::Impl::leave_queue(const Request& request, TimePoint now) {
  if (!request.is_queued)
    return;
  const std::lock_guard lock(inbox.mutex);
  inbox.gate.on_left(request.queued(), now);
}

void Engine::Impl::publish() {
  const TimePoint now = clock.now();
  publish_admissions(now);
  scheduler.take_events(events);
  for (TokenEvent& event : events) {
    const auto found = requests.find(event.id);
    HADAL_CHECK(found != requests.end(), "engine: an event after the terminal one");
    meter.on_event(event, found->second.times, now);
    if (event.finish) {
      leave_queue(found->second, now);
      const std::shared_ptr<TokenSink> sink = std::move(found->second.sink);
      requests.erase(found);
      sink->on_event(std::move(event));
    } else {
      found->second.sink->on_event(std::move(event));
    }
  }
  events.clear();
}

void Engine::Impl::update_stats() {
  const SchedulerStats stats = scheduler.stats();
  int32_t num_queued = 0;
  {
    const std::lock_guard lock(inbox.mutex);
    inbox.scheduler_stats = stats;
    num_queued = stats.num_waiting + static_cast<int32_t>(inbox.submissions.size());
  }
  meter.on_stats(stats, num_queued, clock.now());
}

void Engine::Impl::answer_flushes() {
  if (new_flushes.empty())
    return;
  const bool can_flush = !scheduler.has_work();
  if (can_flush) {
    scheduler.flush_cache();
    update_stats();
  }
  const std::lock_guard lock(inbox.mutex);
  for (FlushRequest* flush : new_flushes) {
    flush->is_done = true;
    flush->is_flushed = can_flush;
  }
  new_flushes.clear();
  inbox.answers.notify_all();
}

/// Ends every request that was ever accepted and is still open. No submission can follow: the phase
/// or the fatal error forbids it.
void Engine::Impl::end_all(const std::string& error) {
  {
    const std::lock_guard lock(inbox.mutex);
    new_submissions.swap(inbox.submissions);
    inbox.cancels.clear();
  }
  apply_inbox();
  scheduler.abandon(error);
  publish();
  update_stats();
  HADAL_CHECK(requests.empty(), "engine: a request got no terminal event");
}

void Engine::Impl::stop(const std::string& error) {
  // The device must not write to pages while they are given back.
  while (scheduler.num_in_flight() > 0) {
    if (const Status status = retire_step(); !status) {
      log_error("engine: a step failed while stopping: " + status.error().message);
      break;
    }
  }
  end_all(error);
  const std::lock_guard lock(inbox.mutex);
  inbox.phase = EnginePhase::stopped;
  new_flushes.insert(new_flushes.end(), inbox.flushes.begin(), inbox.flushes.end());
  for (FlushRequest* flush : new_flushes)
    flush->is_done = true;
  inbox.answers.notify_all();
}

}  // namespace hadal
