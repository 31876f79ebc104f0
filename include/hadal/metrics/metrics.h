// Every number hadal exports, named once. Recording is allowed on any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace hadal {

class Counter {
 public:
  virtual ~Counter() = default;
  virtual void add(double amount = 1.0) = 0;
};

class Gauge {
 public:
  virtual ~Gauge() = default;
  virtual void set(double value) = 0;
};

class Histogram {
 public:
  virtual ~Histogram() = default;
  virtual void observe(double value) = 0;
};

/// Counters of one name that differ in one label. Values beyond the first kValuesMax share the
/// series "other", so that no caller can make a page of metrics grow without end.
class CounterSet {
 public:
  static constexpr size_t kValuesMax = 64;
  virtual ~CounterSet() = default;
  /// Lives as long as the set.
  virtual Counter& at(std::string_view label_value) = 0;
};

/// hadal's names carry the prefix `hadal_`; the ones SGLang v0.4.3 exports are written beside them
/// by the registry
/// (`sglang:num_running_reqs`, ...) with the label model_name.
struct Metrics {
  Counter& requests_total;
  Counter& requests_finished_total;
  Counter& requests_failed_total;
  Counter& requests_cancelled_total;
  Counter& requests_rejected_total;
  Counter& prompt_tokens_total;
  Counter& cached_tokens_total;
  Counter& generation_tokens_total;
  Counter& retractions_total;
  Counter& evicted_pages_total;
  Counter& evicted_page_age_seconds_total;  ///< since their last use; over the pages: the mean age
  Counter& host_pages_stored_total;
  Counter& host_pages_loaded_total;
  Counter& steps_replayed_total;       ///< forward passes that were CUDA graphs
  Counter& steps_plain_decode_total;   ///< of decodes, op by op
  Counter& steps_plain_prefill_total;  ///< with prompt tokens or several tokens of a row, op by op
  CounterSet& rejections_total;        ///< by `gate`: replies that refused a request
  CounterSet& key_requests_total;      ///< by `key`: of the API keys' file, as the next two
  CounterSet& key_refused_total;       ///< for want of the key's own allowance
  CounterSet& key_tokens_total;        ///< prompt and generated
  Counter& breaker_trips_total;
  Gauge& breaker_state;     ///< 0 closed, 1 open, 2 half open, 3 ramp
  Gauge& breaker_admitted;  ///< part of the requests that may run at once
  Gauge& traffic_level;     ///< of the ladder, 0 = normal
  Gauge& traffic_pressure;  ///< what the ladder goes by
  Gauge& quarantined_requests;
  Gauge& requests_running;
  Gauge& requests_queued;
  Gauge& pages_total;
  Gauge& pages_free;
  Gauge& pages_cached;
  Gauge& kv_bytes_total;  ///< of one rank, as the next two
  Gauge& kv_bytes_cached;
  Gauge& kv_bytes_leased;
  Gauge& host_pages_total;
  Gauge& host_pages_used;
  Gauge& cache_oldest_page_age_seconds;  ///< since its last use, of the page that is evicted next
  Gauge& tokens_used;                    ///< tokens of KV in leased pages
  Gauge& token_usage;                    ///< fraction of KV pages that are leased
  Gauge& cache_hit_rate;                 ///< cached prompt tokens / prompt tokens, last minute
  Gauge& generation_throughput;          ///< tokens/s over the last second
  Histogram& time_to_first_token_seconds;
  Histogram& inter_token_latency_seconds;
  Histogram& request_latency_seconds;
  Histogram& queue_time_seconds;
  Histogram& step_seconds;
};

/// What /metrics shows.
class MetricsPage {
 public:
  virtual ~MetricsPage() = default;
  /// Prometheus text format 0.0.4. Any thread.
  virtual std::string to_prometheus_text() const = 0;
};

class MetricsRegistry final : public MetricsPage {
 public:
  explicit MetricsRegistry(const std::string& model_name);
  ~MetricsRegistry() override;
  Metrics& metrics();
  std::string to_prometheus_text() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hadal
