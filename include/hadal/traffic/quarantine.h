// Requests that were there each time the engine failed: retried by a patient client, one of them
// can end a server again and again.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include <hadal/base/clock.h>

namespace hadal {

struct QuarantineConfig {
  int32_t failures = 2;    ///< of the engine that a request may be present in; 0 = any number
  double seconds = 600.0;  ///< that it is refused for, and that its presence is remembered
};

/// Arithmetic only; the caller serialises calls. Times never go back. A fingerprint is a digest of
/// the request that nobody outside can make.
class Quarantine {
 public:
  static constexpr size_t kKnownMax = 4096;  ///< the oldest are forgotten

  explicit Quarantine(const QuarantineConfig& config) : config_(config) {}

  /// The engine failed while it had this request; once for each failure.
  void on_failure(const std::string& fingerprint, TimePoint now);
  /// It was answered: it is not the one.
  void on_success(const std::string& fingerprint);
  /// Seconds that it is refused for; 0 = it may come.
  double refused_seconds(const std::string& fingerprint, TimePoint now);

  /// Nothing is known of anybody, so that no fingerprint need be made.
  bool is_empty() const { return suspects_.empty(); }

  size_t num_refused(TimePoint now) const;

 private:
  struct Suspect {
    int32_t num_failures = 0;
    TimePoint last{};
  };

  bool is_refused(const Suspect& suspect) const {
    return config_.failures > 0 && suspect.num_failures >= config_.failures;
  }

  void forget_old(TimePoint now);

  const QuarantineConfig config_;
  std::map<std::string, Suspect, std::less<>> suspects_;
};

}  // namespace hadal
