// Rows of tensors and activations to and from float32.
#pragma once

#include <cstdint>

#include <hadal/ops/kv_record.h>
#include <hadal/tensor/activation.h>
#include <hadal/tensor/tensor.h>

#include "kernel_table.h"

namespace hadal::cpu {

/// Reads columns [column, column + count) of row `row` of an f32 or bf16 matrix.
void load_row(const KernelTable& kernels,
              const ConstTensorView& matrix,
              int64_t row,
              int64_t column,
              int64_t count,
              float* out);

/// Writes them, rounding to the matrix's dtype.
void store_row(const KernelTable& kernels,
               const TensorView& matrix,
               int64_t row,
               int64_t column,
               int64_t count,
               const float* in);

/// Reads a whole row of an activation.
void load_activation_row(const KernelTable& kernels,
                         const ConstActivationView& x,
                         int64_t row,
                         float* out);

/// Writes columns [column, column + count) in the activation's format. For e4m3, `column` is a
/// multiple of 128, and `count` too unless the row ends there.
void store_activation(const KernelTable& kernels,
                      const ActivationView& x,
                      int64_t row,
                      int64_t column,
                      int64_t count,
                      const float* in);

/// Reads one cached token, [latents + rope] values.
void load_kv_record(const KernelTable& kernels,
                    const KvRecord& record,
                    const std::byte* from,
                    float* out);

/// Rounds x to E4M3 with one scale for each 128 values, and back.
void round_to_e4m3(float* x, int64_t count);

}  // namespace hadal::cpu
