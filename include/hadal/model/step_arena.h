// Room for the activations of one step: a bump allocator over one block, reset before every step,
// so that nothing is allocated on the device after start.
//
// The same code that places a step's tensors also measures them: an arena without memory hands out
// null views and remembers how far it got.
#pragma once

#include <algorithm>
#include <cstdint>

#include <hadal/tensor/activation.h>
#include <hadal/tensor/tensor.h>

namespace hadal {

/// Used by one thread. Views stay valid until reset().
class StepArena {
 public:
  /// Measures only: every view's data is null.
  StepArena() = default;

  /// Over `size_bytes` of device memory, 256-byte aligned, which outlive the arena.
  StepArena(std::byte* memory, int64_t size_bytes, Device device)
      : memory_(memory), size_bytes_(size_bytes), device_(device) {}

  void reset() { used_bytes_ = 0; }

  /// Dense tensor, 256-byte aligned, contents undefined. Too large is our mistake: sizes were
  /// planned.
  TensorView take(DType dtype, const Shape& shape);
  ActivationView take_activation(ActFormat format, int64_t rows, int64_t columns);

  /// Most bytes that were in use at once.
  int64_t high_water_bytes() const { return high_water_bytes_; }

 private:
  std::byte* take_bytes(int64_t size_bytes);

  std::byte* memory_ = nullptr;
  int64_t size_bytes_ = 0;
  int64_t used_bytes_ = 0;
  int64_t high_water_bytes_ = 0;
  Device device_;
};

}  // namespace hadal
