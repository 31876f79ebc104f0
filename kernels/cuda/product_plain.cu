// Products in plain float32 arithmetic: any formats, dtypes and block offsets. Serves what the
// tensor-core kernels leave (float32 and float16 operands, slices that begin inside a scale block),
// so it is written for clarity.
#include "cuda_check.h"
#include "product_device.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kRows = kPlainTileRows;
constexpr int32_t kColumns = 128;  ///< of a tile: a quantisation group
constexpr int32_t kStep = 16;      ///< k of one stage
constexpr int32_t kPad = 4;

__device__ float load_weight(const DeviceMatrix& m, const ExpertMatrix& e, int32_t n, int32_t k) {
  const std::byte* row = e.data + n * m.row_bytes;
  switch (m.dtype) {
    case DType::f8_e4m3: {
      const int32_t group = (k + m.column_offset) / static_cast<int32_t>(kScaleBlock);
      return e4m3_to_f32_device(reinterpret_cast<const uint8_t*>(row)[k]) *
             e.scales[static_cast<int64_t>(m.scale_rows[n]) * m.num_groups + group];
    }
    case DType::bf16:
      return bf16_bits_to_f32(reinterpret_cast<const uint16_t*>(row)[k]);
    case DType::f16:
      return __half2float(reinterpret_cast<const __half*>(row)[k]);
    default:
      return reinterpret_cast<const float*>(row)[k];
  }
}

template <int32_t kMatrices>
struct Stage {
  float x[kStep][kRows + kPad];
  float w[kMatrices][kStep][kColumns + kPad];
};

/// Operands of columns k0 .. k0 + kStep; zeros outside.
template <int32_t kMatrices>
__device__ __forceinline__ void fill_stage(const ProductArgs& args,
                                           const RowTile& tile,
                                           const int32_t* entries,
                                           int32_t first,
                                           int32_t k0,
                                           Stage<kMatrices>& stage) {
  const DeviceMatrix& m = matrix_of(args, tile.expert);
  const ExpertMatrix e = expert_matrix(args, tile.expert);
  for (int32_t i = threadIdx.x; i < kRows * kStep; i += kThreads) {
    const int32_t k = i % kStep;
    const int32_t row = i / kStep;
    const bool is_inside = row < tile.count && k0 + k < m.columns;
    stage.x[k][row] = is_inside ? load_act(args.x, x_row_of(args, entries[row]), k0 + k) : 0.0F;
  }
  for (int32_t i = threadIdx.x; i < kMatrices * kColumns * kStep; i += kThreads) {
    const int32_t k = i % kStep;
    const int32_t column = i / kStep % kColumns;
    const int32_t matrix = i / (kStep * kColumns);
    const bool is_inside = first + column < args.out_columns && k0 + k < m.columns;
    const int32_t n = matrix * args.out_columns + first + column;
    stage.w[matrix][k][column] = is_inside ? load_weight(m, e, n, k0 + k) : 0.0F;
  }
}

template <bool kPair>
__global__ void __launch_bounds__(kThreads) plain_kernel(const __grid_constant__ ProductArgs args) {
  constexpr int32_t kMatrices = kPair ? 2 : 1;
  __shared__ Stage<kMatrices> stage;
  __shared__ float result[kRows][kColumns + kPad];
  __shared__ int32_t entries[kRows];
  const RowTile tile = row_tile(args, static_cast<int32_t>(blockIdx.y), kRows);
  if (tile.count <= 0) {
    return;
  }
  if (threadIdx.x < tile.count) {
    entries[threadIdx.x] = entry_of(args, tile.begin + static_cast<int32_t>(threadIdx.x));
  }
  __syncthreads();
  const DeviceMatrix& m = matrix_of(args, tile.expert);
  const int32_t first = static_cast<int32_t>(blockIdx.x) * kColumns;
  const int32_t tx = threadIdx.x % 32;  // columns tx + 32 j
  const int32_t ty = threadIdx.x / 32;  // rows ty * 4 + i
  float total[kMatrices][4][4] = {};
  float part[kMatrices][4][4] = {};
  for (int32_t k0 = 0; k0 < m.columns; k0 += kStep) {
    fill_stage(args, tile, entries, first, k0, stage);
    __syncthreads();
    for (int32_t k = 0; k < kStep; ++k) {
#pragma unroll
      for (int32_t matrix = 0; matrix < kMatrices; ++matrix) {
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
          const float w = stage.w[matrix][k][tx + 32 * j];
#pragma unroll
          for (int32_t i = 0; i < 4; ++i) {
            part[matrix][i][j] = fmaf(stage.x[k][ty * 4 + i], w, part[matrix][i][j]);
          }
        }
      }
    }
    __syncthreads();
    if ((k0 + kStep) % kBlockK == 0 || k0 + kStep >= m.columns) {
#pragma unroll
      for (int32_t matrix = 0; matrix < kMatrices; ++matrix) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
#pragma unroll
          for (int32_t j = 0; j < 4; ++j) {
            total[matrix][i][j] += part[matrix][i][j];
            part[matrix][i][j] = 0.0F;
          }
        }
      }
    }
  }
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      result[ty * 4 + i][tx + 32 * j] =
          kPair ? swiglu(total[0][i][j], total[kMatrices - 1][i][j]) : total[0][i][j];
    }
  }
  __syncthreads();
  for (int32_t row = ty; row < tile.count; row += kThreads / 32) {
    float values[4];
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      values[j] = result[row][tx + 32 * j];
    }
    store_group(args.out, entries[row] - args.out_row_begin, first, args.out_columns, values);
  }
}

}  // namespace

void launch_plain_product(const ProductArgs& args,
                          bool is_pair,
                          const ProductGrid& grid,
                          cudaStream_t stream) {
  const dim3 blocks(static_cast<uint32_t>((args.out_columns + kColumns - 1) / kColumns),
                    static_cast<uint32_t>(grid.num_tiles));
  if (is_pair) {
    plain_kernel<true><<<blocks, kThreads, 0, stream>>>(args);
  } else {
    plain_kernel<false><<<blocks, kThreads, 0, stream>>>(args);
  }
}

}  // namespace hadal::cuda
