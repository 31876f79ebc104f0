// From tensor parts to prepared weights: reads a rank's rectangles, keeps their place in the scale
// grid, and lets go of the host copy as soon as the backend has its own.
#pragma once

#include <memory>
#include <span>

#include <hadal/backend/backend.h>
#include <hadal/weights/weight_store.h>

#include "weight_map.h"

namespace hadal {

/// A small tensor in device memory.
struct DeviceTensor {
  Buffer memory;
  TensorView view;

  int64_t size_bytes() const { return memory.size_bytes(); }
};

struct KvBHeads {
  int64_t num_heads = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t v_head_dim = 0;
};

class WeightLoader {
 public:
  /// All outlive the loader; `meter` may be null.
  WeightLoader(const WeightStore& store, Backend& backend, LoadMeter* meter);

  /// Prepares the parts as one weight. With `padded_rows`, a single part is filled up with zero
  /// rows.
  Result<std::unique_ptr<Weight>> weight(WeightRole role,
                                         std::span<const TensorPart* const> parts,
                                         const KvBHeads& heads = {},
                                         int64_t padded_rows = 0);
  /// A vector as float32 on the device.
  Result<DeviceTensor> vector_f32(const TensorPart& part);
  /// A table of rows as stored (F16 becomes float32), filled up with zero rows to `padded_rows`.
  Result<DeviceTensor> table(const TensorPart& part, int64_t padded_rows);
  /// Whether both parts hold the same bytes; reads them block by block.
  Result<bool> are_equal(const TensorPart& a, const TensorPart& b);
  /// Host values to the device.
  Result<DeviceTensor> upload(ConstTensorView host);

 private:
  struct HostMatrix;
  /// `may_generate`: the values may be left to the backend.
  Result<HostMatrix> read(const TensorPart& part, int64_t padded_rows, bool may_generate);

  const WeightStore& store_;
  Backend& backend_;
  LoadMeter* meter_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace hadal
