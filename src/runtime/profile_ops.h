// A backend that times every op of a step and counts what it has to move and compute, for
// `hadal bench step`. Off, it only passes calls on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <hadal/ops/ops.h>

#include "wrapped_backend.h"

namespace hadal {

/// One op of a profiled step. Bytes are those that must cross the memory bus when nothing but the
/// op's own operands is cached: weights once, activations once in and once out. Collectives inside
/// an op are timed with it and not counted.
struct OpSample {
  std::string name;  ///< with the sizes that tell it from others: "linear 2112x7168"
  double seconds = 0.0;
  double bytes = 0.0;
  double flops = 0.0;
  int32_t experts = -1;  ///< different experts that the step's tokens chose; MoE products only
};

enum class ProfileMode : uint8_t {
  off,
  timing,   ///< an event before and after each op
  routing,  ///< reads the router's choices back after each router: slow, for counting bytes
};

class ProfilingOps;

/// Wraps a backend. The mode decides what the ops do that run, or are captured, from then on.
class ProfilingBackend final : public WrappedBackend {
 public:
  explicit ProfilingBackend(std::unique_ptr<Backend> inner);
  ~ProfilingBackend() override;

  /// Forgets the samples of the mode before; `timing` keeps the routing that was read.
  void set_mode(ProfileMode mode);
  /// From now on tokens take these experts instead of their router's: each [tokens, top_k] i32 on
  /// the device, the same for every so many MoE layers. They must stay.
  void set_routing(std::vector<ConstTensorView> expert_ids);
  /// After a step in mode timing has ended.
  std::vector<OpSample> samples() const;

  Ops& ops() override;

 private:
  std::unique_ptr<ProfilingOps> ops_;
};

}  // namespace hadal
