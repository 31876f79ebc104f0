// How long a step takes, learned from the steps that have run.
//
//   seconds = base + per_decode * decodes                   (steps without prefill teach these)
//           + F(prefill tokens) + per_pair * pairs          (steps with prefill teach these)
//
// F is a curve, not a line: a mixture of experts reads most of its weights for 64 tokens as for
// 2,048, so the first tokens of a step's prefill cost many times what later ones do. A line through
// the small chunks would say that large ones are out of reach, and so keep them small for ever. F
// has a point for each power of two of tokens; a point that nothing has confirmed for long is
// forgotten, so that one slow step is not believed for ever either. `pairs` counts query-key pairs
// of prefill attention: what makes a chunk deep in a long prompt dearer than its first.
#pragma once

#include <array>
#include <cstddef>
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

/// y = a0 * x0 + a1 * x1 with a0, a1 >= 0; old evidence fades. `prior1` is the evidence, as a sum
/// of squares of x1, that a1 is 0: what little there is to learn from does not make it large.
class FadingFit {
 public:
  explicit FadingFit(double prior1 = 0.0) : prior1_(prior1) {}

  void observe(double x0, double x1, double y);

  double a0() const { return a0_; }

  double a1() const { return a1_; }

  bool has_evidence() const { return s00_ + s11_ > 0.0; }

 private:
  void solve();

  double prior1_ = 0.0;
  double s00_ = 0.0;
  double s01_ = 0.0;
  double s11_ = 0.0;
  double t0_ = 0.0;
  double t1_ = 0.0;
  double a0_ = 0.0;
  double a1_ = 0.0;
};

/// When to plan a step ahead: as late as the device allows, so that the plan has all that arrived
/// until then, and not so late that the device waits for it. The prediction of the running step is
/// believed as far as earlier ones were right.
class PlanPace {
 public:
  /// Seconds after the start of a step, predicted to take `step_seconds`, at which the next plan,
  /// which takes the host `host_seconds`, is due; 0 = at once.
  double delay(double step_seconds, double host_seconds) const;

  /// A step took `seconds`, and the plan after it was due `delay` > 0 after its start.
  void observe(double delay, double seconds);

 private:
  double trust_ = 0.5;  ///< part of a prediction within which no step ends
};

/// Arithmetic only; one thread; allocates nothing.
class StepTimeModel {
 public:
  void observe(const StepWork& work, double seconds);

  /// Both kinds of step have been seen: predictions mean something.
  bool is_ready() const { return decode_.has_evidence() && num_points_ > 0; }

  double decode_seconds(int32_t num_decodes) const;

  /// Of the whole step, no more than steps have lately been seen to take.
  double known_seconds(const StepWork& work) const;
  /// What the prefill of a step adds to its decodes.
  double prefill_seconds(const StepWork& work) const;
  /// Most tokens of prefill from position `begin` on, up to `most`, with which the prefill of a
  /// step that has `so_far` takes at most `seconds`.
  int32_t tokens_within(double seconds, const StepWork& so_far, int32_t begin, int32_t most) const;
  /// The largest size of which steps have lately been seen to take at most `seconds` for their
  /// prefill; 0 = none.
  double confirmed_tokens(double seconds) const;
  /// Least prefill tokens, up to `most`, whose step prefills at least half as many a second as one
  /// with `most` does, beside `num_decodes`.
  int32_t efficient_tokens(int32_t num_decodes, int32_t most) const;

 private:
  static constexpr size_t kClasses = 24;

  /// Steps with 2^i .. 2^(i+1) - 1 tokens of prefill: fading means.
  struct SizeClass {
    double tokens = 0.0;
    double pairs = 0.0;
    double seconds = 0.0;  ///< beside decodes
    int64_t last_seen = -1;
  };

  struct Point {
    double tokens = 0.0;
    double seconds = 0.0;
  };

  void rebuild_curve();
  double curve_at(double tokens) const;

  FadingFit decode_;
  FadingFit within_class_{
      1e5};  ///< seconds by tokens and pairs, as deviations from the class's mean
  std::array<SizeClass, kClasses> classes_{};
  std::array<Point, kClasses> points_{};  ///< of F, both coordinates grow
  size_t num_points_ = 0;
  double slope_beyond_ = 0.0;  ///< of F after its last point
  int64_t num_observed_ = 0;   ///< steps with prefill
};

}  // namespace hadal
