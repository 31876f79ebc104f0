// See ladder.h.
#include <algorithm>
#include <chrono>
#include <cmath>

#include <hadal/traffic/ladder.h>

namespace hadal {
namespace {

// At the longest wait that admission allows, and in a full queue, a server is busy, not ill: level
// 2. Admission keeps the bound on time by itself, and a few long requests in front of one slot may
// wait for minutes, so time counts no further. A queue beyond its places means that very many keys
// have work at once.
constexpr double kQueueScale = 0.82;
constexpr double kPagesScale = 0.80;
constexpr double kFrontScale = 0.85;
constexpr double kConnectionsScale = 0.75;  ///< closes idle ones early, refuses class batch

}  // namespace

double pressure_of(const PressureSample& sample) {
  return std::max({kQueueScale * std::min(1.0, sample.queue_wait),
                   kQueueScale * sample.queue_fill,
                   kPagesScale * std::min(1.0, sample.pages),
                   kFrontScale * std::min(1.0, sample.body_bytes),
                   kFrontScale * std::min(1.0, sample.text_jobs),
                   kConnectionsScale * std::min(1.0, sample.connections)});
}

void Ladder::update(double pressure, TimePoint now) {
  const double passed = last_ ? std::chrono::duration<double>(now - *last_).count() : 1e9;
  last_ = now;
  pressure_ += (pressure - pressure_) * (1.0 - std::exp(-passed / config_.memory_s));
  if (!config_.is_enabled)
    return;
  int32_t reached = 0;
  while (reached < kLadderLevels && pressure_ >= config_.enter[static_cast<size_t>(reached)])
    ++reached;
  if (reached > level_) {
    level_ = reached;
    calm_since_.reset();
    return;
  }
  const bool is_calm = level_ > 0 && pressure_ < config_.enter[static_cast<size_t>(level_ - 1)] -
                                                     config_.leave_below;
  if (!is_calm) {
    calm_since_.reset();
  } else if (!calm_since_) {
    calm_since_ = now;
  } else if (std::chrono::duration<double>(now - *calm_since_).count() >= config_.leave_after_s) {
    --level_;
    calm_since_.reset();  // each step down is waited for
  }
}

}  // namespace hadal
