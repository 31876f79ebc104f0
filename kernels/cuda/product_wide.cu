// Products of many rows: tiles of weights and tokens in shared memory, loaded some k blocks ahead
// by cp.async, multiplied by tensor cores.
//
// Eight warps, each 32 weight rows x 64 tokens. A block takes 256 rows x 64 tokens (for a pair 128
// of gate and the same 128 of up: whole quantisation groups) or 128 rows x 128 tokens. A k block is
// summed from zero and then added with its scales: the canonical order of product.h.
#include "cuda_check.h"
#include "product_mma.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kTokenTiles = 8;      ///< of 8 tokens, a warp
constexpr int32_t kResultStride = 132;  ///< floats of a token in the result

template <ProductMode kMode, int32_t kTokens>
struct WideShape {
  using Traits = MmaTraits<kMode>;
  static constexpr int32_t kRows = kTokens == 64 ? 256 : 128;
  static constexpr int32_t kWarpsOverRows = kRows / 32;
  static constexpr int32_t kWeightPitch = kBlockK * Traits::kWeightSize;
  static constexpr int32_t kXPitch = kBlockK * Traits::kXSize;
  static constexpr int32_t kWeightBytes = kRows * kWeightPitch;
  static constexpr int32_t kXBytes = kTokens * kXPitch;
  static constexpr int32_t kScaleBytes = (kRows + kTokens) * 4;
  static constexpr int32_t kStageBytes = kWeightBytes + kXBytes + kScaleBytes;
  static constexpr int32_t kStages = kMode == ProductMode::fp8 ? 3 : 2;
  static constexpr int32_t kBytes = kStages * kStageBytes;
  /// Columns of out that one block makes.
  template <bool kPair>
  static constexpr int32_t kColumns = kPair ? kRows / 2 : kRows;
};

__device__ void copy_async16(void* shared, const void* global, bool is_there) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int32_t size = is_there ? 16 : 0;  // the rest is filled with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(size));
}

__device__ void copy_async4(void* shared, const void* global, bool is_there) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int32_t size = is_there ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(global), "r"(size));
}

/// Where chunk c of a row lies: lanes of two neighbouring rows meet eight different banks.
__device__ int32_t weight_place(int32_t row, int32_t c) {
  return c ^ (row % 2 * 4);
}

template <ProductMode kMode>
__device__ int32_t x_place(int32_t row, int32_t c) {
  return kMode == ProductMode::w8a16 ? c ^ (row % 2) : c ^ (row % 2 * 4);
}

/// What a thread copies, the same in every k block.
template <ProductMode kMode, bool kPair, int32_t kTokens>
struct Loader {
  using Shape = WideShape<kMode, kTokens>;
  using Traits = MmaTraits<kMode>;

  const ProductArgs& args;
  const DeviceMatrix& matrix;
  const std::byte* weights;
  const float* scales;
  const int32_t* x_rows;
  int32_t first;
  int32_t count;

  /// Row of the matrix that row r of the block's weights is; -1 beyond the last.
  __device__ int32_t matrix_row(int32_t r) const {
    if constexpr (kPair) {
      const int32_t column = first + r % (Shape::kRows / 2);
      const bool is_up = r >= Shape::kRows / 2;
      return column < args.out_columns ? column + (is_up ? args.out_columns : 0) : -1;
    }
    return first + r < args.out_columns ? first + r : -1;
  }

  __device__ void load(std::byte* stage, int32_t block) const {
    constexpr int32_t kWeightChunks = Shape::kWeightPitch / 16;
    constexpr int32_t kXChunks = Shape::kXPitch / 16;
    for (int32_t i = threadIdx.x; i < Shape::kRows * kWeightChunks; i += kThreads) {
      const int32_t r = i / kWeightChunks;
      const int32_t c = i % kWeightChunks;
      const int32_t row = matrix_row(r);
      const std::byte* from = weights + max(row, 0) * matrix.row_bytes +
                              static_cast<int64_t>(block) * Shape::kWeightPitch + c * 16;
      copy_async16(stage + r * Shape::kWeightPitch + weight_place(r, c) * 16, from, row >= 0);
    }
    std::byte* x = stage + Shape::kWeightBytes;
    const int32_t x_bytes = matrix.columns * Traits::kXSize;
    for (int32_t i = threadIdx.x; i < kTokens * kXChunks; i += kThreads) {
      const int32_t m = i / kXChunks;
      const int32_t c = i % kXChunks;
      const int32_t at = block * Shape::kXPitch + c * 16;
      const bool is_there = m < count && at < x_bytes;
      const int64_t row = m < count ? x_rows[m] : x_rows[0];
      const std::byte* from =
          args.x.data + row * args.x.stride * Traits::kXSize + (is_there ? at : 0);
      copy_async16(x + m * Shape::kXPitch + x_place<kMode>(m, c) * 16, from, is_there);
    }
    load_scales(reinterpret_cast<float*>(x + Shape::kXBytes), block);
  }

