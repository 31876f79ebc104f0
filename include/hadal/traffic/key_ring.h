// The keys of a server and what each has used: who somebody is, and whether it is within its
// limits.
//
// Keys may change while requests run. A tenant lives on by its name: a reload neither refills its
// allowance nor forgets what it is running.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/base/clock.h>
#include <hadal/traffic/api_key.h>
#include <hadal/traffic/token_bucket.h>

namespace hadal {

/// Which limit a request met, and when it may come again.
struct KeyRefusal {
  std::string what;       ///< "60 requests a minute"
  std::string_view code;  ///< OpenAI's machine-readable reason
  double retry_after_s = 0;
};

/// What the x-ratelimit headers say; of limits that are 0 nothing.
struct AllowanceView {
  ApiKeyLimits limits;
  double requests_left = 0;
  double tokens_left = 0;
  double requests_reset_s = 0;  ///< until the allowance is whole again
  double tokens_reset_s = 0;
};

/// One key's holder. Thread-safe.
class Tenant {
 public:
  explicit Tenant(const ApiKey& key);

  const std::string& name() const { return name_; }

  double weight() const;
  TrafficClass traffic_class() const;

  /// Counts the request in with a first estimate of its tokens, or says which limit it met.
  std::optional<KeyRefusal> try_begin(int64_t estimated_tokens, TimePoint now);
  /// The request has ended; `tokens` is what it really used.
  void end(int64_t estimated_tokens, int64_t tokens, TimePoint now);
  /// It was refused elsewhere: as if it had never begun.
  void undo(int64_t estimated_tokens, TimePoint now);

  AllowanceView allowance(TimePoint now);
  int32_t num_running() const;

 private:
  friend class KeyRing;
  void change(const ApiKey& key, TimePoint now);
  double storm_factor(TimePoint now);

  const std::string name_;
  mutable std::mutex mutex_;
  double weight_;
  TrafficClass class_;
  ApiKeyLimits limits_;
  TokenBucket requests_;
  TokenBucket tokens_;
  int32_t num_running_ = 0;
  double refusals_per_s_ = 0;  ///< fading
  double storm_ = 1.0;
  TimePoint last_refusal_{};
};

/// Thread-safe.
class KeyRing {
 public:
  /// No keys: everybody is the tenant "anonymous", with the limits given.
  explicit KeyRing(const ApiKey& anonymous);

  /// Names are unique. No keys = everybody may come.
  void set_keys(const std::vector<ApiKey>& keys, TimePoint now);
  /// The holder of the value of an Authorization header, nullptr when there is none. The time does
  /// not depend on which key is right or how much of it.
  std::shared_ptr<Tenant> identify(const std::string* authorization) const;

  size_t num_keys() const;

 private:
  using Digest = std::array<unsigned char, 32>;

  struct Entry {
    Digest digest;
    std::shared_ptr<Tenant> tenant;
  };

  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
  std::shared_ptr<Tenant> anonymous_;
};

}  // namespace hadal
