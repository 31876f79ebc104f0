// Products of few rows: weights stream from memory straight into tensor-core fragments, once for up
// to 16 tokens.
//
// A block of eight warps owns strips of 16 weight rows (for a pair 8 of gate and the same 8 of up).
// Warps share a strip's k blocks; every block's sum goes to shared memory, and one thread an
// element adds them in ascending order, which is the canonical order whatever the number of warps.
#include <algorithm>

#include "cuda_check.h"
#include "product_mma.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kWarps = kThreads / 32;
constexpr int32_t kStripRows = 16;
constexpr int32_t kTokenStride =
    20;  ///< floats from token to token of a block's sums: no conflicts

struct SkinnyShape {
  int32_t num_blocks;       ///< of k
  int32_t warps_per_strip;  ///< that share its k blocks
  int32_t strips;           ///< of a block of threads
};

/// Row of the matrix that row r (0..15) of a strip is; clamped, so that it can be read.
template <bool kPair>
__device__ int32_t weight_row(const ProductArgs& args, int32_t strip, int32_t r) {
  if (kPair) {
    const int32_t column = min(strip * 8 + r % 8, args.out_columns - 1);
    return r < 8 ? column : args.out_columns + column;
  }
  return min(strip * kStripRows + r, args.out_columns - 1);
}

template <ProductMode kMode>
__device__ void load_weights(const std::byte* row,
                             int32_t block,
                             uint4 (&chunks)[MmaTraits<kMode>::kWeightChunks]) {
  const int32_t t = threadIdx.x % 4;
  const std::byte* at = row + static_cast<int64_t>(block) * kBlockK * MmaTraits<kMode>::kWeightSize;
#pragma unroll
  for (int32_t c = 0; c < MmaTraits<kMode>::kWeightChunks; ++c) {
    chunks[c] = __ldg(reinterpret_cast<const uint4*>(at + weight_chunk(c, t)));
  }
}

/// Beyond a row's end, and for rows that are not there, zeros: their weights are zeros too, but
/// what lies in memory may be NaN.
template <ProductMode kMode>
__device__ void load_x(const std::byte* row,
                       int32_t block,
                       int32_t row_bytes,
                       uint4 (&chunks)[MmaTraits<kMode>::kXChunks]) {
  const int32_t t = threadIdx.x % 4;
  const int32_t begin = block * kBlockK * MmaTraits<kMode>::kXSize;
#pragma unroll
  for (int32_t c = 0; c < MmaTraits<kMode>::kXChunks; ++c) {
    const int32_t at = begin + x_chunk<kMode>(c, t);
    chunks[c] = make_uint4(0, 0, 0, 0);
    if (row != nullptr && at < row_bytes) {
      chunks[c] = *reinterpret_cast<const uint4*>(row + at);
    }
  }
}

/// sums of one block: 16 rows x 8 kTiles tokens, to shared memory as [token][kTokenStride].
template <ProductMode kMode, int32_t kTiles>
__device__ void multiply_block(const uint4 (&w)[2][MmaTraits<kMode>::kWeightChunks],
                               const uint4 (&x)[kTiles][MmaTraits<kMode>::kXChunks],
                               float* sums) {
  float sum[kTiles][4] = {};
#pragma unroll
  for (int32_t s = 0; s < kSteps; ++s) {
    uint32_t a[4];
    weight_words<kMode>(w[0], s, a[0], a[2]);
    weight_words<kMode>(w[1], s, a[1], a[3]);
#pragma unroll
    for (int32_t tile = 0; tile < kTiles; ++tile) {
      uint32_t b0;
      uint32_t b1;
      x_words<kMode>(x[tile], s, b0, b1);
      mma<kMode>(sum[tile], a, b0, b1);
    }
  }
  const int32_t g = threadIdx.x % 32 / 4;
  const int32_t t = threadIdx.x % 4;
#pragma unroll
  for (int32_t tile = 0; tile < kTiles; ++tile) {
    float* at = sums + (tile * 8 + 2 * t) * kTokenStride + g;
    at[0] = sum[tile][0];
    at[kTokenStride] = sum[tile][1];
    at[8] = sum[tile][2];
    at[kTokenStride + 8] = sum[tile][3];
  }
}

template <ProductMode kMode, int32_t kTiles>
struct SkinnyShared {
  static constexpr int32_t kTokens = kTiles * 8;
  static constexpr int32_t kBlockFloats = kTokens * kTokenStride;

  float* sums;           ///< [strips][num_blocks][kBlockFloats]
  float* x_scales;       ///< [num_blocks][kTokens]
  float* weight_scales;  ///< [strips][num_blocks][16]

  __device__ SkinnyShared(float* memory, const SkinnyShape& shape) {
    sums = memory;
    x_scales = sums + shape.strips * shape.num_blocks * kBlockFloats;
    weight_scales = x_scales + shape.num_blocks * kTokens;
  }

  static int64_t bytes(const SkinnyShape& shape) {
    return static_cast<int64_t>(sizeof(float)) * shape.num_blocks *
           (shape.strips * (kBlockFloats + kStripRows) + kTokens);
  }
};