  __device__ void load_scales(float* to, int32_t block) const {
    if constexpr (kMode != ProductMode::bf16) {
      for (int32_t r = threadIdx.x; r < Shape::kRows; r += kThreads) {
        const int32_t row = matrix_row(r);
        const int64_t at =
            static_cast<int64_t>(matrix.scale_rows[max(row, 0)]) * matrix.num_groups + block;
        copy_async4(to + r, scales + at, row >= 0);
      }
    }
    if constexpr (kMode == ProductMode::fp8) {
      for (int32_t m = threadIdx.x; m < kTokens; m += kThreads) {
        const int64_t row = m < count ? x_rows[m] : x_rows[0];
        copy_async4(to + Shape::kRows + m,
                    args.x.scales + row * args.x.scale_row + block * args.x.scale_group,
                    m < count);
      }
    }
  }
};

/// A warp's fragments of one weight chunk: its steps x two tiles of 16 rows.
template <ProductMode kMode>
struct WeightFragments {
  static constexpr int32_t kSteps = hadal::cuda::kSteps / MmaTraits<kMode>::kWeightChunks;
  uint32_t a[2][kSteps][4];

  __device__ void load(const std::byte* weights, const int32_t (&tile_rows)[2], int32_t c) {
    constexpr int32_t kPitch = kBlockK * MmaTraits<kMode>::kWeightSize;
    const int32_t g = threadIdx.x % 32 / 4;
    const int32_t t = threadIdx.x % 4;
#pragma unroll
    for (int32_t tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t row = tile_rows[tile] + g + half * 8;
        const uint4 chunk = *reinterpret_cast<const uint4*>(weights + row * kPitch +
                                                            weight_place(row, c * 4 + t) * 16);
#pragma unroll
        for (int32_t s = 0; s < kSteps; ++s) {
          uint32_t& low = a[tile][s][half];
          uint32_t& high = a[tile][s][half + 2];
          if constexpr (kMode == ProductMode::bf16) {
            low = word_of(chunk, s * 2);
            high = word_of(chunk, s * 2 + 1);
          } else if constexpr (kMode == ProductMode::fp8) {
            e4m3x4_to_f16(word_of(chunk, s), low, high);
          } else {
            e4m3x4_to_bf16(word_of(chunk, s), low, high);
          }
        }
      }
    }
  }
};

/// The two words of step s of weight chunk c, token `row`.
template <ProductMode kMode>
struct TokenFragments {
  static constexpr int32_t kChunks = kMode == ProductMode::w8a16 ? 2 : 1;
  uint4 chunks[kChunks];

  __device__ void load(const std::byte* x, int32_t row, int32_t c) {
    constexpr int32_t kPitch = kBlockK * MmaTraits<kMode>::kXSize;
    const int32_t t = threadIdx.x % 4;
#pragma unroll
    for (int32_t i = 0; i < kChunks; ++i) {
      const int32_t chunk = x_chunk<kMode>(c * kChunks + i, t) / 16;
      chunks[i] =
          *reinterpret_cast<const uint4*>(x + row * kPitch + x_place<kMode>(row, chunk) * 16);
    }
  }

  __device__ void step(int32_t s, uint32_t& low, uint32_t& high) const {
    if constexpr (kMode == ProductMode::fp8) {
      e4m3x4_to_f16(word_of(chunks[0], s), low, high);
    } else {
      const uint4& chunk = chunks[kMode == ProductMode::w8a16 ? s / 2 : 0];
      low = word_of(chunk, s % 2 * 2);
      high = word_of(chunk, s % 2 * 2 + 1);
    }
  }
};

