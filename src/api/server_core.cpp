// Health as the probes see it: from progress, not from a port being open.
#include "server_core.h"

#include <algorithm>

namespace hadal::api {

void ServerCore::set_model(const ServedModel& model) {
  model_ = model;
  traffic_.set_model(model);
  has_model_.store(true);
}

void ServerCore::set_failed(const std::string& why) {
  {
    const std::lock_guard lock(failure_mutex_);
    if (!failure_) {
      failure_ = why;
    }
  }
  state_.store(ServerState::failed);
}

std::optional<std::string> ServerCore::failure() const {
  {
    const std::lock_guard lock(failure_mutex_);
    if (failure_) {
      return failure_;
    }
  }
  return has_model_.load() ? model_.engine->fatal_error() : std::nullopt;
}

double ServerCore::stalled_seconds() const {
  if (!has_model_.load() || num_working_.load() == 0) {
    return 0.0;
  }
  const TimePoint since{TimePoint::duration(work_since_.load())};
  const TimePoint last = std::max(since, model_.engine->stats().last_step_time);
  const std::chrono::duration<double> waited = system_clock().now() - last;
  return waited.count();
}

bool ServerCore::is_stuck() const {
  return stalled_seconds() > config_.step_timeout_s;
}

bool ServerCore::is_ready() const {
  return state() == ServerState::ready && !failure() && !is_stuck() && !traffic_.is_open();
}

PressureSample ServerCore::pressure() const {
  const auto part = [](auto used, auto all) {
    return static_cast<double>(used) / static_cast<double>(std::max<decltype(all)>(all, 1));
  };
  const EngineStats stats = model_.engine->stats();
  PressureSample sample;
  sample.queue_wait =
      stats.queue_wait_limit_s > 0 ? stats.queue_wait_s / stats.queue_wait_limit_s : 0.0;
  sample.queue_fill = stats.queue_fill;
  sample.pages = stats.num_queued > 0 ? part(stats.pages_leased, stats.pages_total) : 0.0;
  sample.body_bytes = part(body_bytes_.load(), config_.limits.buffered_body_bytes_max);
  sample.text_jobs = part(num_text_jobs_.load(), config_.limits.text_jobs_max);
  sample.connections = part(num_connections_.load(), config_.limits.connections_max);
  return sample;
}

void ServerCore::begin_work() {
  if (num_working_.fetch_add(1) == 0) {
    work_since_.store(system_clock().now().time_since_epoch().count());
  }
}

void ServerCore::end_work() {
  num_working_.fetch_sub(1);
}

bool ServerCore::reserve_body_bytes(int64_t bytes) {
  if (body_bytes_.fetch_add(bytes) + bytes > config_.limits.buffered_body_bytes_max) {
    body_bytes_.fetch_sub(bytes);
    return false;
  }
  return true;
}

bool ServerCore::reserve_text_job() {
  if (num_text_jobs_.fetch_add(1) >= config_.limits.text_jobs_max) {
    num_text_jobs_.fetch_sub(1);
    return false;
  }
  return true;
}

}  // namespace hadal::api
