// See traffic_control.h.
#include "traffic_control.h"

#include <algorithm>
#include <charconv>
#include <chrono>

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

Pass::~Pass() {
  Tenant& tenant = *knock_.tenant;
  if (!used_tokens_) {
    tenant.undo(estimated_tokens_, now());
    return;
  }
  tenant.end(estimated_tokens_, *used_tokens_, now());
  if (metrics_ != nullptr) {
    metrics_->key_requests_total.at(tenant.name()).add();
    metrics_->key_tokens_total.at(tenant.name()).add(static_cast<double>(*used_tokens_));
  }
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
      keys_(ApiKey{"anonymous", {}, 1.0, TrafficClass::normal, {}}),
      created_(now()) {
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

ApiResult<std::unique_ptr<Pass>> TrafficControl::admit(Knock knock) {
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
  auto pass = std::make_unique<Pass>(std::move(knock), estimate, metrics_);
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

void TrafficControl::count_refusal(Gate gate) {
  if (metrics_ != nullptr) {
    metrics_->rejections_total.at(gate_name(gate)).add();
  }
}

double TrafficControl::jitter() const {
  constexpr double kMost = 18446744073709551616.0;  // 2^64
  return 0.8 + 0.4 * static_cast<double>(mix_bits(num_jitters_.fetch_add(1))) / kMost;
}

}  // namespace hadal::api
