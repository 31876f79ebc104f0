// Products of at most 256 columns by many rows, BF16 out: the second product of the experts of a
// finely cut model. With so short a k, what counts is the way of the results out.
//
// A block keeps the x of 64 rows of one expert in shared memory and goes along the expert's weight
// rows, 32 or 64 a warp, which cp.async brings a step ahead. Rows of the weights sit in the
// fragments in such an order that a lane's results, transposed by movmatrix, are 8 neighbouring
// columns of one row: they leave as 16 bytes from registers. Each k block is summed from zero and
// then added with its scales: the canonical order of product.h.
#include <algorithm>

#include "launch.cuh"
#include "mma.cuh"
#include "moe_down.h"
#include "product_mma.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kWarps = 4;
constexpr int32_t kThreads = kWarps * 32;
constexpr int32_t kTokens = kShortTileRows;
constexpr int32_t kTokenTiles = kTokens / 8;
constexpr int32_t kStages = 2;

/// kBlocks k blocks; a warp takes kGroups times 32 weight rows at a time.
template <ProductMode kMode, int32_t kBlocks>
struct ShortShape {
  using Traits = MmaTraits<kMode>;
  static constexpr int32_t kGroups = kBlocks == 1 ? 2 : 1;  // two sets of sums would not fit
  static constexpr int32_t kRows = kWarps * kGroups * 32;   ///< of weights, a step of the block
  static constexpr int32_t kWeightPitch = kBlocks * kBlockK * Traits::kWeightSize;
  static constexpr int32_t kXPitch = kBlocks * kBlockK * Traits::kXSize;
  static constexpr int32_t kWeightBytes = kRows * kWeightPitch;
  static constexpr int32_t kXBytes = kTokens * kXPitch;
  static constexpr int32_t kBytes = kXBytes + kStages * kWeightBytes;
};

/// Where chunk c of a row lies: lanes of two neighbouring rows meet eight different banks.
__device__ int32_t weight_place(int32_t row, int32_t c) {
  return c ^ (row % 2 * 4);
}

template <ProductMode kMode>
__device__ int32_t x_place(int32_t row, int32_t c) {
  return kMode == ProductMode::w8a16 ? c ^ (row % 2) : c ^ (row % 2 * 4);
}

/// Row i of 8 x 8 matrix j of a group of 32 weight rows.
__device__ int32_t group_row(int32_t j, int32_t i) {
  return i / 2 * 8 + 2 * j + i % 2;
}

template <ProductMode kMode, int32_t kBlocks>
__device__ void load_weights(const ProductArgs& args,
                             const DeviceMatrix& m,
                             const std::byte* data,
                             int32_t first_row,
                             std::byte* stage) {
  using Shape = ShortShape<kMode, kBlocks>;
  constexpr int32_t kChunks = Shape::kWeightPitch / 16;
  for (int32_t i = threadIdx.x; i < Shape::kRows * kChunks; i += kThreads) {
    const int32_t r = i / kChunks;
    const int32_t c = i % kChunks;
    const int32_t row = first_row + r;
    const bool is_there = row < args.out_columns && c * 16 < m.row_bytes;
    const std::byte* from = data + (is_there ? row * m.row_bytes + c * 16 : 0);
    copy_async(shared_address(stage + r * Shape::kWeightPitch + weight_place(r, c) * 16),
               from,
               is_there);
  }
}

template <ProductMode kMode, int32_t kBlocks>
__device__ void load_x(
    const ProductArgs& args, int32_t columns, const int32_t* entries, int32_t count, std::byte* x) {
  using Shape = ShortShape<kMode, kBlocks>;
  constexpr int32_t kChunks = Shape::kXPitch / 16;
  const int32_t row_bytes = columns * Shape::Traits::kXSize;
  for (int32_t i = threadIdx.x; i < kTokens * kChunks; i += kThreads) {
    const int32_t row = i / kChunks;
    const int32_t c = i % kChunks;
    const bool is_there = row < count && c * 16 < row_bytes;
    const int64_t offset =
        is_there ? entries[row] * args.x.stride * Shape::Traits::kXSize + c * 16 : 0;
    copy_async(shared_address(x + row * Shape::kXPitch + x_place<kMode>(row, c) * 16),
               args.x.data + offset,
               is_there);
  }
}

