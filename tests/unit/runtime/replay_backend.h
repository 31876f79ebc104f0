// The CPU backend with graphs: a captured graph is the function that was captured, run again at
// every launch. So a rank's choice, padding and reuse of graphs are tested without a GPU.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include <hadal/backend/backend.h>

namespace hadal {

class ReplayBackend final : public Backend {
 public:
  explicit ReplayBackend(const CpuBackendConfig& config) : inner_(make_cpu_backend(config)) {}

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

  Ops& ops() override { return inner_->ops(); }

  bool has_graphs() const override { return true; }

  Result<std::unique_ptr<Graph>> capture(Stream& /*stream*/,
                                         const std::function<void()>& work) override {
    return std::unique_ptr<Graph>(std::make_unique<Replay>(work));
  }

 private:
  class Replay final : public Graph {
   public:
    explicit Replay(std::function<void()> work) : work_(std::move(work)) {}

    void launch(Stream& /*stream*/) override { work_(); }

   private:
    std::function<void()> work_;
  };

  std::unique_ptr<Backend> inner_;
};

}  // namespace hadal
