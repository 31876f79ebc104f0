// See quarantine.h.
#include <algorithm>
#include <chrono>

#include <hadal/traffic/quarantine.h>

namespace hadal {
namespace {

double seconds_between(TimePoint from, TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

void Quarantine::forget_old(TimePoint now) {
  std::erase_if(suspects_, [&](const auto& entry) {
    return seconds_between(entry.second.last, now) > config_.seconds;
  });
}

void Quarantine::on_failure(const std::string& fingerprint, TimePoint now) {
  if (config_.failures == 0)
    return;
  forget_old(now);
  if (suspects_.size() >= kKnownMax && !suspects_.contains(fingerprint)) {
    suspects_.erase(
        std::min_element(suspects_.begin(), suspects_.end(), [](const auto& a, const auto& b) {
          return a.second.last < b.second.last;
        }));
  }
  Suspect& suspect = suspects_[fingerprint];
  ++suspect.num_failures;
  suspect.last = now;
}

void Quarantine::on_success(const std::string& fingerprint) {
  const auto found = suspects_.find(fingerprint);
  if (found != suspects_.end() && !is_refused(found->second))
    suspects_.erase(found);
}

double Quarantine::refused_seconds(const std::string& fingerprint, TimePoint now) {
  forget_old(now);
  const auto found = suspects_.find(fingerprint);
  if (found == suspects_.end() || !is_refused(found->second))
    return 0.0;
  return std::max(1e-3, config_.seconds - seconds_between(found->second.last, now));
}

size_t Quarantine::num_refused(TimePoint now) const {
  return static_cast<size_t>(
      std::count_if(suspects_.begin(), suspects_.end(), [&](const auto& entry) {
        return is_refused(entry.second) &&
               seconds_between(entry.second.last, now) <= config_.seconds;
      }));
}

}  // namespace hadal