/// Scales of a warp's weight rows, [group][matrix], of one k block.
template <ProductMode kMode, int32_t kGroups>
__device__ void load_scales(const ProductArgs& args,
                            const DeviceMatrix& m,
                            const float* scales,
                            int32_t first_row,
                            int32_t block,
                            float (&to)[kGroups][4]) {
  const int32_t g = threadIdx.x % 32 / 4;
#pragma unroll
  for (int32_t q = 0; q < kGroups; ++q) {
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      to[q][j] = 1.0F;
      if constexpr (kMode != ProductMode::bf16) {
        const int32_t row = min(first_row + q * 32 + group_row(j, g), args.out_columns - 1);
        to[q][j] = __ldg(scales + scale_row_of(m, row) * m.num_groups + block);
      }
    }
  }
}

/// Two steps' words of a row, from the chunks of a block: pair p of 4.
template <ProductMode kMode>
__device__ void weight_pair(
    const uint4& chunk, int32_t p, int32_t s, uint32_t& low, uint32_t& high) {
  if constexpr (kMode == ProductMode::bf16) {
    low = word_of(chunk, s * 2);
    high = word_of(chunk, s * 2 + 1);
  } else if constexpr (kMode == ProductMode::fp8) {
    e4m3x4_to_f16(word_of(chunk, p % 2 * 2 + s), low, high);
  } else {
    e4m3x4_to_bf16(word_of(chunk, p % 2 * 2 + s), low, high);
  }
}

template <ProductMode kMode>
__device__ void x_pair(const uint4& chunk, int32_t p, int32_t s, uint32_t& low, uint32_t& high) {
  if constexpr (kMode == ProductMode::fp8) {
    e4m3x4_to_f16(word_of(chunk, p % 2 * 2 + s), low, high);
  } else {
    low = word_of(chunk, s * 2);
    high = word_of(chunk, s * 2 + 1);
  }
}

/// One k block: part[2 q + h][n] = rows 16 h.. of group q x tokens 8 n.., from zero. kFull: without
/// branches, for a tile of all its tokens.
template <ProductMode kMode, int32_t kBlocks, int32_t kGroups, bool kFull>
__device__ void multiply_block(const std::byte* weights,
                               const std::byte* x,
                               int32_t block,
                               int32_t num_tiles,
                               float (&part)[2 * kGroups][kTokenTiles][4]) {
  using Shape = ShortShape<kMode, kBlocks>;
  constexpr int32_t kPairsPerChunk = kMode == ProductMode::bf16 ? 1 : 2;
  const int32_t g = threadIdx.x % 32 / 4;
  const int32_t t = threadIdx.x % 4;
  const int32_t weight_chunks = block * (kBlockK * Shape::Traits::kWeightSize / 16);
  const int32_t x_chunks = block * (kBlockK * Shape::Traits::kXSize / 16);
  uint4 raw[2 * kGroups][2];
#pragma unroll
  for (int32_t p = 0; p < kSteps / 2; ++p) {
    if (p % kPairsPerChunk == 0) {
#pragma unroll
      for (int32_t i = 0; i < 2 * kGroups; ++i) {
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          const int32_t row = i / 2 * 32 + group_row(i % 2 * 2 + half, g);
          const int32_t c = weight_chunks + weight_chunk(p / kPairsPerChunk, t) / 16;
          raw[i][half] = *reinterpret_cast<const uint4*>(weights + row * Shape::kWeightPitch +
                                                         weight_place(row, c) * 16);
        }
      }
    }
    uint32_t a[2 * kGroups][2][4];
#pragma unroll
    for (int32_t i = 0; i < 2 * kGroups; ++i) {
#pragma unroll
      for (int32_t s = 0; s < 2; ++s) {
        weight_pair<kMode>(raw[i][0], p, s, a[i][s][0], a[i][s][2]);
        weight_pair<kMode>(raw[i][1], p, s, a[i][s][1], a[i][s][3]);
      }
    }
    const int32_t c = kMode == ProductMode::fp8 ? p / 2 : p;
    const int32_t x_at = x_chunks + x_chunk<kMode>(c, t) / 16;
#pragma unroll
    for (int32_t n = 0; n < kTokenTiles; ++n) {
      if (kFull || n < num_tiles) {
        const int32_t row = n * 8 + g;
        const uint4 chunk = *reinterpret_cast<const uint4*>(x + row * Shape::kXPitch +
                                                            x_place<kMode>(row, x_at) * 16);
#pragma unroll
        for (int32_t s = 0; s < 2; ++s) {
          uint32_t b0;
          uint32_t b1;
          x_pair<kMode>(chunk, p, s, b0, b1);
#pragma unroll
          for (int32_t i = 0; i < 2 * kGroups; ++i) {
            mma<kMode>(part[i][n], a[i][s], b0, b1);
          }
        }
      }
    }
  }
}

