// Who may come in now: the gates before a generating request is read and tokenised, and the pass
// that it carries to its end.
//
// Everything is decided here on rank 0 from values that are at hand, so that a refusal costs
// microseconds whatever the engine does.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <hadal/api/server.h>
#include <hadal/traffic/key_ring.h>
#include <hadal/traffic/traffic_config.h>

#include "api_error.h"

namespace hadal::api {

/// What is known about a generating request before it is read.
struct Knock {
  std::shared_ptr<Tenant> tenant;
  TrafficClass traffic_class = TrafficClass::normal;  ///< at most as urgent as the tenant's
  TimePoint deadline = TimePoint::max();
  int64_t body_bytes = 0;  ///< the most it may have
};

class TrafficControl;

/// One request that came through. It counts against its tenant until it is gone.
class Pass {
 public:
  Pass(TrafficControl& traffic, Knock knock, int64_t estimated_tokens);
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;
  /// Without use(): as if it had never come.
  ~Pass();

  /// Whose share it uses, how urgent it is and until when it is wanted.
  void apply_to(GenerateRequest& request) const;

  /// It reached the engine and has used so many tokens, in all, so far.
  void use(int64_t tokens) { used_tokens_ = tokens; }

  /// The engine has failed since it came in: it ends with an error, whatever the engine does.
  bool is_void() const;

 private:
  TrafficControl& traffic_;
  Knock knock_;
  int64_t estimated_tokens_;
  int64_t epoch_;
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
  /// Why class, level or breaker refuse it now; for what needs the engine but is nobody's.
  std::optional<ApiError> refuse_by_state(TrafficClass traffic_class);
  /// Through the gates that need no body.
  ApiResult<std::unique_ptr<Pass>> admit(Knock knock);

  /// Status, gate and time to wait for what the engine's queue refused.
  ApiError queue_error(const QueueRefusal& refusal) const;
  /// Fills in when a refused client may come again, if nobody has; with jitter, so that those who
  /// were refused together do not come back together.
  void complete(ApiError& error) const;
  /// Counts a reply that refuses.
  void count_refusal(Gate gate);
  /// "G4_queue 312, G6_wait 5" of the refusals since the last call; empty without any.
  std::string take_refusals();

  /// The steps of the ladder that the API takes; any thread, no lock.
  int32_t level() const { return level_.load(std::memory_order_relaxed); }

  BreakerState breaker_state() const { return breaker_state_.load(std::memory_order_relaxed); }

  /// Nobody is let in, but canaries.
  bool is_open() const {
    return breaker_state() == BreakerState::open || breaker_state() == BreakerState::half_open;
  }

  /// Whether fingerprints need to be made.
  bool has_suspects() const { return has_suspects_.load(std::memory_order_relaxed); }

  /// The request's quarantine, if there is one.
  std::optional<ApiError> refuse_suspect(const std::string& fingerprint);
  /// How a request that came through has ended.
  void note_end(const std::string& fingerprint, bool was_in_failure);

  // The monitor's thread.
  /// The engine hangs: what runs is void, nobody comes in.
  void trip(const std::string& why);
  void update(const PressureSample& sample);
  void on_canary(bool is_good);

 private:
  friend class Pass;
  double jitter() const;
  void publish();

  const ApiConfig& config_;
  KeyRing keys_;
  Engine* engine_ = nullptr;
  Metrics* metrics_ = nullptr;
  TimePoint created_;
  double start_seconds_ = 1.0;  ///< that this process took until it served
  mutable std::atomic<uint64_t> num_jitters_{0};
  std::mutex mutex_;  ///< of the next three
  Ladder ladder_;
  Breaker breaker_;
  Quarantine quarantine_;
  std::atomic<int32_t> level_{0};
  std::atomic<BreakerState> breaker_state_{BreakerState::closed};
  std::atomic<bool> has_suspects_{false};
  std::atomic<int64_t> epoch_{0};  ///< trips so far
  std::atomic<int64_t> num_passes_{0};
  std::array<std::atomic<int64_t>, kNumGates> num_refusals_{};
};

}  // namespace hadal::api