/// One k block of a warp into its totals.
template <ProductMode kMode, int32_t kTokens>
__device__ void multiply_block(const std::byte* stage,
                               const int32_t (&tile_rows)[2],
                               int32_t token_begin,
                               int32_t num_tiles,
                               float (&total)[2][kTokenTiles][4]) {
  using Shape = WideShape<kMode, kTokens>;
  const std::byte* x = stage + Shape::kWeightBytes;
  const float* row_scales = reinterpret_cast<const float*>(x + Shape::kXBytes);
  const float* token_scales = row_scales + Shape::kRows;
  const int32_t g = threadIdx.x % 32 / 4;
  const int32_t t = threadIdx.x % 4;
  float part[2][kTokenTiles][4] = {};
#pragma unroll
  for (int32_t c = 0; c < MmaTraits<kMode>::kWeightChunks; ++c) {
    WeightFragments<kMode> w;
    w.load(stage, tile_rows, c);
#pragma unroll
    for (int32_t n = 0; n < kTokenTiles; ++n) {
      if (n < num_tiles) {
        TokenFragments<kMode> tokens;
        tokens.load(x, token_begin + n * 8 + g, c);
#pragma unroll
        for (int32_t s = 0; s < WeightFragments<kMode>::kSteps; ++s) {
          uint32_t b0;
          uint32_t b1;
          tokens.step(s, b0, b1);
          mma<kMode>(part[0][n], w.a[0][s], b0, b1);
          mma<kMode>(part[1][n], w.a[1][s], b0, b1);
        }
      }
    }
  }
#pragma unroll
  for (int32_t tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      const int32_t row = tile_rows[tile] + g + i / 2 * 8;
      const float row_scale = kMode == ProductMode::bf16 ? 1.0F : row_scales[row];
#pragma unroll
      for (int32_t n = 0; n < kTokenTiles; ++n) {
        const float token_scale =
            kMode == ProductMode::fp8 ? token_scales[token_begin + n * 8 + 2 * t + i % 2] : 1.0F;
        total[tile][n][i] =
            add_block<kMode>(total[tile][n][i], part[tile][n][i], token_scale, row_scale);
      }
    }
  }
}

/// Totals to shared memory as [token][column], then to out, a warp a token.
template <ProductMode kMode, bool kPair, int32_t kTokens>
__device__ void store_tile(const ProductArgs& args,
                           const int32_t (&tile_rows)[2],
                           int32_t token_begin,
                           int32_t first,
                           int32_t count,
                           const int32_t* entries,
                           const float (&total)[2][kTokenTiles][4],
                           float* result) {
  constexpr int32_t kRows = WideShape<kMode, kTokens>::kRows;
  constexpr int32_t kColumns = WideShape<kMode, kTokens>::template kColumns<kPair>;
  const int32_t g = threadIdx.x % 32 / 4;
  const int32_t t = threadIdx.x % 4;
  // 128 columns at a time: a block of 256 rows that is no pair has two halves.
#pragma unroll
  for (int32_t half = 0; half < kColumns / 128; ++half) {
    __syncthreads();
#pragma unroll
    for (int32_t n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t m = token_begin + n * 8 + 2 * t + i % 2;
        const int32_t row = g + i / 2 * 8;
        if constexpr (kPair) {
          result[m * kResultStride + tile_rows[0] + row] = swiglu(total[0][n][i], total[1][n][i]);
        } else {
#pragma unroll
          for (int32_t tile = 0; tile < 2; ++tile) {
            const int32_t column = tile_rows[tile] + row - half * 128;
            if (column >= 0 && column < 128) {
              result[m * kResultStride + column] = total[tile][n][i];
            }
          }
        }
      }
    }
    __syncthreads();
    const int32_t begin = first + half * 128;
    for (int32_t m = threadIdx.x / 32; m < count && begin < args.out_columns; m += kThreads / 32) {
      const float4 four =
          *reinterpret_cast<const float4*>(result + m * kResultStride + threadIdx.x % 32 * 4);
      const float values[4] = {four.x, four.y, four.z, four.w};
      store_group_quads(args.out, entries[m] - args.out_row_begin, begin, args.out_columns, values);
    }
  }
  static_assert(kRows >= 128);
}