/// The same by whichever way suits the tile.
template <ProductMode kMode, int32_t kBlocks, int32_t kGroups>
__device__ __forceinline__ void multiply_any(const std::byte* weights,
                                             const std::byte* x,
                                             int32_t block,
                                             int32_t num_tiles,
                                             float (&part)[2 * kGroups][kTokenTiles][4]) {
  if (num_tiles == kTokenTiles) {
    multiply_block<kMode, kBlocks, kGroups, true>(weights, x, block, num_tiles, part);
  } else {
    multiply_block<kMode, kBlocks, kGroups, false>(weights, x, block, num_tiles, part);
  }
}

/// An 8 x 8 matrix of 16-bit elements, transposed among the lanes.
__device__ inline uint32_t transposed(uint32_t word) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(result) : "r"(word));
  return result;
}

/// Totals of a warp, rows of weights from `column`, to the output.
template <int32_t kGroups>
__device__ void store_rows(const ProductArgs& args,
                           const int32_t* entries,
                           int32_t count,
                           int32_t num_tiles,
                           int32_t column,
                           const float (&total)[2 * kGroups][kTokenTiles][4]) {
  const int32_t g = threadIdx.x % 32 / 4;
  const int32_t t = threadIdx.x % 4;
#pragma unroll
  for (int32_t n = 0; n < kTokenTiles; ++n) {
    if (n < num_tiles) {
      const int32_t m = n * 8 + g;
      const int64_t row = m < count ? entries[m] - args.out_row_begin : -1;
      auto* out = reinterpret_cast<uint16_t*>(args.out.data) + row * args.out.stride;
#pragma unroll
      for (int32_t q = 0; q < kGroups; ++q) {
        uint32_t words[4];
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
          const float(&pair)[4] = total[2 * q + j / 2][n];
          words[j] = transposed(f32_to_bf16x2(pair[j % 2 * 2], pair[j % 2 * 2 + 1]));
        }
        const int32_t at = column + q * 32 + t * 8;
        if (row >= 0 && at < args.out_columns) {
          *reinterpret_cast<uint4*>(out + at) = make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
  }
}

/// Scales of a thread's tokens; 0 for tokens and blocks that are not there.
template <int32_t kBlocks>
__device__ __forceinline__ void load_x_scales(const ProductArgs& args,
                                              int32_t num_groups,
                                              const int32_t* entries,
                                              int32_t count,
                                              float (&scales)[kBlocks][kTokenTiles][2]) {
#pragma unroll
  for (int32_t i = 0; i < kBlocks * kTokenTiles * 2; ++i) {
    const int32_t token = i / 2 % kTokenTiles * 8 + threadIdx.x % 4 * 2 + i % 2;
    const int32_t block = i / 2 / kTokenTiles;
    scales[block][i / 2 % kTokenTiles][i % 2] =
        token < count && block < num_groups
            ? args.x.scales[entries[token] * args.x.scale_row + block * args.x.scale_group]
            : 0.0F;
  }
}

template <ProductMode kMode, int32_t kBlocks>
__global__ void __launch_bounds__(kThreads, 2)
    short_kernel(const __grid_constant__ ProductArgs args, int32_t span) {
  using Shape = ShortShape<kMode, kBlocks>;
  constexpr int32_t kGroups = Shape::kGroups;
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ int32_t entries[kTokens];
  let_next_start();
  wait_for_previous();
  const RowTile tile = row_tile(args, static_cast<int32_t>(blockIdx.y), kTokens);
  if (tile.count <= 0) {
    return;
  }
  if (threadIdx.x < tile.count) {
    entries[threadIdx.x] = entry_of(args, tile.begin + static_cast<int32_t>(threadIdx.x));
  }
  __syncthreads();
  const DeviceMatrix& m = matrix_of(args, tile.expert);
  const ExpertMatrix expert = expert_matrix(args, tile.expert);
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * span;
  const int32_t end = min(begin + span, args.out_columns);
  const int32_t warp_row = static_cast<int32_t>(threadIdx.x) / 32 * kGroups * 32;
  const int32_t num_tiles = (tile.count + 7) / 8;
  std::byte* x = memory;
  std::byte* stages = memory + Shape::kXBytes;
  load_x<kMode, kBlocks>(args, m.columns, entries, tile.count, x);
  load_weights<kMode, kBlocks>(args, m, expert.data, begin, stages);
  commit_copies();
  float x_scales[kBlocks][kTokenTiles][2];
  if constexpr (kMode == ProductMode::fp8) {
    load_x_scales<kBlocks>(args, m.num_groups, entries, tile.count, x_scales);
  }
  int32_t stage = 0;
  for (int32_t first = begin; first < end; first += Shape::kRows, stage ^= 1) {
    if (first + Shape::kRows < end) {
      load_weights<kMode, kBlocks>(args,
                                   m,
                                   expert.data,
                                   first + Shape::kRows,
                                   stages + (stage ^ 1) * Shape::kWeightBytes);
    }
    commit_copies();
    float total[2 * kGroups][kTokenTiles][4] = {};
    wait_copies<1>();
    __syncthreads();
    const std::byte* weights =
        stages + stage * Shape::kWeightBytes + warp_row * Shape::kWeightPitch;
#pragma unroll
    for (int32_t block = 0; block < kBlocks; ++block) {
      float scales[kGroups][4];
      load_scales<kMode, kGroups>(args, m, expert.scales, first + warp_row, block, scales);
      float part[2 * kGroups][kTokenTiles][4] = {};
      multiply_any<kMode, kBlocks, kGroups>(weights, x, block, num_tiles, part);
#pragma unroll
      for (int32_t i = 0; i < 2 * kGroups; ++i) {
#pragma unroll
        for (int32_t j = 0; j < kTokenTiles * 4; ++j) {
          const float x_scale =
              kMode == ProductMode::fp8 ? x_scales[block][j / 4][j % 2] : 1.0F;
          total[i][j / 4][j % 4] = add_block<kMode>(total[i][j / 4][j % 4],
                                                    part[i][j / 4][j % 4],
                                                    x_scale,
                                                    scales[i / 2][i % 2 * 2 + j % 4 / 2]);
        }
      }
    }
    store_rows<kGroups>(args, entries, tile.count, num_tiles, first + warp_row, total);
    __syncthreads();  // all have left the stage that is filled next
  }
}

template <ProductMode kMode, int32_t kBlocks>
void launch(const ProductArgs& args, const ProductGrid& grid, cudaStream_t stream) {
  using Shape = ShortShape<kMode, kBlocks>;
  const auto kernel = short_kernel<kMode, kBlocks>;
  HADAL_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes));
  // Some four steps a block: enough to hide its first loads, short enough to even out the end.
  constexpr int32_t kSpan = 4 * Shape::kRows;
  const dim3 blocks(static_cast<uint32_t>((args.out_columns + kSpan - 1) / kSpan),
                    static_cast<uint32_t>(grid.num_tiles));
  launch_early(kernel,
               blocks,
               dim3(kThreads),
               static_cast<size_t>(Shape::kBytes),
               stream,
               args,
               kSpan);
}

