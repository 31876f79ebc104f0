// The registry on prometheus-cpp, which only this module includes.
//
// Each number is kept once or twice: under our name (prefix hadal_), and where SGLang v0.4.3 (or a
// later one that dashboards expect) has a counterpart, under that name beside it, so that existing
// dashboards and autoscalers keep working.
#include <deque>
#include <map>
#include <mutex>
#include <vector>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <hadal/metrics/metrics.h>

namespace hadal {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

class CounterHandle final : public Counter {
 public:
  explicit CounterHandle(std::vector<prometheus::Counter*> series) : series_(std::move(series)) {}

  void add(double amount) override {
    for (prometheus::Counter* counter : series_)
      counter->Increment(amount);
  }

 private:
  std::vector<prometheus::Counter*> series_;
};

class CounterSetHandle final : public CounterSet {
 public:
  CounterSetHandle(prometheus::Family<prometheus::Counter>& family, std::string label)
      : family_(family), label_(std::move(label)) {}

  Counter& at(std::string_view label_value) override {
    const std::lock_guard lock(mutex_);
    auto found = counters_.find(label_value);
    if (found == counters_.end()) {
      const std::string value = counters_.size() < kValuesMax ? std::string(label_value) : "other";
      found = counters_.find(value);
      if (found == counters_.end()) {
        prometheus::Counter* series = &family_.Add({{label_, value}});
        found = counters_.try_emplace(value, std::vector{series}).first;
      }
    }
    return found->second;
  }

 private:
  prometheus::Family<prometheus::Counter>& family_;
  const std::string label_;
  std::mutex mutex_;
  std::map<std::string, CounterHandle, std::less<>> counters_;
};

class GaugeHandle final : public Gauge {
 public:
  explicit GaugeHandle(std::vector<prometheus::Gauge*> series) : series_(std::move(series)) {}

  void set(double value) override {
    for (prometheus::Gauge* gauge : series_)
      gauge->Set(value);
  }

 private:
  std::vector<prometheus::Gauge*> series_;
};

class HistogramHandle final : public Histogram {
 public:
  explicit HistogramHandle(std::vector<prometheus::Histogram*> series)
      : series_(std::move(series)) {}

  void observe(double value) override {
    for (prometheus::Histogram* histogram : series_)
      histogram->Observe(value);
  }

 private:
  std::vector<prometheus::Histogram*> series_;
};

/// Bucket bounds of SGLang v0.4.3, so that quantiles of both agree.
Buckets first_token_buckets() {
  return {.1, .25, .5, .75, 1, 2, 5, 10, 20, 40, 60, 80, 120, 160};
}

Buckets per_token_buckets() {
  return {.005, .01, .015, .02, .025, .03, .04, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5};
}

Buckets request_buckets() {
  return {.1, .25, .5, 1, 2, 5, 10, 20, 40, 60, 80, 120, 160};
}

/// Wider than SGLang's: from a null runner's microseconds to a queue of minutes.
Buckets wide_buckets() {
  return {.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300};
}

struct Name {
  const char* ours;
  std::vector<const char*> theirs;
  const char* help;
};

}  // namespace

struct MetricsRegistry::Impl {
  explicit Impl(const std::string& model_name) : labels{{"model_name", model_name}} {}

  Counter& counter(const Name& name) {
    std::vector<prometheus::Counter*> series;
    for (const std::string& full : all_names(name))
      series.push_back(
          &prometheus::BuildCounter().Name(full).Help(name.help).Register(registry).Add(labels));
    return counters.emplace_back(std::move(series));
  }

  CounterSet& counter_set(const Name& name, const char* label) {
    return counter_sets.emplace_back(prometheus::BuildCounter()
                                         .Name(std::string("hadal_") + name.ours)
                                         .Help(name.help)
                                         .Labels(labels)
                                         .Register(registry),
                                     label);
  }

  Gauge& gauge(const Name& name) {
    std::vector<prometheus::Gauge*> series;
    for (const std::string& full : all_names(name))
      series.push_back(
          &prometheus::BuildGauge().Name(full).Help(name.help).Register(registry).Add(labels));
    return gauges.emplace_back(std::move(series));
  }

  Histogram& histogram(const Name& name, const Buckets& buckets) {
    std::vector<prometheus::Histogram*> series;
    for (const std::string& full : all_names(name))
      series.push_back(
          &prometheus::BuildHistogram().Name(full).Help(name.help).Register(registry).Add(labels,
                                                                                          buckets));
    return histograms.emplace_back(std::move(series));
  }

  static std::vector<std::string> all_names(const Name& name) {
    std::vector<std::string> names = {std::string("hadal_") + name.ours};
    for (const char* theirs : name.theirs)
      names.push_back(std::string("sglang:") + theirs);
    return names;
  }

