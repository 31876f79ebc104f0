// YaRN (arXiv 2309.00071) as DeepSeek uses it. Frequencies are computed step by step in float32
// like the reference: at position 4000 one rounding more or less of a frequency is an angle of
// 2e-4.
#include <algorithm>
#include <cmath>

#include <hadal/model/config.h>

namespace hadal {
namespace {

constexpr double kPi = 3.14159265358979323846;

double mscale_of(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

/// The dimension whose wave makes `rotations` turns over the original context.
double correction_dim(double rotations, const DeepseekConfig& config) {
  return static_cast<double>(config.qk_rope_head_dim) *
         std::log(config.yarn->original_max_position_embeddings / (rotations * 2.0 * kPi)) /
         (2.0 * std::log(config.rope_theta));
}

}  // namespace

std::vector<float> rope_inverse_frequencies(const DeepseekConfig& config) {
  const auto dim = static_cast<float>(config.qk_rope_head_dim);
  const auto half = static_cast<size_t>(config.qk_rope_head_dim / 2);
  std::vector<float> frequencies(half);
  float low = 0.0F;
  float high = 0.0F;
  if (config.yarn) {
    const double last = static_cast<double>(config.qk_rope_head_dim - 1);
    const double first_dim =
        std::max(std::floor(correction_dim(config.yarn->beta_fast, config)), 0.0);
    double last_dim = std::min(std::ceil(correction_dim(config.yarn->beta_slow, config)), last);
    if (last_dim == first_dim) {
      last_dim += 0.001;
    }
    low = static_cast<float>(first_dim);
    high = static_cast<float>(last_dim - first_dim);
  }
  for (size_t i = 0; i < half; ++i) {
    const float period =
        std::pow(static_cast<float>(config.rope_theta), static_cast<float>(2 * i) / dim);
    if (!config.yarn) {
      frequencies[i] = 1.0F / period;
      continue;
    }
    const float ramp = std::clamp((static_cast<float>(i) - low) / high, 0.0F, 1.0F);
    const float keep = 1.0F - ramp;
    const float interpolated = 1.0F / (static_cast<float>(config.yarn->factor) * period);
    frequencies[i] = interpolated * (1.0F - keep) + 1.0F / period * keep;
  }
  return frequencies;
}

float rope_magnitude(const DeepseekConfig& config) {
  if (!config.yarn) {
    return 1.0F;
  }
  const YarnScaling& yarn = *config.yarn;
  return static_cast<float>(mscale_of(yarn.factor, yarn.mscale) /
                            mscale_of(yarn.factor, yarn.mscale_all_dim));
}

float softmax_scale(const DeepseekConfig& config) {
  double scale = 1.0 / std::sqrt(static_cast<double>(config.qk_head_dim()));
  if (config.yarn && config.yarn->mscale_all_dim > 0.0) {
    const double mscale = mscale_of(config.yarn->factor, config.yarn->mscale_all_dim);
    scale *= mscale * mscale;
  }
  return static_cast<float>(scale);
}

}  // namespace hadal
