// A slow step is remembered and forgotten by one percent a step.
#include <algorithm>
#include <bit>

#include <hadal/cluster/step_deadline.h>

namespace hadal {
namespace {

constexpr double kForget = 0.99;
constexpr double kSlack = 10;

}  // namespace

size_t StepDeadline::size_class(int64_t num_tokens) {
  const auto tokens = static_cast<uint64_t>(std::max<int64_t>(num_tokens, 1));
  return std::min<size_t>(static_cast<size_t>(std::bit_width(tokens)) - 1, kSizes - 1);
}

void StepDeadline::measured(int64_t num_tokens, double seconds) {
  double& slowest = slowest_[size_class(num_tokens)];
  slowest = std::max(slowest * kForget, seconds);
}

double StepDeadline::allowed_s(int64_t num_tokens) const {
  const size_t wanted = size_class(num_tokens);
  for (size_t known = wanted + 1; known-- > 0;) {
    if (slowest_[known] > 0) {
      const double scale = static_cast<double>(uint64_t{1} << (wanted - known));
      return std::min(limit_s_, floor_s_ + kSlack * scale * slowest_[known]);
    }
  }
  return limit_s_;
}

}  // namespace hadal
