// Dummy weights made where they lie: the same bits as src/weights/dummy.cpp.
#include "device_math.cuh"
#include "generate.h"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kElements = 4;  ///< of a thread, one after the other in a row

struct Params {
  std::byte* out;
  int64_t row_bytes;
  int64_t rows;
  int64_t columns;
  int64_t threads_per_row;
  GeneratedValues values;
  DType dtype;
};

__device__ void store_element(const Params& p, int64_t row, int64_t column, float value) {
  std::byte* at = p.out + row * p.row_bytes;
  switch (p.dtype) {
    case DType::f8_e4m3:
      reinterpret_cast<uint8_t*>(at)[column] = f32_to_e4m3_device(value);
      break;
    case DType::bf16:
      reinterpret_cast<uint16_t*>(at)[column] = f32_to_bf16_bits(value);
      break;
    default:
      reinterpret_cast<float*>(at)[column] = value;
  }
}

__global__ void __launch_bounds__(kThreads) generate_kernel(Params p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = index / p.threads_per_row;
  const int64_t begin = index % p.threads_per_row * kElements;
  if (row >= p.rows) {
    return;
  }
  const int64_t first = p.values.first_index + row * p.values.row_indices;
#pragma unroll
  for (int32_t i = 0; i < kElements; ++i) {
    if (begin + i < p.columns) {
      // Each operation rounds once, as on the host: v is exact either way.
      const float v = generated_unit(p.values.start, first + begin + i);
      store_element(p, row, begin + i, __fmul_rn(p.values.factor, v));
    }
  }
}

}  // namespace

void launch_generate(const GeneratedValues& values,
                     DType dtype,
                     const Shape& shape,
                     std::byte* out,
                     int64_t row_bytes,
                     cudaStream_t stream) {
  Params p{};
  p.out = out;
  p.row_bytes = row_bytes;
  p.rows = shape[0];
  p.columns = shape[1];
  p.threads_per_row = (shape[1] + kElements - 1) / kElements;
  p.values = values;
  p.dtype = dtype;
  const int64_t blocks = (p.rows * p.threads_per_row + kThreads - 1) / kThreads;
  generate_kernel<<<static_cast<uint32_t>(blocks), kThreads, 0, stream>>>(p);
}

}  // namespace hadal::cuda
