// How long a step may take before it counts as hung, from how long such steps have taken.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace hadal {

/// Steps are told apart by their number of tokens, in powers of two. One thread.
class StepDeadline {
 public:
  /// `limit_s` holds until something was measured and is never exceeded; `floor_s` is added to what
  /// the measured times allow.
  StepDeadline(double limit_s, double floor_s) : limit_s_(limit_s), floor_s_(floor_s) {}

  void measured(int64_t num_tokens, double seconds);
  /// floor_s plus ten times the slowest recent step of this size; a size never seen is taken from
  /// the next smaller one, in proportion.
  double allowed_s(int64_t num_tokens) const;

 private:
  static constexpr size_t kSizes = 24;
  static size_t size_class(int64_t num_tokens);

  double limit_s_;
  double floor_s_;
  std::array<double, kSizes> slowest_{};  ///< 0 = never measured
};

}  // namespace hadal
