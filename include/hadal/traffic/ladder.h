// The steps by which a server under pressure gives up what is least missed, and takes it back.
//
// One number, the pressure, is smoothed and compared with the steps. Up at once, down one step at a
// time and only after calm, so that a load that stays the same does not make the server flap.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include <hadal/base/clock.h>

namespace hadal {

inline constexpr int32_t kLadderLevels = 5;

struct LadderConfig {
  bool is_enabled = true;
  std::array<double, kLadderLevels> enter = {0.70, 0.80, 0.88, 0.94, 0.98};
  double leave_below = 0.10;         ///< a level is left this much below where it is entered
  double leave_after_s = 5.0;        ///< of calm
  double memory_s = 1.0;             ///< of the smoothing
  int32_t default_max_tokens = 512;  ///< from level 3 on, for requests that name none
};

/// What a server can run short of, 0 = nothing used, 1 = all.
struct PressureSample {
  double queue_wait = 0;  ///< time to drain the queue / the most that anybody may wait
  double queue_fill = 0;  ///< places in the queue; more than 1 when many keys are new
  double pages = 0;       ///< KV pages of running requests, while others wait
  double body_bytes = 0;  ///< memory of bodies
  double text_jobs = 0;   ///< long prompts that wait to be tokenised
  double connections = 0;
};

/// The largest, each on the scale on which a server that does well under full load stays below the
/// steps that cost clients something: at the bounds that admission itself keeps, the queue weighs
/// 0.82; only a queue beyond its places reaches level 3.
double pressure_of(const PressureSample& sample);

/// Arithmetic only; the caller serialises calls. Times never go back.
class Ladder {
 public:
  explicit Ladder(const LadderConfig& config) : config_(config) {}

  /// Every 100 ms or so.
  void update(double pressure, TimePoint now);

  /// 0 = normal. 1: class batch is refused, idle connections close early. 2: requests for several
  /// answers or more than kDegradedLogprobs are refused. 3: requests that name no length get a
  /// short one. 4: class interactive alone, and connections close. 5: nobody.
  int32_t level() const { return level_; }

  double pressure() const { return pressure_; }

 private:
  const LadderConfig config_;
  int32_t level_ = 0;
  double pressure_ = 0;
  std::optional<TimePoint> calm_since_;
  std::optional<TimePoint> last_;
};

inline constexpr int32_t kDegradedLogprobs = 5;

}  // namespace hadal