/// All scales that the sums need.
template <ProductMode kMode, bool kPair, int32_t kTiles>
__device__ void load_scales(const ProductArgs& args,
                            const SkinnyShape& shape,
                            const RowTile& tile,
                            const int32_t* x_rows,
                            const SkinnyShared<kMode, kTiles>& shared) {
  constexpr int32_t kTokens = kTiles * 8;
  if constexpr (kMode == ProductMode::fp8) {
    for (int32_t i = threadIdx.x; i < shape.num_blocks * kTokens; i += kThreads) {
      const int32_t m = i % kTokens;
      shared.x_scales[i] =
          m < tile.count
              ? args.x.scales[x_rows[m] * args.x.scale_row + i / kTokens * args.x.scale_group]
              : 0.0F;
    }
  }
  if constexpr (kMode != ProductMode::bf16) {
    const DeviceMatrix& m = matrix_of(args, tile.expert);
    const float* scales = expert_matrix(args, tile.expert).scales;
    for (int32_t i = threadIdx.x; i < shape.strips * shape.num_blocks * kStripRows; i += kThreads) {
      const int32_t block = i / kStripRows % shape.num_blocks;
      const int32_t strip =
          static_cast<int32_t>(blockIdx.x) * shape.strips + i / (kStripRows * shape.num_blocks);
      const int32_t row = weight_row<kPair>(args, strip, i % kStripRows);
      shared.weight_scales[i] =
          scales[static_cast<int64_t>(m.scale_rows[row]) * m.num_groups + block];
    }
  }
}

/// The canonical sum of row r and token m of a strip.
template <ProductMode kMode, int32_t kTiles>
__device__ float total_of(const SkinnyShared<kMode, kTiles>& shared,
                          const SkinnyShape& shape,
                          int32_t strip,
                          int32_t r,
                          int32_t m) {
  constexpr int32_t kTokens = kTiles * 8;
  const float* sums =
      shared.sums + strip * shape.num_blocks * shared.kBlockFloats + m * kTokenStride + r;
  const float* weight_scales = shared.weight_scales + strip * shape.num_blocks * kStripRows + r;
  float total = 0.0F;
  for (int32_t block = 0; block < shape.num_blocks; ++block) {
    const float x_scale = kMode == ProductMode::fp8 ? shared.x_scales[block * kTokens + m] : 1.0F;
    const float weight_scale =
        kMode == ProductMode::bf16 ? 1.0F : weight_scales[block * kStripRows];
    total = add_block<kMode>(total, sums[block * shared.kBlockFloats], x_scale, weight_scale);
  }
  return total;
}

/// Sums of all strips, scaled and merged, to the output.
template <ProductMode kMode, bool kPair, int32_t kTiles>
__device__ __forceinline__ void store_strips(const ProductArgs& args,
                                             const SkinnyShape& shape,
                                             const RowTile& tile,
                                             const int32_t* entries,
                                             const SkinnyShared<kMode, kTiles>& shared) {
  const int32_t columns = kPair ? 8 : kStripRows;  // of out, a strip
  for (int32_t i = threadIdx.x; i < tile.count * shape.strips * columns; i += kThreads) {
    const int32_t r = i % columns;
    const int32_t s = i / columns % shape.strips;
    const int32_t token = i / (columns * shape.strips);
    const int32_t column = (static_cast<int32_t>(blockIdx.x) * shape.strips + s) * columns + r;
    float value = total_of(shared, shape, s, r, token);
    if (kPair) {
      value = swiglu(value, total_of(shared, shape, s, r + 8, token));
    }
    if (column < args.out_columns) {
      store_act(args.out, entries[token] - args.out_row_begin, column, value, 1.0F);
    }
  }
}

