// A backend that times every op of a step and counts what it has to move and compute, for
// `hadal bench step`. Off, it only passes calls on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <hadal/backend/backend.h>
#include <hadal/ops/ops.h>

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
class ProfilingBackend final : public Backend {
 public:
  explicit ProfilingBackend(std::unique_ptr<Backend> inner);
  ~ProfilingBackend() override;

  /// Forgets the samples of the mode before; `timing` keeps the routing that was read.
  void set_mode(ProfileMode mode);
  /// After a step in mode timing has ended.
  std::vector<OpSample> samples() const;

  Device device() const override { return inner_->device(); }

  Numerics numerics() const override { return inner_->numerics(); }

  Result<Buffer> allocate(int64_t size_bytes, MemoryKind kind) override {
    return inner_->allocate(size_bytes, kind);
  }

  std::unique_ptr<Stream> create_stream() override { return inner_->create_stream(); }

  std::unique_ptr<Event> create_event() override { return inner_->create_event(); }

  void copy(TensorView dst, ConstTensorView src, Stream& stream) override {
    inner_->copy(dst, src, stream);
  }

  MemoryInfo memory_info() const override { return inner_->memory_info(); }

  Result<std::unique_ptr<Weight>> prepare_weight(const WeightSource& source) override {
    return inner_->prepare_weight(source);
  }

  Status reserve(const OpsLimits& limits) override { return inner_->reserve(limits); }

  int64_t reserve_bytes(const OpsLimits& limits) const override {
    return inner_->reserve_bytes(limits);
  }

  Ops& ops() override;

  bool has_graphs() const override { return inner_->has_graphs(); }

  Result<std::unique_ptr<Graph>> capture(Stream& stream,
                                         const std::function<void()>& work) override {
    return inner_->capture(stream, work);
  }

  bool generates_weights() const override { return inner_->generates_weights(); }

  Result<DeviceCeilings> measure_ceilings() override { return inner_->measure_ceilings(); }

 private:
  std::unique_ptr<Backend> inner_;
  std::unique_ptr<ProfilingOps> ops_;
};

}  // namespace hadal
