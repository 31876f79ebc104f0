// Dummy weights on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <hadal/backend/generated_values.h>
#include <hadal/tensor/tensor.h>

namespace hadal::cuda {

/// Fills [rows, columns] f8_e4m3, bf16 or f32, rows `row_bytes` apart.
void launch_generate(const GeneratedValues& values,
                     DType dtype,
                     const Shape& shape,
                     std::byte* out,
                     int64_t row_bytes,
                     cudaStream_t stream);

}  // namespace hadal::cuda
