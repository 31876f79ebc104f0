// See step_time.h.
#include "step_time.h"

#include <algorithm>
#include <bit>

namespace hadal {
namespace {

constexpr double kFade = 0.98;          ///< of the old evidence an observation: memory of 50 steps
constexpr double kPairScale = 1e-3;     ///< keeps the columns of the fit in one range
constexpr int kSweeps = 32;             ///< of the fit of three columns
constexpr double kClassFade = 0.2;      ///< of a class's means an observation
constexpr double kOriginWeight = 0.25;  ///< of a point's; it alone tells the slope from one point
constexpr int64_t kForgetAfter = 256;   ///< steps with prefill
constexpr double kMostTrust = 0.97;
constexpr double kTrustGain = 0.1;  ///< of what is missing, a step that ended after its plan
constexpr double kTrustLoss = 0.7;  ///< times, a step that nearly ended before it
constexpr double kPlanSlackSeconds = 0.5e-3;  ///< between a plan's submission and its turn

}  // namespace

void FadingFit::observe(double x0, double x1, double y) {
  s00_ = kFade * s00_ + x0 * x0;
  s01_ = kFade * s01_ + x0 * x1;
  s11_ = kFade * s11_ + x1 * x1;
  t0_ = kFade * t0_ + x0 * y;
  t1_ = kFade * t1_ + x1 * y;
  solve();
}

/// The unconstrained solution where it is non-negative, else the better edge. Columns that are
/// nearly collinear say nothing about their shares: the first then explains all.
void FadingFit::solve() {
  const double determinant = s00_ * s11_ - s01_ * s01_;
  if (determinant > 1e-6 * s00_ * s11_) {
    const double a0 = (t0_ * s11_ - t1_ * s01_) / determinant;
    const double a1 = (t1_ * s00_ - t0_ * s01_) / determinant;
    if (a0 >= 0.0 && a1 >= 0.0) {
      a0_ = a0;
      a1_ = a1;
      return;
    }
  }
  const double gain0 = s00_ > 0.0 ? std::max(0.0, t0_) * t0_ / s00_ : 0.0;
  const double gain1 = s11_ > 0.0 ? std::max(0.0, t1_) * t1_ / s11_ : 0.0;
  const bool is_first = gain0 >= gain1 * (1.0 - 1e-6);
  a0_ = is_first && s00_ > 0.0 ? std::max(0.0, t0_ / s00_) : 0.0;
  a1_ = !is_first && s11_ > 0.0 ? std::max(0.0, t1_ / s11_) : 0.0;
}

/// Each cost in turn as the others leave it, from nothing on, so that what goes together falls to
/// the first.
void FadingCosts::observe(const Row& x, double y) {
  for (size_t i = 0; i < kColumns; ++i) {
    for (size_t j = 0; j < kColumns; ++j)
      squares_[i][j] = kFade * squares_[i][j] + x[i] * x[j];
    products_[i] = kFade * products_[i] + x[i] * y;
  }
  costs_ = {};
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (size_t i = 0; i < kColumns; ++i) {
      double rest = products_[i];
      for (size_t j = 0; j < kColumns; ++j)
        rest -= j == i ? 0.0 : squares_[i][j] * costs_[j];
      const double evidence = squares_[i][i] + priors_[i];
      costs_[i] = evidence > 0.0 ? std::max(0.0, rest / evidence) : 0.0;
    }
  }
}

double PlanPace::delay(double step_seconds, double host_seconds) const {
  const double latest = step_seconds - host_seconds - 2.0 * kPlanSlackSeconds;
  return std::max(0.0, std::min(trust_ * step_seconds, latest));
}

void PlanPace::observe(double delay, double seconds) {
  if (seconds < delay + kPlanSlackSeconds)
    trust_ *= kTrustLoss;
  else
    trust_ += kTrustGain * (kMostTrust - trust_);
}

void StepTimeModel::observe(const StepWork& work, double seconds) {
  if (work.prefill_tokens == 0) {
    decode_.observe(1.0, work.num_decodes, seconds);
    return;
  }
  const auto index =
      static_cast<size_t>(std::bit_width(static_cast<uint32_t>(work.prefill_tokens))) - 1;
  SizeClass& of = classes_[std::min(index, kClasses - 1)];
  const double rest = std::max(0.0, seconds - decode_seconds(work.num_decodes));
  const double fade = of.last_seen < 0 ? 1.0 : kClassFade;
  FadingCosts::Row deviation = row_of(work);
  for (size_t i = 0; i < deviation.size(); ++i)
    deviation[i] -= of.work[i];
  if (of.last_seen >= 0)
    within_class_.observe(deviation, rest - of.seconds);
  for (size_t i = 0; i < deviation.size(); ++i)
    of.work[i] += fade * deviation[i];
  of.seconds += fade * (rest - of.seconds);
  of.last_seen = ++num_observed_;
  rebuild_curve();
}