template <ProductMode kMode, bool kPair, int32_t kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    wide_kernel(const __grid_constant__ ProductArgs args) {
  using Shape = WideShape<kMode, kTokens>;
  extern __shared__ __align__(128) std::byte stages[];
  __shared__ int32_t entries[kTokens];
  __shared__ int32_t x_rows[kTokens];
  const RowTile tile = row_tile(args, static_cast<int32_t>(blockIdx.y), kTokens);
  if (tile.count <= 0) {
    return;
  }
  if (threadIdx.x < tile.count) {
    entries[threadIdx.x] = entry_of(args, tile.begin + static_cast<int32_t>(threadIdx.x));
    x_rows[threadIdx.x] = x_row_of(args, entries[threadIdx.x]);
  }
  __syncthreads();
  const DeviceMatrix& matrix = matrix_of(args, tile.expert);
  const ExpertMatrix expert = expert_matrix(args, tile.expert);
  const int32_t first = static_cast<int32_t>(blockIdx.x) * Shape::template kColumns<kPair>;
  const Loader<kMode, kPair, kTokens> loader{
      args, matrix, expert.data, expert.scales, x_rows, first, tile.count};
  const int32_t warp = threadIdx.x / 32;
  const int32_t row_warp = warp % Shape::kWarpsOverRows;
  const int32_t token_begin = warp / Shape::kWarpsOverRows * 64;
  const int32_t tile_rows[2] = {kPair ? row_warp * 16 : row_warp * 32,
                                kPair ? Shape::kRows / 2 + row_warp * 16 : row_warp * 32 + 16};
  const int32_t num_tiles = min(max((tile.count - token_begin + 7) / 8, 0), kTokenTiles);
  const int32_t num_blocks = (matrix.columns + kBlockK - 1) / kBlockK;
#pragma unroll
  for (int32_t s = 0; s < Shape::kStages - 1; ++s) {
    if (s < num_blocks) {
      loader.load(stages + s * Shape::kStageBytes, s);
    }
    asm volatile("cp.async.commit_group;\n" ::);
  }
  float total[2][kTokenTiles][4] = {};
  for (int32_t block = 0; block < num_blocks; ++block) {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(Shape::kStages - 2));
    __syncthreads();  // the block is there for all, and all have left the stage that is filled next
    const int32_t next = block + Shape::kStages - 1;
    if (next < num_blocks) {
      loader.load(stages + next % Shape::kStages * Shape::kStageBytes, next);
    }
    asm volatile("cp.async.commit_group;\n" ::);
    multiply_block<kMode, kTokens>(stages + block % Shape::kStages * Shape::kStageBytes,
                                   tile_rows,
                                   token_begin,
                                   num_tiles,
                                   total);
  }
  asm volatile("cp.async.wait_group 0;\n" ::);
  store_tile<kMode, kPair, kTokens>(args,
                                    tile_rows,
                                    token_begin,
                                    first,
                                    tile.count,
                                    entries,
                                    total,
                                    reinterpret_cast<float*>(stages));
}

template <ProductMode kMode, bool kPair, int32_t kTokens>
void launch(const ProductArgs& args, const ProductGrid& grid, cudaStream_t stream) {
  using Shape = WideShape<kMode, kTokens>;
  constexpr int32_t kColumns = Shape::template kColumns<kPair>;
  static_assert(Shape::kBytes >= kTokens * kResultStride * 4, "the result lies in the stages");
  const auto kernel = wide_kernel<kMode, kPair, kTokens>;
  HADAL_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes));
  const dim3 blocks(static_cast<uint32_t>((args.out_columns + kColumns - 1) / kColumns),
                    static_cast<uint32_t>(grid.num_tiles));
  kernel<<<blocks, kThreads, Shape::kBytes, stream>>>(args);
}

template <ProductMode kMode>
void launch_mode(const ProductArgs& args,
                 bool is_pair,
                 const ProductGrid& grid,
                 cudaStream_t stream) {
  if (is_pair) {
    launch<kMode, true, 64>(args, grid, stream);
  } else if (grid.tile_rows == 64) {
    launch<kMode, false, 64>(args, grid, stream);
  } else {
    launch<kMode, false, 128>(args, grid, stream);
  }
}

}  // namespace

void launch_wide_product(const ProductArgs& args,
                         ProductMode mode,
                         bool is_pair,
                         const ProductGrid& grid,
                         cudaStream_t stream) {
  HADAL_CHECK(grid.tile_rows == 64 || (grid.tile_rows == 128 && !is_pair),
              "a wide product has tiles of 64 or 128 rows");
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
