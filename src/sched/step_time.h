// How long a step takes, learned from the steps that have run.
//
//   seconds = base + per_decode * decodes                   (steps without prefill teach these)
//           + F(prefill tokens)                             (steps with prefill teach these)
//           + per_pair * pairs + per_absorbed_pair * pairs
//
// F is a curve, not a line: a mixture of experts reads most of its weights for 64 tokens as for
// 2,048, so the first tokens of a step's prefill cost many times what later ones do. A line through
// the small chunks would say that large ones are out of reach, and so keep them small for ever. F
// has a point for each power of two of tokens; a point that nothing has confirmed for long is
// forgotten, so that one slow step is not believed for ever either. The last terms are attention's:
// what makes a chunk deep in a long prompt dearer than its first, in either form (cheaper_form()).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include <hadal/plan/batch_plan.h>

namespace hadal {

/// Work of one step. Pairs are of a prefill token and one before it, or itself.
struct StepWork {
  int32_t num_decodes = 0;
  int32_t prefill_tokens = 0;
  /// Of chunks in the non-absorbed form, and kPairsOfPrefixToken for each token before them.
  double prefill_pairs = 0.0;
  double absorbed_pairs = 0.0;  ///< of chunks in the other form

  void add_chunk(int32_t begin, int32_t end, AttentionForm form = AttentionForm::prompt) {
    const double count = static_cast<double>(end) - begin;
    const double pairs = 0.5 * count * (static_cast<double>(end) + begin);
    prefill_tokens += end - begin;
    if (form == AttentionForm::generated)
      absorbed_pairs += pairs;
    else if (count > 0.0)
      prefill_pairs += pairs + static_cast<double>(begin) * kPairsOfPrefixToken;
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

/// y = the sum of cost * x over three columns, no cost below 0; old evidence fades. Where columns
/// go together, the earlier one explains what both could.
class FadingCosts {
 public:
  static constexpr size_t kColumns = 3;
  using Row = std::array<double, kColumns>;

  /// `priors`: the evidence, as sums of squares of x, that a cost is 0. What little there is to
  /// learn from does not make it large.
  explicit FadingCosts(const Row& priors) : priors_(priors) {}

  void observe(const Row& x, double y);

  const Row& costs() const { return costs_; }

 private:
  Row priors_{};
  Row costs_{};
  std::array<Row, kColumns> squares_{};
  Row products_{};
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
  /// `absorbed_chunk_tokens`: see cheaper_form().
  explicit StepTimeModel(int32_t absorbed_chunk_tokens = 0)
      : absorbed_chunk_tokens_(absorbed_chunk_tokens) {}

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
    FadingCosts::Row work{};  ///< tokens first, then what attention costs by
    double seconds = 0.0;     ///< beside decodes
    int64_t last_seen = -1;
  };

  struct Point {
    double tokens = 0.0;
    double seconds = 0.0;
  };

  static FadingCosts::Row row_of(const StepWork& work);
  double attention_seconds(const FadingCosts::Row& work) const;
  void rebuild_curve();
  double curve_at(double tokens) const;

  int32_t absorbed_chunk_tokens_ = 0;
  FadingFit decode_;
  /// Seconds by row_of(), as deviations from the class's mean.
  FadingCosts within_class_{{0.0, 1e5, 1e2}};
  std::array<SizeClass, kClasses> classes_{};
  std::array<Point, kClasses> points_{};  ///< of F, both coordinates grow
  size_t num_points_ = 0;
  double slope_beyond_ = 0.0;  ///< of F after its last point
  int64_t num_observed_ = 0;   ///< steps with prefill
};

}  // namespace hadal
