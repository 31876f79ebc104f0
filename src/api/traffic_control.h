// Who may come in now: the gates before a generating request is read and tokenised, and the pass
// that it carries to its end.
//
// Everything is decided here on rank 0 from values that are at hand, so that a refusal costs
// microseconds whatever the engine does.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <hadal/api/server.h>
#include <hadal/traffic/key_ring.h>

#include "api_error.h"

namespace hadal::api {

/// What is known about a generating request before it is read.
struct Knock {
  std::shared_ptr<Tenant> tenant;
  TrafficClass traffic_class = TrafficClass::normal;  ///< at most as urgent as the tenant's
  TimePoint deadline = TimePoint::max();
  int64_t body_bytes = 0;  ///< the most it may have
};

/// One request that came through. It counts against its tenant until it is gone.
class Pass {
 public:
  Pass(Knock knock, int64_t estimated_tokens, Metrics* metrics)
      : knock_(std::move(knock)), estimated_tokens_(estimated_tokens), metrics_(metrics) {}

  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;
  /// Without use(): as if it had never come.
  ~Pass();

  /// Whose share it uses, how urgent it is and until when it is wanted.
  void apply_to(GenerateRequest& request) const;

  /// It reached the engine and has used so many tokens, in all, so far.
  void use(int64_t tokens) { used_tokens_ = tokens; }

  const Knock& knock() const { return knock_; }

 private:
  Knock knock_;
  int64_t estimated_tokens_;
  Metrics* metrics_;
  std::optional<int64_t> used_tokens_;
};

/// Thread-safe.
class TrafficControl {
 public:
  explicit TrafficControl(const ApiConfig& config);

  /// Before the serving port opens; once.
  void set_model(const ServedModel& model);
  /// The keys of a file, beside `--api-key`.
  void set_keys(const std::vector<ApiKey>& keys);

  /// nullptr = 401.
  std::shared_ptr<Tenant> identify(const std::string* authorization) const {
    return keys_.identify(authorization);
  }

  /// Reads what the head says about urgency and time; 400 names the header.
  ApiResult<Knock> read_knock(std::shared_ptr<Tenant> tenant,
                              const std::string* class_header,
                              const std::string* timeout_header,
                              int64_t body_bytes) const;
  /// Through the gates that need no body.
  ApiResult<std::unique_ptr<Pass>> admit(Knock knock);

  /// Status, gate and time to wait for what the engine's queue refused.
  ApiError queue_error(const QueueRefusal& refusal) const;
  /// Fills in when a refused client may come again, if nobody has; with jitter, so that those who
  /// were refused together do not come back together.
  void complete(ApiError& error) const;
  /// Counts a reply that refuses.
  void count_refusal(Gate gate);

 private:
  double jitter() const;

  const ApiConfig& config_;
  KeyRing keys_;
  Engine* engine_ = nullptr;
  Metrics* metrics_ = nullptr;
  TimePoint created_;
  double start_seconds_ = 1.0;  ///< that this process took until it served
  mutable std::atomic<uint64_t> num_jitters_{0};
};

}  // namespace hadal::api
