// Random numbers that are the same everywhere: the standard's distributions are not.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace hadal::sim {

inline uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

/// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(mix(seed)) {}

  uint64_t next() { return mix(state_++); }

  /// In [0, 1).
  double uniform() { return static_cast<double>(next() >> 11U) * 0x1.0p-53; }

  /// In [low, high].
  int32_t integer(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(uniform() * (static_cast<double>(high) - low + 1));
  }

  double exponential(double mean) { return -mean * std::log1p(-uniform()); }

  /// A length with this median; sigma is the standard deviation of its logarithm.
  int32_t log_normal(double median, double sigma, int32_t low, int32_t high) {
    const double radius = std::sqrt(-2.0 * std::log1p(-uniform()));
    const double normal = radius * std::cos(2.0 * 3.14159265358979323846 * uniform());
    const double value = median * std::exp(sigma * normal);
    return static_cast<int32_t>(std::fmin(std::fmax(value, low), high));
  }

 private:
  uint64_t state_;
};

/// Draws 0 .. count - 1, k with weight 1 / (k + 1)^exponent.
class Zipf {
 public:
  Zipf(int32_t count, double exponent) {
    double sum = 0.0;
    for (int32_t k = 1; k <= count; ++k)
      cumulative_.push_back(sum += std::pow(k, -exponent));
  }

  int32_t draw(Random& random) const {
    const double at = random.uniform() * cumulative_.back();
    size_t k = 0;
    while (k + 1 < cumulative_.size() && cumulative_[k] <= at)
      ++k;
    return static_cast<int32_t>(k);
  }

 private:
  std::vector<double> cumulative_;
};

}  // namespace hadal::sim