template <ProductMode kMode, bool kPair, int32_t kTiles>
__global__ void __launch_bounds__(kThreads)
    skinny_kernel(const __grid_constant__ ProductArgs args,
                  const __grid_constant__ SkinnyShape shape) {
  using Traits = MmaTraits<kMode>;
  constexpr int32_t kTokens = kTiles * 8;
  extern __shared__ float memory[];
  __shared__ int32_t entries[kTokens];
  __shared__ int32_t x_rows[kTokens];
  const RowTile tile = row_tile(args, static_cast<int32_t>(blockIdx.y), kTokens);
  if (tile.count <= 0) {
    return;
  }
  const SkinnyShared<kMode, kTiles> shared(memory, shape);
  if (threadIdx.x < tile.count) {
    entries[threadIdx.x] = entry_of(args, tile.begin + static_cast<int32_t>(threadIdx.x));
    x_rows[threadIdx.x] = x_row_of(args, entries[threadIdx.x]);
  }
  __syncthreads();
  const int32_t warp = threadIdx.x / 32;
  const int32_t g = threadIdx.x % 32 / 4;
  const int32_t local_strip = warp / shape.warps_per_strip;
  const int32_t strip = static_cast<int32_t>(blockIdx.x) * shape.strips + local_strip;
  const DeviceMatrix& m = matrix_of(args, tile.expert);
  const std::byte* data = expert_matrix(args, tile.expert).data;
  const std::byte* w_rows[2] = {data + weight_row<kPair>(args, strip, g) * m.row_bytes,
                                data + weight_row<kPair>(args, strip, g + 8) * m.row_bytes};
  const int32_t x_bytes = m.columns * Traits::kXSize;
  const std::byte* tokens[kTiles];
#pragma unroll
  for (int32_t i = 0; i < kTiles; ++i) {
    tokens[i] = i * 8 + g < tile.count
                    ? args.x.data + x_rows[i * 8 + g] * args.x.stride * Traits::kXSize
                    : nullptr;
  }
  uint4 w[2][Traits::kWeightChunks];
  int32_t block = warp % shape.warps_per_strip;
  load_weights<kMode>(w_rows[0], block, w[0]);
  load_weights<kMode>(w_rows[1], block, w[1]);
  load_scales<kMode, kPair, kTiles>(args, shape, tile, x_rows, shared);
  float* sums = shared.sums + local_strip * shape.num_blocks * shared.kBlockFloats;
  while (block < shape.num_blocks) {
    uint4 x[kTiles][Traits::kXChunks];
#pragma unroll
    for (int32_t i = 0; i < kTiles; ++i) {
      load_x<kMode>(tokens[i], block, x_bytes, x[i]);
    }
    const int32_t next = block + shape.warps_per_strip;
    uint4 ahead[2][Traits::kWeightChunks];
    const int32_t fetched = min(next, shape.num_blocks - 1);
    load_weights<kMode>(w_rows[0], fetched, ahead[0]);
    load_weights<kMode>(w_rows[1], fetched, ahead[1]);
    multiply_block<kMode, kTiles>(w, x, sums + block * shared.kBlockFloats);
#pragma unroll
    for (int32_t c = 0; c < Traits::kWeightChunks; ++c) {
      w[0][c] = ahead[0][c];
      w[1][c] = ahead[1][c];
    }
    block = next;
  }
  __syncthreads();
  store_strips<kMode, kPair, kTiles>(args, shape, tile, entries, shared);
}

SkinnyShape shape_of(int32_t columns) {
  SkinnyShape shape{};
  shape.num_blocks = (columns + kBlockK - 1) / kBlockK;
  shape.warps_per_strip = kWarps;
  while (shape.warps_per_strip > shape.num_blocks) {
    shape.warps_per_strip /= 2;
  }
  shape.strips = kWarps / shape.warps_per_strip;
  return shape;
}

int64_t shared_bytes(const SkinnyShape& shape, int32_t tile_rows) {
  return tile_rows == 8 ? SkinnyShared<ProductMode::fp8, 1>::bytes(shape)
                        : SkinnyShared<ProductMode::fp8, 2>::bytes(shape);
}

template <ProductMode kMode, bool kPair, int32_t kTiles>
void launch(const ProductArgs& args, const ProductGrid& grid, cudaStream_t stream) {
  const SkinnyShape shape = shape_of(args.weight.columns);
  const int64_t bytes = shared_bytes(shape, grid.tile_rows);
  const auto kernel = skinny_kernel<kMode, kPair, kTiles>;
  HADAL_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  const int32_t columns = (kPair ? 8 : kStripRows) * shape.strips;
  const dim3 blocks(static_cast<uint32_t>((args.out_columns + columns - 1) / columns),
                    static_cast<uint32_t>(grid.num_tiles));
  kernel<<<blocks, kThreads, static_cast<size_t>(bytes), stream>>>(args, shape);
}

template <ProductMode kMode>
void launch_mode(const ProductArgs& args,
                 bool is_pair,
                 const ProductGrid& grid,
                 cudaStream_t stream) {
  if (grid.tile_rows == 8) {
    is_pair ? launch<kMode, true, 1>(args, grid, stream)
            : launch<kMode, false, 1>(args, grid, stream);
  } else {
    is_pair ? launch<kMode, true, 2>(args, grid, stream)
            : launch<kMode, false, 2>(args, grid, stream);
  }
}

}  // namespace

bool fits_skinny(int32_t columns, int32_t tile_rows, int32_t max_shared_bytes) {
  return shared_bytes(shape_of(columns), tile_rows) <= max_shared_bytes - 1024;
}

void launch_skinny_product(const ProductArgs& args,
                           ProductMode mode,
                           bool is_pair,
                           const ProductGrid& grid,
                           cudaStream_t stream) {
  HADAL_CHECK(grid.tile_rows == 8 || grid.tile_rows == 16,
              "a skinny product has tiles of 8 or 16 rows");
  switch (mode) {
    case ProductMode::fp8:
      return launch_mode<ProductMode::fp8>(args, is_pair, grid, stream);
    case ProductMode::bf16:
      return launch_mode<ProductMode::bf16>(args, is_pair, grid, stream);
    case ProductMode::w8a16:
      return launch_mode<ProductMode::w8a16>(args, is_pair, grid, stream);
    case ProductMode::plain:
      HADAL_CHECK(false, "a plain product has its own kernel");
  }
}

}  // namespace hadal::cuda
