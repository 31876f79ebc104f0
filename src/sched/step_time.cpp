// See step_time.h.
#include "step_time.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace hadal {
namespace {

constexpr double kFade = 0.98;       ///< of the old evidence an observation: memory of 50 steps
constexpr double kPairScale = 1e-3;  ///< keeps both columns of the prefill fit in one range

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

void StepTimeModel::observe(const StepWork& work, double seconds) {
  if (work.prefill_tokens == 0)
    decode_.observe(1.0, work.num_decodes, seconds);
  else
    prefill_.observe(work.prefill_tokens,
                     work.prefill_pairs * kPairScale,
                     std::max(0.0, seconds - decode_seconds(work.num_decodes)));
}

double StepTimeModel::decode_seconds(int32_t num_decodes) const {
  return decode_.a0() + decode_.a1() * num_decodes;
}

double StepTimeModel::prefill_seconds(const StepWork& work) const {
  return prefill_.a0() * work.prefill_tokens + prefill_.a1() * kPairScale * work.prefill_pairs;
}

int32_t StepTimeModel::tokens_within(double seconds, int32_t begin) const {
  // per_pair / 2 * n^2 + (per_token + per_pair * begin) * n = seconds
  const double per_pair = prefill_.a1() * kPairScale;
  const double linear = prefill_.a0() + per_pair * begin;
  const double root = std::sqrt(linear * linear + 2.0 * per_pair * std::max(0.0, seconds));
  const double count =
      linear + root > 0.0 ? 2.0 * seconds / (linear + root) : std::numeric_limits<double>::max();
  return static_cast<int32_t>(std::clamp(count, 0.0, 1e9));
}

}  // namespace hadal
