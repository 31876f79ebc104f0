// A backend that passes every call on to another: what wraps a backend overrides the few calls that
// it changes.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include <hadal/backend/backend.h>

namespace hadal {

class WrappedBackend : public Backend {
 public:
  explicit WrappedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

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

  int32_t absorbed_chunk_tokens() const override { return inner_->absorbed_chunk_tokens(); }

  bool has_graphs() const override { return inner_->has_graphs(); }

  Result<std::unique_ptr<Graph>> capture(Stream& stream,
                                         const std::function<void()>& work) override {
    return inner_->capture(stream, work);
  }

  bool generates_weights() const override { return inner_->generates_weights(); }

  Result<DeviceCeilings> measure_ceilings() override { return inner_->measure_ceilings(); }

 protected:
  Backend& inner() { return *inner_; }

 private:
  std::unique_ptr<Backend> inner_;
};

}  // namespace hadal
