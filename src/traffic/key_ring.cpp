// See key_ring.h.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include <hadal/traffic/key_ring.h>

#include <openssl/crypto.h>
#include <openssl/sha.h>

namespace hadal {
namespace {

constexpr std::string_view kScheme = "bearer ";
constexpr double kStormRefusalsPerSecond = 3.0;  ///< then a client is not waiting as it was told
constexpr double kStormFactorMax = 60.0;
constexpr double kConcurrencyRetrySeconds = 1.0;  ///< nobody knows when a stream will end

std::string count_text(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%.0f", number);
  return text;
}

}  // namespace

Tenant::Tenant(const ApiKey& key)
    : name_(key.name),
      weight_(key.weight),
      class_(key.traffic_class),
      limits_(key.limits),
      requests_(key.limits.requests_per_minute),
      tokens_(key.limits.tokens_per_minute) {}

void Tenant::change(const ApiKey& key, TimePoint now) {
  const std::lock_guard lock(mutex_);
  weight_ = key.weight;
  class_ = key.traffic_class;
  limits_ = key.limits;
  requests_.set_limit(limits_.requests_per_minute, now);
  tokens_.set_limit(limits_.tokens_per_minute, now);
}

double Tenant::weight() const {
  const std::lock_guard lock(mutex_);
  return weight_;
}

TrafficClass Tenant::traffic_class() const {
  const std::lock_guard lock(mutex_);
  return class_;
}

int32_t Tenant::num_running() const {
  const std::lock_guard lock(mutex_);
  return num_running_;
}

/// Doubles with each second in which the tenant was refused more often than a client that waits.
double Tenant::storm_factor(TimePoint now) {
  const double passed = std::chrono::duration<double>(now - last_refusal_).count();
  refusals_per_s_ = refusals_per_s_ * std::exp(-std::max(0.0, passed)) + 1.0;
  last_refusal_ = now;
  if (refusals_per_s_ > kStormRefusalsPerSecond) {
    storm_ = std::min(kStormFactorMax, storm_ * std::exp2(std::clamp(passed, 0.0, 1.0)));
  } else {
    storm_ = 1.0;
  }
  return storm_;
}

std::optional<KeyRefusal> Tenant::try_begin(int64_t estimated_tokens, TimePoint now) {
  const std::lock_guard lock(mutex_);
  const auto estimate = static_cast<double>(estimated_tokens);
  KeyRefusal refusal;
  if (!requests_.has(1.0, now)) {
    refusal = {count_text(limits_.requests_per_minute) + " requests a minute",
               "rate_limit_exceeded",
               requests_.seconds_until(1.0, now)};
  } else if (!tokens_.has(estimate, now)) {
    refusal = {count_text(limits_.tokens_per_minute) + " tokens a minute",
               "rate_limit_exceeded",
               tokens_.seconds_until(estimate, now)};
  } else if (limits_.concurrency > 0 && num_running_ >= limits_.concurrency) {
    refusal = {count_text(limits_.concurrency) + " requests at once",
               "concurrency_limit_exceeded",
               kConcurrencyRetrySeconds};
  } else {
    requests_.take(1.0, now);
    tokens_.take(estimate, now);
    ++num_running_;
    return std::nullopt;
  }
  refusal.retry_after_s = std::min(std::max(refusal.retry_after_s, kStormFactorMax),
                                   refusal.retry_after_s * storm_factor(now));
  return refusal;
}

void Tenant::end(int64_t estimated_tokens, int64_t tokens, TimePoint now) {
  const std::lock_guard lock(mutex_);
  tokens_.take(static_cast<double>(tokens - estimated_tokens), now);
  --num_running_;
}

void Tenant::undo(int64_t estimated_tokens, TimePoint now) {
  const std::lock_guard lock(mutex_);
  requests_.take(-1.0, now);
  tokens_.take(-static_cast<double>(estimated_tokens), now);
  --num_running_;
}

AllowanceView Tenant::allowance(TimePoint now) {
  const std::lock_guard lock(mutex_);
  return {limits_,
          requests_.left(now),
          tokens_.left(now),
          requests_.seconds_until(requests_.limit(), now),
          tokens_.seconds_until(tokens_.limit(), now)};
}

KeyRing::KeyRing(const ApiKey& anonymous) : anonymous_(std::make_shared<Tenant>(anonymous)) {}

void KeyRing::set_keys(const std::vector<ApiKey>& keys, TimePoint now) {
  std::vector<Entry> entries;
  const std::lock_guard lock(mutex_);
  for (const ApiKey& key : keys) {
    Entry& entry = entries.emplace_back();
    SHA256(reinterpret_cast<const unsigned char*>(key.secret.data()),
           key.secret.size(),
           entry.digest.data());
    const auto old = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& known) {
      return known.tenant->name() == key.name;
    });
    if (old != entries_.end()) {
      entry.tenant = old->tenant;
      entry.tenant->change(key, now);
    } else {
      entry.tenant = std::make_shared<Tenant>(key);
    }
  }
  entries_ = std::move(entries);
}

size_t KeyRing::num_keys() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

std::shared_ptr<Tenant> KeyRing::identify(const std::string* authorization) const {
  const std::lock_guard lock(mutex_);
  if (entries_.empty())
    return anonymous_;
  if (authorization == nullptr || authorization->size() < kScheme.size())
    return nullptr;
  for (size_t i = 0; i < kScheme.size(); ++i) {
    const char c = (*authorization)[i];
    if ((c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c) != kScheme[i])
      return nullptr;
  }
  // Digests have one length, so the time does not depend on how much of a key is right; all of
  // them are compared, so it does not depend on which.
  const std::string_view secret = std::string_view(*authorization).substr(kScheme.size());
  Digest given{};
  SHA256(reinterpret_cast<const unsigned char*>(secret.data()), secret.size(), given.data());
  std::shared_ptr<Tenant> found;
  for (const Entry& entry : entries_) {
    if (CRYPTO_memcmp(given.data(), entry.digest.data(), given.size()) == 0)
      found = entry.tenant;
  }
  return found;
}

}  // namespace hadal
