// The engine's interface: what any thread may call. Everything here only touches the inbox.
#include <algorithm>
#include <chrono>
#include <utility>

#include <hadal/base/check.h>
#include <hadal/engine/engine.h>
#include <hadal/metrics/metrics.h>

#include "engine_impl.h"

namespace hadal {
namespace {

SchedulerConfig make_scheduler_config(const EngineConfig& config, const RunnerLimits& limits) {
  SchedulerConfig out;
  out.num_pages = limits.num_pages;
  out.max_slots = limits.max_slots;
  out.max_step_tokens = limits.max_step_tokens;
  out.max_step_logits = limits.max_step_logits;
  out.max_context_tokens = limits.max_context_tokens;
  out.vocab_size = limits.vocab_size;
  out.max_steps_in_flight = limits.max_steps_in_flight;
  out.absorbed_chunk_tokens = limits.absorbed_chunk_tokens;
  out.max_running_requests = config.max_running_requests;
  out.chunked_prefill_tokens = config.chunked_prefill_tokens;
  out.max_prefill_tokens = config.max_prefill_tokens;
  out.target_step_ms = config.target_step_ms;
  out.max_decode_stretch = config.max_decode_stretch;
  out.policy = config.policy;
  out.eviction = config.eviction;
  out.num_host_pages = limits.num_host_pages;
  out.enable_radix_cache = config.enable_radix_cache;
  out.policy_seed = config.policy_seed;
  out.conservativeness = config.schedule_conservativeness;
  return out;
}

}  // namespace

Engine::Impl::Impl(const EngineConfig& engine_config,
                   std::unique_ptr<Runner> engine_runner,
                   Metrics& engine_metrics,
                   const Clock& engine_clock)
    : config(engine_config),
      runner(std::move(engine_runner)),
      metrics(engine_metrics),
      clock(engine_clock),
      scheduler_config(make_scheduler_config(engine_config, runner->limits())),
      inbox({engine_config.max_queued_requests,
             engine_config.max_queued_tokens,
             engine_config.max_queue_wait_s}),
      scheduler(scheduler_config),
      meter(engine_metrics, runner->limits().page_bytes) {
  inbox.scheduler_stats = scheduler.stats();
}

/// Under the inbox's mutex.
Status Engine::Impl::enter_queue(const GenerateRequest& request,
                                 TimePoint now,
                                 QueueRefusal* refusal) {
  if (inbox.fatal_error)
    return Error{ErrorCode::unavailable, "the engine has failed: " + *inbox.fatal_error};
  if (inbox.phase != EnginePhase::created && inbox.phase != EnginePhase::running)
    return Error{ErrorCode::unavailable, "the engine is draining"};
  auto full = inbox.gate.enter({request.share_key,
                                request.share_weight,
                                static_cast<int32_t>(request.prompt.size()),
                                request.deadline},
                               now);
  if (!full)
    return ok_status();
  if (refusal != nullptr)
    *refusal = *full;
  return Error{ErrorCode::resource_exhausted, std::move(full->message)};
}

Result<RequestId> Engine::Impl::submit(GenerateRequest request,
                                       std::shared_ptr<TokenSink> sink,
                                       QueueRefusal* refusal) {
  HADAL_RETURN_IF_ERROR(Scheduler::validate(scheduler_config, request));
  RequestId id = 0;
  {
    const std::lock_guard lock(inbox.mutex);
    const TimePoint now = clock.now();
    if (config.request_timeout_s > 0.0)
      request.deadline =
          std::min(request.deadline,
                   now + std::chrono::duration_cast<TimePoint::duration>(
                             std::chrono::duration<double>(config.request_timeout_s)));
    HADAL_RETURN_IF_ERROR(enter_queue(request, now, refusal));
    id = inbox.next_id++;
    inbox.submissions.push_back({id, std::move(request), std::move(sink), now});
  }
  inbox.work.notify_one();
  return id;
}

void Engine::Impl::drain_and_stop(TimePoint deadline) {
  std::unique_lock lock(inbox.mutex);
  inbox.deadline = std::min(inbox.deadline, deadline);
  if (inbox.phase == EnginePhase::created) {
    inbox.phase = EnginePhase::stopped;
    lock.unlock();
    end_all("the server is shutting down");
    return;
  }
  if (inbox.phase == EnginePhase::running)
    inbox.phase = EnginePhase::draining;
  inbox.work.notify_one();
  inbox.answers.wait(lock, [&] { return inbox.phase == EnginePhase::stopped; });
  lock.unlock();
  const std::lock_guard join_lock(join_mutex);
  if (thread.joinable())
    thread.join();
}

Engine::Engine(const EngineConfig& config,
               std::unique_ptr<Runner> runner,
               Metrics& metrics,
               const Clock& clock)
    : impl_(std::make_unique<Impl>(config, std::move(runner), metrics, clock)) {}

Engine::~Engine() {
  impl_->drain_and_stop(TimePoint::min());
}

Result<RequestId> Engine::submit(GenerateRequest request,
                                 std::shared_ptr<TokenSink> sink,
                                 QueueRefusal* refusal) {
  HADAL_CHECK(sink != nullptr, "engine: submit without a sink");
  Result<RequestId> id = impl_->submit(std::move(request), std::move(sink), refusal);
  (id ? impl_->metrics.requests_total : impl_->metrics.requests_rejected_total).add();
  return id;
}

std::optional<QueueRefusal> Engine::ask(const QueuedRequest& request) {
  std::optional<QueueRefusal> refusal;
  {
    const std::lock_guard lock(impl_->inbox.mutex);
    refusal = impl_->inbox.gate.ask(request, impl_->clock.now());
  }
  if (refusal)
    impl_->metrics.requests_rejected_total.add();
  return refusal;
}

void Engine::cancel(RequestId id) noexcept {
  {
    const std::lock_guard lock(impl_->inbox.mutex);
    if (impl_->inbox.phase == EnginePhase::stopped || id >= impl_->inbox.next_id)
      return;
    impl_->inbox.cancels.push_back(id);
  }
  impl_->inbox.work.notify_one();
}

void Engine::start() {
  const std::lock_guard lock(impl_->inbox.mutex);
  HADAL_CHECK(impl_->inbox.phase == EnginePhase::created, "engine: started twice or stopped");
  impl_->inbox.phase = EnginePhase::running;
  impl_->thread = std::thread([impl = impl_.get()] { impl->run(); });
}

void Engine::drain_and_stop(TimePoint deadline) {
  impl_->drain_and_stop(deadline);
}

bool Engine::flush_cache() {
  std::unique_lock lock(impl_->inbox.mutex);
  if (impl_->inbox.phase == EnginePhase::created)
    return impl_->inbox.submissions.empty();
  if (impl_->inbox.phase == EnginePhase::stopped)
    return false;
  FlushRequest flush;
  impl_->inbox.flushes.push_back(&flush);
  impl_->inbox.work.notify_one();
  impl_->inbox.answers.wait(lock, [&] { return flush.is_done; });
  return flush.is_flushed;
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(impl_->inbox.mutex);
  const SchedulerStats& from = impl_->inbox.scheduler_stats;
  EngineStats stats;
  stats.num_running = from.num_running;
  stats.num_queued = from.num_waiting + static_cast<int32_t>(impl_->inbox.submissions.size());
  stats.pages_total = from.pages_total;
  stats.pages_free = from.pages_free;
  stats.pages_cached = from.pages_cached;
  stats.pages_leased = from.pages_leased;
  stats.num_retractions = from.num_retractions;
  stats.cached_tokens_total = from.num_cached_tokens;
  const QueueGate& gate = impl_->inbox.gate;
  stats.queue_wait_s = gate.total_wait_seconds();
  stats.queue_wait_limit_s = gate.limits().max_wait_seconds;
  stats.queue_fill = std::max(
      gate.num_requests() / static_cast<double>(gate.limits().max_requests),
      static_cast<double>(gate.num_tokens()) / static_cast<double>(gate.limits().max_tokens));
  stats.last_step_id = impl_->inbox.last_step_id;
  stats.last_step_time = impl_->inbox.last_step_time;
  return stats;
}

const RunnerLimits& Engine::limits() const {
  return impl_->runner->limits();
}

std::optional<std::string> Engine::fatal_error() const {
  const std::lock_guard lock(impl_->inbox.mutex);
  return impl_->inbox.fatal_error;
}

}  // namespace hadal
