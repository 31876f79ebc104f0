// See queue_gate.h.
#include <algorithm>
#include <chrono>
#include <cmath>

#include <hadal/base/check.h>
#include <hadal/sched/queue_gate.h>

namespace hadal {
namespace {

// Of the two memories the one that says less is believed: the short one notices that service has
// become slower, the long one that a second of luck was luck.
constexpr std::array<double, 2> kMemorySeconds = {2.0, 10.0};
constexpr double kMinEvidenceSeconds = 0.5;  ///< of waiting, before anything is predicted
constexpr double kBurstSeconds = 2.0;        ///< that the queue may be too long
constexpr double kCalmSeconds = 10.0;        ///< without a refusal, then bursts are welcome again
constexpr int32_t kMinQueued = 4;            ///< of a key that may wait however slow the service
constexpr double kRoomFraction = 0.1;        ///< of a full queue that drains before one comes again

double seconds_between(TimePoint from, TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

void QueueGate::move_to(TimePoint now) {
  const double passed = std::max(0.0, seconds_between(last_, now));
  last_ = std::max(last_, now);
  if (total_.num_requests == 0)
    return;
  for (size_t i = 0; i < services_.size(); ++i) {
    Service& service = services_[i];
    const double fade = std::exp(-passed / kMemorySeconds[i]);
    service.seconds = service.seconds * fade + passed;
    service.num_requests *= fade;
    service.num_tokens *= fade;
  }
}

/// The longer of what its requests and what its tokens take to be admitted.
double QueueGate::drain_seconds(const Backlog& backlog) const {
  double seconds = 0.0;
  for (const Service& service : services_) {
    if (service.seconds < kMinEvidenceSeconds)
      continue;
    // Nothing admitted counts as one that is about to be.
    const double requests_per_s = std::max(1.0, service.num_requests) / service.seconds;
    const double tokens_per_s = std::max(1.0, service.num_tokens) / service.seconds;
    seconds = std::max(seconds, backlog.num_requests / requests_per_s);
    if (service.num_requests >= 1.0)
      seconds = std::max(seconds, static_cast<double>(backlog.num_tokens) / tokens_per_s);
  }
  return seconds;
}

double QueueGate::expected_wait_seconds(std::string_view share_key, double share_weight) const {
  const auto own = backlogs_.find(share_key);
  if (own == backlogs_.end())
    return 0.0;
  // The key gets its part of the service while others wait, and no later than when all are served.
  const double others = total_weight_ - own->second.weight;
  const double part = share_weight / (share_weight + others);
  return std::min(drain_seconds(total_), drain_seconds(own->second) / part);
}

std::optional<QueueRefusal> QueueGate::check_counts(const QueuedRequest& request,
                                                    bool is_first_of_key) const {
  // The first of a key waits in the part that the others cannot fill.
  const int64_t scale = is_first_of_key && total_.num_requests > 0 ? 2 : 1;
  const double retry_after_s = drain_seconds(total_) * kRoomFraction;
  const auto full = [&](std::string why) {
    return QueueRefusal{
        QueueRefusal::Bound::counts, retry_after_s, "the queue is full: " + std::move(why)};
  };
  if (total_.num_requests >= scale * limits_.max_requests)
    return full(std::to_string(total_.num_requests) + " requests are waiting, the limit is " +
                std::to_string(limits_.max_requests));
  // A prompt that is longer than the whole limit may still wait alone.
  if (total_.num_requests > 0 &&
      total_.num_tokens + request.num_prompt_tokens > scale * limits_.max_tokens)
    return full(std::to_string(total_.num_tokens) +
                " prompt tokens are waiting, this request has " +
                std::to_string(request.num_prompt_tokens) + ", the limit is " +
                std::to_string(limits_.max_tokens));
  return std::nullopt;
}

/// Whether there is more work than can be done, by how long the whole queue takes.
void QueueGate::note_pressure(TimePoint now) {
  if (limits_.max_wait_seconds <= 0.0)
    return;
  if (drain_seconds(total_) <= limits_.max_wait_seconds) {
    long_since_.reset();
    if (is_shedding_ && seconds_between(last_refusal_, now) > kCalmSeconds)
      is_shedding_ = false;
    return;
  }
  if (!long_since_)
    long_since_ = now;
  if (!is_shedding_ && seconds_between(*long_since_, now) >= kBurstSeconds) {
    is_shedding_ = true;
    last_refusal_ = now;
  }
}

std::optional<QueueRefusal> QueueGate::ask(const QueuedRequest& request, TimePoint now) {
  move_to(now);
  note_pressure(now);
  const auto own = backlogs_.find(request.share_key);
  if (auto full = check_counts(request, own == backlogs_.end()))
    return full;
  const double wait = expected_wait_seconds(request.share_key, request.share_weight);
  const int32_t num_own = own != backlogs_.end() ? own->second.num_requests : 0;
  const double left_s = std::max(0.0, seconds_between(now, request.deadline));
  const bool is_too_late = request.deadline != TimePoint::max() && wait > left_s;
  if (!is_too_late && !(is_shedding_ && wait > limits_.max_wait_seconds && num_own >= kMinQueued))
    return std::nullopt;
  last_refusal_ = now;
  const std::string about = std::to_string(static_cast<int64_t>(std::min(wait, 1e6) * 1e3));
  if (is_too_late)
    return QueueRefusal{QueueRefusal::Bound::deadline,
                        wait - left_s,
                        "the server is overloaded: a request would wait for about " + about +
                            " ms, longer than until its deadline"};
  return QueueRefusal{
      QueueRefusal::Bound::wait,
      wait - limits_.max_wait_seconds,
      "the server is overloaded: a request would wait for about " + about + " ms, the limit is " +
          std::to_string(static_cast<int64_t>(limits_.max_wait_seconds * 1e3)) + " ms"};
}

Status QueueGate::try_enter(const QueuedRequest& request, TimePoint now) {
  if (auto refusal = enter(request, now))
    return Error{ErrorCode::resource_exhausted, std::move(refusal->message)};
  return ok_status();
}

std::optional<QueueRefusal> QueueGate::enter(const QueuedRequest& request, TimePoint now) {
  if (auto refusal = ask(request, now))
    return refusal;
  const auto own = backlogs_.find(request.share_key);
  Backlog& backlog =
      own != backlogs_.end() ? own->second : backlogs_[std::string(request.share_key)];
  total_weight_ += request.share_weight - (backlog.num_requests > 0 ? backlog.weight : 0.0);
  backlog.weight = request.share_weight;
  ++backlog.num_requests;
  backlog.num_tokens += request.num_prompt_tokens;
  ++total_.num_requests;
  total_.num_tokens += request.num_prompt_tokens;
  return std::nullopt;
}

void QueueGate::leave(const QueuedRequest& request, TimePoint now) {
  const auto own = backlogs_.find(request.share_key);
  HADAL_CHECK(own != backlogs_.end() && own->second.num_requests > 0,
              "queue gate: a request leaves that did not enter");
  move_to(now);
  --total_.num_requests;
  total_.num_tokens -= request.num_prompt_tokens;
  own->second.num_tokens -= request.num_prompt_tokens;
  if (--own->second.num_requests == 0) {
    total_weight_ -= own->second.weight;
    backlogs_.erase(own);
  }
  if (backlogs_.empty())
    total_weight_ = 0.0;  // no rounding is carried on
}

void QueueGate::on_admitted(const QueuedRequest& request, TimePoint now) {
  leave(request, now);
  for (Service& service : services_) {
    service.num_requests += 1.0;
    service.num_tokens += request.num_prompt_tokens;
  }
  note_pressure(now);
}

void QueueGate::on_left(const QueuedRequest& request, TimePoint now) {
  leave(request, now);
  note_pressure(now);
}

}  // namespace hadal