template <ProductMode kMode>
void launch_blocks(const ProductArgs& args, const ProductGrid& grid, cudaStream_t stream) {
  args.weight.columns <= kBlockK ? launch<kMode, 1>(args, grid, stream)
                                 : launch<kMode, 2>(args, grid, stream);
}

}  // namespace

bool fits_short(const ProductArgs& product, ProductMode mode, int32_t max_shared_bytes) {
  const bool is_one = product.weight.columns <= kBlockK;
  const int32_t bytes =
      mode != ProductMode::bf16
          ? (is_one ? ShortShape<ProductMode::w8a16, 1>::kBytes
                    : ShortShape<ProductMode::w8a16, 2>::kBytes)
          : (is_one ? ShortShape<ProductMode::bf16, 1>::kBytes
                    : ShortShape<ProductMode::bf16, 2>::kBytes);
  return product.weight.columns <= 2 * kBlockK && product.out_columns % 8 == 0 &&
         bytes <= max_shared_bytes - 1024;
}

void launch_short_product(const ProductArgs& args,
                          ProductMode mode,
                          const ProductGrid& grid,
                          cudaStream_t stream) {
  HADAL_CHECK(grid.tile_rows == kTokens && args.out.format == ActFormat::bf16,
              "a short product has tiles of 64 rows and BF16 results");
  switch (mode) {
    case ProductMode::fp8:
      return launch_blocks<ProductMode::fp8>(args, grid, stream);
    case ProductMode::bf16:
      return launch_blocks<ProductMode::bf16>(args, grid, stream);
    case ProductMode::w8a16:
      return launch_blocks<ProductMode::w8a16>(args, grid, stream);
    case ProductMode::plain:
      HADAL_CHECK(false, "a plain product has its own kernel");
  }
}

}  // namespace hadal::cuda
