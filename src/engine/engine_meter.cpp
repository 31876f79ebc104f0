// See engine_meter.h.
#include "engine_meter.h"

#include <algorithm>
#include <chrono>

namespace hadal {
namespace {

double seconds_between(TimePoint from, TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

void count(Counter& counter, int64_t now_at, int64_t before) {
  counter.add(static_cast<double>(now_at - before));
}

}  // namespace

MinuteSums::Sums& MinuteSums::at(TimePoint now) {
  const int64_t second =
      std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count();
  for (int64_t i = std::max(second_ + 1, second - kSeconds + 1); i <= second; ++i)
    buckets_[static_cast<size_t>(i % kSeconds)] = Sums{};
  second_ = std::max(second_, second);
  return buckets_[static_cast<size_t>(second_ % kSeconds)];
}

MinuteSums::Sums MinuteSums::minute() const {
  Sums total;
  for (const Sums& bucket : buckets_) {
    total.prompt_tokens += bucket.prompt_tokens;
    total.cached_tokens += bucket.cached_tokens;
    total.generated_tokens += bucket.generated_tokens;
  }
  return total;
}

int64_t MinuteSums::generated_last_second() const {
  return buckets_[static_cast<size_t>((second_ + kSeconds - 1) % kSeconds)].generated_tokens;
}

void EngineMeter::on_admission(const RequestTimes& times, TimePoint now) {
  metrics_.queue_time_seconds.observe(seconds_between(times.submitted, now));
}

void EngineMeter::on_event(const TokenEvent& event, RequestTimes& times, TimePoint now) {
  MinuteSums::Sums& sums = sums_.at(now);
  const bool is_answer = event.token || event.finish == FinishReason::length;
  if (is_answer && !times.has_event) {
    times.has_event = true;
    sums.prompt_tokens += times.num_prompt_tokens;
    sums.cached_tokens += event.num_cached_tokens;
    metrics_.prompt_tokens_total.add(times.num_prompt_tokens);
    metrics_.cached_tokens_total.add(event.num_cached_tokens);
  }
  if (event.token) {
    if (times.has_token)
      metrics_.inter_token_latency_seconds.observe(seconds_between(times.last_token, now));
    else
      metrics_.time_to_first_token_seconds.observe(seconds_between(times.submitted, now));
    times.has_token = true;
    times.last_token = now;
    sums.generated_tokens += 1;
    metrics_.generation_tokens_total.add();
  }
  if (!event.finish)
    return;
  if (*event.finish == FinishReason::cancelled) {
    metrics_.requests_cancelled_total.add();
  } else if (*event.finish == FinishReason::error || *event.finish == FinishReason::deadline) {
    metrics_.requests_failed_total.add();
  } else {
    metrics_.requests_finished_total.add();
    metrics_.request_latency_seconds.observe(seconds_between(times.submitted, now));
  }
}

void EngineMeter::on_step(double seconds, const StepCounts& counts) {
  metrics_.step_seconds.observe(seconds);
  count(metrics_.steps_replayed_total, counts.replayed, last_counts_.replayed);
  count(metrics_.steps_plain_decode_total, counts.plain_decodes, last_counts_.plain_decodes);
  count(metrics_.steps_plain_prefill_total, counts.plain_others, last_counts_.plain_others);
  last_counts_ = counts;
}

void EngineMeter::on_stats(const SchedulerStats& stats, int32_t num_queued, TimePoint now) {
  count(metrics_.retractions_total, stats.num_retractions, last_.num_retractions);
  count(metrics_.evicted_pages_total, stats.num_evicted_pages, last_.num_evicted_pages);
  count(metrics_.host_pages_stored_total, stats.num_pages_to_host, last_.num_pages_to_host);
  count(
      metrics_.host_pages_loaded_total, stats.num_pages_brought_back, last_.num_pages_brought_back);
  metrics_.evicted_page_age_seconds_total.add(stats.evicted_age_seconds -
                                              last_.evicted_age_seconds);
  last_ = stats;
  metrics_.kv_bytes_total.set(page_bytes_ * stats.pages_total);
  metrics_.kv_bytes_cached.set(page_bytes_ * stats.pages_cached);
  metrics_.kv_bytes_leased.set(page_bytes_ * stats.pages_leased);
  metrics_.host_pages_total.set(stats.host_pages_total);
  metrics_.host_pages_used.set(stats.host_pages_used);
  metrics_.cache_oldest_page_age_seconds.set(stats.oldest_age_seconds);
  metrics_.requests_running.set(stats.num_running);
  metrics_.requests_queued.set(num_queued);
  metrics_.pages_total.set(stats.pages_total);
  metrics_.pages_free.set(stats.pages_free);
  metrics_.pages_cached.set(stats.pages_cached);
  metrics_.tokens_used.set(static_cast<double>(stats.pages_leased) * kPageTokens);
  metrics_.token_usage.set(static_cast<double>(stats.pages_leased) / stats.pages_total);
  sums_.at(now);
  const MinuteSums::Sums minute = sums_.minute();
  metrics_.cache_hit_rate.set(minute.prompt_tokens == 0
                                  ? 0.0
                                  : static_cast<double>(minute.cached_tokens) /
                                        static_cast<double>(minute.prompt_tokens));
  metrics_.generation_throughput.set(static_cast<double>(sums_.generated_last_second()));
}

}  // namespace hadal
