// See traffic_control.h.
#include "traffic_control.h"

#include <algorithm>
#include <charconv>
#include <chrono>

#include <hadal/base/log.h>

#include "serving_context.h"

namespace hadal::api {

namespace {

constexpr int64_t kBytesPerToken = 3;       ///< of a first guess at a body's tokens
constexpr int64_t kBytesPerTokenMost = 16;  ///< no text has more: what such a guess refuses is lost
constexpr int64_t kTimeoutMsMax = 86'400'000;

TimePoint now() {
  return system_clock().now();
}

}  // namespace

Pass::Pass(TrafficControl& traffic, Knock knock, int64_t estimated_tokens)
    : traffic_(traffic),
      knock_(std::move(knock)),
      estimated_tokens_(estimated_tokens),
      epoch_(traffic.epoch_.load()) {
  traffic_.num_passes_.fetch_add(1);
}

Pass::~Pass() {
  traffic_.num_passes_.fetch_sub(1);
  Tenant& tenant = *knock_.tenant;
  if (!used_tokens_) {
    tenant.undo(estimated_tokens_, now());
    return;
  }
  tenant.end(estimated_tokens_, *used_tokens_, now());
  if (Metrics* metrics = traffic_.metrics_) {
    metrics->key_requests_total.at(tenant.name()).add();
    metrics->key_tokens_total.at(tenant.name()).add(static_cast<double>(*used_tokens_));
  }
}

bool Pass::is_void() const {
  return epoch_ != traffic_.epoch_.load();
}

void Pass::apply_to(GenerateRequest& request) const {
  const Tenant& tenant = *knock_.tenant;
  const TrafficClass traffic_class = knock_.traffic_class;
  request.share_key = tenant.name();
  if (traffic_class != tenant.traffic_class()) {
    request.share_key += "/" + std::string(class_name(traffic_class));  // its weight is another
  }
  request.share_weight = tenant.weight() * class_weight(traffic_class);
  if (request.priority == 0) {
    request.priority = class_priority(traffic_class);
  }
  request.deadline = std::min(request.deadline, knock_.deadline);
}

TrafficControl::TrafficControl(const ApiConfig& config)
    : config_(config),
      keys_(config.traffic.anonymous),
      created_(now()),
      ladder_(config.traffic.ladder),
      breaker_(config.traffic.breaker, static_cast<uint64_t>(created_.time_since_epoch().count())),
      quarantine_(config.traffic.quarantine) {
  set_keys(config.keys);
}

void TrafficControl::set_model(const ServedModel& model) {
  engine_ = model.engine;
  metrics_ = model.metrics;
  start_seconds_ = std::chrono::duration<double>(now() - created_).count();
}

void TrafficControl::set_keys(const std::vector<ApiKey>& keys) {
  std::vector<ApiKey> all = keys;
  if (!config_.api_key.empty()) {
    all.push_back({"api-key", config_.api_key, 1.0, TrafficClass::normal, {}});
  }
  keys_.set_keys(all, now());
}

ApiResult<Knock> TrafficControl::read_knock(std::shared_ptr<Tenant> tenant,
                                            const std::string* class_header,
                                            const std::string* timeout_header,
                                            int64_t body_bytes) const {
  Knock knock;
  knock.traffic_class = tenant->traffic_class();
  knock.body_bytes = body_bytes;
  if (class_header != nullptr) {
    TrafficClass wanted = TrafficClass::normal;
    if (!parse_class(*class_header, wanted)) {
      return invalid_field("x-hadal-class", "expected interactive, default or batch");
    }
    knock.traffic_class = std::max(knock.traffic_class, wanted);  // a request may only yield
  }
  if (timeout_header != nullptr) {
    int64_t timeout_ms = 0;
    const char* const end = timeout_header->data() + timeout_header->size();
    const auto parsed = std::from_chars(timeout_header->data(), end, timeout_ms);
    if (parsed.ec != std::errc{} || parsed.ptr != end || timeout_ms < 1 ||
        timeout_ms > kTimeoutMsMax) {
      return invalid_field("x-request-timeout-ms",
                           "expected an integer in 1.." + std::to_string(kTimeoutMsMax));
    }
    knock.deadline = now() + std::chrono::milliseconds(timeout_ms);
  }
  knock.tenant = std::move(tenant);
  return knock;
}

std::optional<ApiError> TrafficControl::refuse_by_state(TrafficClass traffic_class) {
  if (breaker_state() != BreakerState::closed) {
    const std::lock_guard lock(mutex_);
    const double fraction = breaker_.admitted_fraction();
    const auto most = static_cast<int64_t>(fraction * engine_->limits().max_slots);
    if (fraction <= 0.0 || (fraction < 1.0 && num_passes_.load() >= std::max<int64_t>(most, 1))) {
      return ApiError{503,
                      fraction <= 0.0 ? "the engine does not answer"
                                      : "the engine answers again; requests are let in by and by",
                      {},
                      "engine_unavailable",
                      Gate::breaker,
                      breaker_.retry_after_seconds(now())};
    }
  }
  const int32_t now_at = level();
  const bool is_refused = (now_at >= 1 && traffic_class == TrafficClass::batch) ||
                          (now_at >= 4 && traffic_class != TrafficClass::interactive) ||
                          now_at >= 5;
  if (is_refused) {
    return ApiError{503,
                    "the server is under pressure and takes no requests of class " +
                        std::string(class_name(traffic_class)),
                    {},
                    "overloaded",
                    Gate::ladder,
                    config_.traffic.ladder.leave_after_s};
  }
  return std::nullopt;
}

ApiResult<std::unique_ptr<Pass>> TrafficControl::admit(Knock knock) {
  if (auto refusal = refuse_by_state(knock.traffic_class)) {
    return std::move(*refusal);
  }
  const int64_t estimate = (knock.body_bytes + kBytesPerToken - 1) / kBytesPerToken;
  if (const auto refusal = knock.tenant->try_begin(estimate, now())) {
    if (metrics_ != nullptr) {
      metrics_->key_refused_total.at(knock.tenant->name()).add();
    }
    return ApiError{429,
                    "over the limit of this API key: " + refusal->what,
                    {},
                    std::string(refusal->code),
                    Gate::identity,
                    refusal->retry_after_s};
  }
  const int64_t least_tokens = knock.body_bytes / kBytesPerTokenMost;
  auto pass = std::make_unique<Pass>(*this, std::move(knock), estimate);
  GenerateRequest like_it;
  pass->apply_to(like_it);
  if (const auto refusal = engine_->ask({like_it.share_key,
                                         like_it.share_weight,
                                         static_cast<int32_t>(least_tokens),
                                         like_it.deadline})) {
    return queue_error(*refusal);
  }
  return pass;
}

ApiError TrafficControl::queue_error(const QueueRefusal& refusal) const {
  switch (refusal.bound) {
    case QueueRefusal::Bound::counts:
      return {503, refusal.message, {}, "queue_full", Gate::queue, refusal.retry_after_s};
    case QueueRefusal::Bound::wait:
      return {503, refusal.message, {}, "overloaded", Gate::wait, refusal.retry_after_s};
    case QueueRefusal::Bound::deadline:
      break;
  }
  return {504, refusal.message, {}, "deadline_exceeded", Gate::wait, refusal.retry_after_s};
}

void TrafficControl::complete(ApiError& error) const {
  if (error.status != 429 && error.status != 503) {
    return;
  }
  if (error.retry_after_s <= 0.0 && error.code == "engine_error") {
    error.retry_after_s = start_seconds_;  // a failed engine's process is started again
  }
  error.retry_after_s = std::clamp(error.retry_after_s, 1.0, 600.0) * jitter();
}

std::optional<ApiError> TrafficControl::refuse_suspect(const std::string& fingerprint) {
  const std::lock_guard lock(mutex_);
  if (quarantine_.refused_seconds(fingerprint, now()) <= 0.0) {
    return std::nullopt;
  }
  return ApiError{400,
                  "the engine failed each time it worked on this request; it is not tried again",
                  {},
                  "quarantined",
                  Gate::quarantine};
}

void TrafficControl::note_end(const std::string& fingerprint, bool was_in_failure) {
  const std::lock_guard lock(mutex_);
  if (was_in_failure) {
    quarantine_.on_failure(fingerprint, now());
  } else {
    quarantine_.on_success(fingerprint);
  }
  has_suspects_.store(!quarantine_.is_empty());
}

void TrafficControl::trip(const std::string& why) {
  log_error("The breaker opens: " + why);
  const std::lock_guard lock(mutex_);
  breaker_.trip(now());
  epoch_.fetch_add(1);
  if (metrics_ != nullptr) {
    metrics_->breaker_trips_total.add();
  }
  publish();
}

void TrafficControl::on_canary(bool is_good) {
  const std::lock_guard lock(mutex_);
  breaker_.on_canary(is_good, now());
  publish();
}

void TrafficControl::update(const PressureSample& sample) {
  const std::lock_guard lock(mutex_);
  breaker_.advance(now());
  ladder_.update(pressure_of(sample), now());
  publish();
}

/// Under the mutex.
void TrafficControl::publish() {
  const int32_t old_level = level_.exchange(ladder_.level());
  if (ladder_.level() != old_level) {
    log_warning("Degradation: level " + std::to_string(old_level) + " -> " +
                std::to_string(ladder_.level()));
  }
  const BreakerState old_state = breaker_state_.exchange(breaker_.state());
  if (breaker_.state() != old_state) {
    log_warning("Breaker: " + std::string(breaker_state_name(old_state)) + " -> " +
                std::string(breaker_state_name(breaker_.state())));
  }
  if (metrics_ != nullptr) {
    metrics_->traffic_level.set(ladder_.level());
    metrics_->traffic_pressure.set(ladder_.pressure());
    metrics_->breaker_state.set(static_cast<double>(breaker_.state()));
    metrics_->breaker_admitted.set(breaker_.admitted_fraction());
    metrics_->quarantined_requests.set(static_cast<double>(quarantine_.num_refused(now())));
  }
}

std::string TrafficControl::take_refusals() {
  std::string text;
  for (size_t i = 0; i < kNumGates; ++i) {
    if (const int64_t count = num_refusals_[i].exchange(0); count > 0) {
      text += (text.empty() ? "" : ", ") + std::string(gate_name(static_cast<Gate>(i))) + " " +
              std::to_string(count);
    }
  }
  return text;
}

void TrafficControl::count_refusal(Gate gate) {
  num_refusals_[static_cast<size_t>(gate)].fetch_add(1, std::memory_order_relaxed);
  if (metrics_ != nullptr) {
    metrics_->rejections_total.at(gate_name(gate)).add();
  }
}

double TrafficControl::jitter() const {
  constexpr double kMost = 18446744073709551616.0;  // 2^64
  return 0.8 + 0.4 * static_cast<double>(mix_bits(num_jitters_.fetch_add(1))) / kMost;
}

}  // namespace hadal::api
