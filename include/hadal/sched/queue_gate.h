// Who may still wait: the bounds of the queue, in requests, in prompt tokens and in time.
//
// A queue that is longer than its clients' patience serves nobody: at ten times the load that a
// server can take, every answer comes too late, and none of its work counts. So the gate measures
// how fast requests leave the queue and refuses those that would wait longer than
// `max_wait_seconds`. A burst is no overload: the bound holds from when the queue has been too long
// for a while until nothing has been refused for a while. Several keys share the service, so each
// has its own part of the wait: who floods the queue waits for itself.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include <hadal/base/clock.h>
#include <hadal/base/result.h>

namespace hadal {

struct QueueLimits {
  int32_t max_requests = 1024;
  int64_t max_tokens = 4'000'000;  ///< prompt tokens
  /// From submission to admission; 0 = any. A few requests of a key may wait however long.
  double max_wait_seconds = 10.0;
};

/// A request while it waits: the same values on its way in and out.
struct QueuedRequest {
  std::string_view share_key;
  double share_weight = 1.0;
  int32_t num_prompt_tokens = 0;
  TimePoint deadline = TimePoint::max();
};

/// Which bound a request met.
struct QueueRefusal {
  enum class Bound : uint8_t {
    counts,    ///< the queue is full
    wait,      ///< it would wait longer than the server lets anybody wait
    deadline,  ///< it would start after its own deadline
  };
  Bound bound = Bound::counts;
  double retry_after_s = 0.0;  ///< until there is room, at the rate at which the queue drains
  std::string message;
};

/// Arithmetic only; the caller serialises calls. Times never go back.
class QueueGate {
 public:
  explicit QueueGate(const QueueLimits& limits) : limits_(limits) {}

  /// The bound that the request would meet now; nothing is counted in. Where others wait, a key
  /// with nothing in the queue may put one request there up to twice the bounds.
  std::optional<QueueRefusal> ask(const QueuedRequest& request, TimePoint now);
  /// Counts the request in, or says which bound it met, as ask() does.
  std::optional<QueueRefusal> enter(const QueuedRequest& request, TimePoint now);
  /// The same with resource_exhausted.
  Status try_enter(const QueuedRequest& request, TimePoint now);
  /// It runs now for the first time.
  void on_admitted(const QueuedRequest& request, TimePoint now);
  /// It has ended without ever running.
  void on_left(const QueuedRequest& request, TimePoint now);

  /// How long a request of the key would wait; 0 while too little is known.
  double expected_wait_seconds(std::string_view share_key, double share_weight) const;

  /// How long the whole queue takes to be admitted; 0 while too little is known.
  double total_wait_seconds() const { return drain_seconds(total_); }

  const QueueLimits& limits() const { return limits_; }

  int32_t num_requests() const { return total_.num_requests; }

  int64_t num_tokens() const { return total_.num_tokens; }

  /// The bound on the wait holds: there is more work than the server can do.
  bool is_shedding() const { return is_shedding_; }

 private:
  struct Backlog {
    int32_t num_requests = 0;
    int64_t num_tokens = 0;
    double weight = 1.0;
  };

  /// What left the queue by being admitted while somebody waited; fading sums.
  struct Service {
    double seconds = 0.0;
    double num_requests = 0.0;
    double num_tokens = 0.0;
  };

  std::optional<QueueRefusal> check_counts(const QueuedRequest& request,
                                           bool is_first_of_key) const;
  void move_to(TimePoint now);
  void leave(const QueuedRequest& request, TimePoint now);
  void note_pressure(TimePoint now);
  double drain_seconds(const Backlog& backlog) const;

  const QueueLimits limits_;
  std::map<std::string, Backlog, std::less<>> backlogs_;  ///< by key, those that wait
  Backlog total_;
  double total_weight_ = 0.0;        ///< of `backlogs_`
  std::array<Service, 2> services_;  ///< of a short and of a long memory
  TimePoint last_{};
  std::optional<TimePoint> long_since_;  ///< the queue has been too long
  TimePoint last_refusal_{};
  bool is_shedding_ = false;
};

}  // namespace hadal
