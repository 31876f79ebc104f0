// How long a step takes, learned from the steps that have run.
//
//   seconds = base + per_decode * decodes                      (steps without prefill teach these)
//           + per_token * prefill tokens + per_pair * pairs    (steps with prefill teach these)
//
// `pairs` counts query-key pairs of prefill attention: what makes a chunk deep in a long prompt
// dearer than its first. Both halves are least-squares fits with non-negative coefficients whose
// evidence fades, each only when new evidence of its own kind arrives.
#pragma once

#include <cstdint>

namespace hadal {

/// Work of one step.
struct StepWork {
  int32_t num_decodes = 0;
  int32_t prefill_tokens = 0;
  double prefill_pairs = 0.0;  ///< sum over prefill tokens of their position

  void add_chunk(int32_t begin, int32_t end) {
    prefill_tokens += end - begin;
    prefill_pairs += 0.5 * (static_cast<double>(end) - begin) * (static_cast<double>(end) + begin);
  }
};

/// y = a0 * x0 + a1 * x1 with a0, a1 >= 0; old evidence fades.
class FadingFit {
 public:
  void observe(double x0, double x1, double y);

  double a0() const { return a0_; }

  double a1() const { return a1_; }

  bool has_evidence() const { return s00_ + s11_ > 0.0; }

 private:
  void solve();

  double s00_ = 0.0;
  double s01_ = 0.0;
  double s11_ = 0.0;
  double t0_ = 0.0;
  double t1_ = 0.0;
  double a0_ = 0.0;
  double a1_ = 0.0;
};

/// Arithmetic only; one thread.
class StepTimeModel {
 public:
  void observe(const StepWork& work, double seconds);

  /// Both kinds of step have been seen: predictions mean something.
  bool is_ready() const { return decode_.has_evidence() && prefill_.has_evidence(); }

  double decode_seconds(int32_t num_decodes) const;
  double prefill_seconds(const StepWork& work) const;
  /// Tokens of prefill from position `begin` on that take `seconds`.
  int32_t tokens_within(double seconds, int32_t begin) const;

 private:
  FadingFit decode_;
  FadingFit prefill_;
};

}  // namespace hadal