  const prometheus::Labels labels;
  prometheus::Registry registry{prometheus::Registry::InsertBehavior::Throw};
  std::deque<CounterHandle> counters;  // a deque: references stay valid
  std::deque<CounterSetHandle> counter_sets;
  std::deque<GaugeHandle> gauges;
  std::deque<HistogramHandle> histograms;
  Metrics metrics{
      counter({"requests_total", {"num_requests_total"}, "Requests accepted by the engine."}),
      counter({"requests_finished_total", {}, "Requests that ended by a stop or their length."}),
      counter({"requests_failed_total", {}, "Requests that ended with an error."}),
      counter({"requests_cancelled_total",
               {"num_aborted_requests_total"},
               "Requests whose client went away or that were cancelled."}),
      counter({"requests_rejected_total", {}, "Requests refused before they were queued."}),
      counter(
          {"prompt_tokens_total", {"prompt_tokens_total"}, "Prompt tokens of answered requests."}),
      counter({"cached_tokens_total",
               {"cached_tokens_total"},
               "Prompt tokens served from the radix cache."}),
      counter({"generation_tokens_total", {"generation_tokens_total"}, "Tokens generated."}),
      counter({"retractions_total", {}, "Sequences sent back to the queue for want of KV pages."}),
      counter({"evicted_pages_total", {}, "KV pages evicted from the radix cache."}),
      counter({"evicted_page_age_seconds_total",
               {},
               "Time since their last use of the KV pages evicted, summed."}),
      counter({"host_pages_stored_total", {}, "KV pages written to the host tier."}),
      counter({"host_pages_loaded_total", {}, "KV pages brought back from the host tier."}),
      counter({"steps_replayed_total", {}, "Steps replayed from a CUDA graph."}),
      counter({"steps_plain_decode_total", {}, "Steps of decodes alone that ran op by op."}),
      counter({"steps_plain_prefill_total", {}, "Steps with prompt tokens: they run op by op."}),
      counter_set({"rejections_total", {}, "Replies that refused a request, by the gate."}, "gate"),
      counter_set({"key_requests_total", {}, "Requests that began, by API key."}, "key"),
      counter_set({"key_refused_total", {}, "Requests over their API key's limits."}, "key"),
      counter_set({"key_tokens_total", {}, "Prompt and generated tokens, by API key."}, "key"),
      counter({"breaker_trips_total", {}, "Failures of the engine that opened the breaker."}),
      gauge({"breaker_state", {}, "0 closed, 1 open, 2 half open, 3 ramp."}),
      gauge({"breaker_admitted", {}, "Part of the requests at once that the breaker lets in."}),
      gauge({"traffic_level", {}, "Level of the ladder of degradation; 0 is normal."}),
      gauge({"traffic_pressure", {}, "Pressure that the ladder goes by; 1 is as much as can be."}),
      gauge({"quarantined_requests", {}, "Requests refused as present in failures."}),
      gauge({"requests_running", {"num_running_reqs"}, "Requests in the running batch."}),
      gauge({"requests_queued", {"num_queue_reqs"}, "Requests waiting to be admitted."}),
      gauge({"pages", {}, "KV pages."}),
      gauge({"pages_free", {}, "KV pages that hold nothing."}),
      gauge({"pages_cached", {}, "KV pages held by the radix cache alone."}),
      gauge({"kv_bytes", {}, "Bytes of KV pages, of one rank."}),
      gauge({"kv_bytes_cached", {}, "Bytes held by the radix cache alone, of one rank."}),
      gauge({"kv_bytes_leased", {}, "Bytes held by running requests, of one rank."}),
      gauge({"host_pages", {}, "KV pages of the host tier."}),
      gauge({"host_pages_used", {}, "KV pages of the host tier that hold something."}),
      gauge({"cache_oldest_page_age_seconds",
             {},
             "Time since its last use of the KV page that is evicted next."}),
      gauge({"tokens_used", {"num_used_tokens"}, "Tokens of KV in pages of running requests."}),
      gauge({"token_usage", {"token_usage"}, "Share of the KV pages that running requests hold."}),
      gauge({"cache_hit_rate", {"cache_hit_rate"}, "Cached share of prompt tokens, last minute."}),
      gauge({"generation_throughput", {"gen_throughput"}, "Tokens per second, last second."}),
      histogram({"time_to_first_token_seconds",
                 {"time_to_first_token_seconds"},
                 "From submission to the first token."},
                first_token_buckets()),
      histogram({"inter_token_latency_seconds",
                 {"time_per_output_token_seconds", "inter_token_latency_seconds"},
                 "From one token of a request to its next."},
                per_token_buckets()),
      histogram({"request_latency_seconds",
                 {"e2e_request_latency_seconds"},
                 "From submission to the last token."},
                request_buckets()),
      histogram({"queue_time_seconds", {"queue_time_seconds"}, "From submission to admission."},
                wide_buckets()),
      histogram({"step_seconds", {}, "From the submission of a step to its result."},
                wide_buckets()),
  };
};

MetricsRegistry::MetricsRegistry(const std::string& model_name)
    : impl_(std::make_unique<Impl>(model_name)) {}

MetricsRegistry::~MetricsRegistry() = default;

Metrics& MetricsRegistry::metrics() {
  return impl_->metrics;
}

std::string MetricsRegistry::to_prometheus_text() const {
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

}  // namespace hadal