FadingCosts::Row StepTimeModel::row_of(const StepWork& work) {
  return {static_cast<double>(work.prefill_tokens),
          kPairScale * work.prefill_pairs,
          kPairScale * work.absorbed_pairs};
}

double StepTimeModel::attention_seconds(const FadingCosts::Row& work) const {
  double seconds = 0.0;
  for (size_t i = 1; i < work.size(); ++i)
    seconds += within_class_.costs()[i] * work[i];
  return seconds;
}

/// Points of the classes that have been seen lately, made to grow; beyond the last one a line, the
/// least-squares one through all points and, with little weight, the origin.
void StepTimeModel::rebuild_curve() {
  num_points_ = 0;
  double weight = kOriginWeight;
  double sum_x = 0.0;
  double sum_y = 0.0;
  double sum_xx = 0.0;
  double sum_xy = 0.0;
  double highest = 0.0;
  for (const SizeClass& of : classes_) {
    if (of.last_seen < 0 || num_observed_ - of.last_seen > kForgetAfter)
      continue;
    const double tokens = of.work[0];
    highest = std::max(highest, of.seconds - attention_seconds(of.work));
    points_[num_points_++] = {tokens, highest};
    weight += 1.0;
    sum_x += tokens;
    sum_y += highest;
    sum_xx += tokens * tokens;
    sum_xy += tokens * highest;
  }
  slope_beyond_ =
      std::max(0.0, (sum_xy - sum_x * sum_y / weight) / (sum_xx - sum_x * sum_x / weight));
}

double StepTimeModel::curve_at(double tokens) const {
  Point below;
  for (size_t i = 0; i < num_points_; ++i) {
    const Point& above = points_[i];
    if (tokens <= above.tokens)
      return below.seconds + (tokens - below.tokens) * (above.seconds - below.seconds) /
                                 (above.tokens - below.tokens);
    below = above;
  }
  return below.seconds + (tokens - below.tokens) * slope_beyond_;
}

double StepTimeModel::decode_seconds(int32_t num_decodes) const {
  return decode_.a0() + decode_.a1() * num_decodes;
}

double StepTimeModel::prefill_seconds(const StepWork& work) const {
  return curve_at(work.prefill_tokens) + attention_seconds(row_of(work));
}

double StepTimeModel::known_seconds(const StepWork& work) const {
  double seconds = decode_seconds(work.num_decodes);
  if (work.prefill_tokens > 0 && num_points_ > 0)
    seconds += curve_at(std::min<double>(work.prefill_tokens, points_[num_points_ - 1].tokens));
  return seconds;
}

int32_t StepTimeModel::tokens_within(double seconds,
                                     const StepWork& so_far,
                                     int32_t begin,
                                     int32_t most) const {
  int32_t low = 0;
  int32_t high = std::max(0, most);
  while (low < high) {
    const int32_t middle = low + (high - low + 1) / 2;
    StepWork work = so_far;
    work.add_chunk(begin, begin + middle, cheaper_form(begin, middle, absorbed_chunk_tokens_));
    if (prefill_seconds(work) <= seconds)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

double StepTimeModel::confirmed_tokens(double seconds) const {
  double tokens = 0.0;
  for (size_t i = 0; i < num_points_ && points_[i].seconds <= seconds; ++i)
    tokens = points_[i].tokens;
  return tokens;
}

int32_t StepTimeModel::efficient_tokens(int32_t num_decodes, int32_t most) const {
  const double decode = decode_seconds(num_decodes);
  const double least_rate = 0.5 * most / (decode + curve_at(most));
  int32_t low = 0;
  int32_t high = std::max(0, most);
  while (low + 1 < high) {
    const int32_t middle = low + (high - low) / 2;
    if (middle >= least_rate * (decode + curve_at(middle)))
      high = middle;
    else
      low = middle;
  }
  return high;
}

}  // namespace hadal
