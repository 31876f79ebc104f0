// Products of few rows: weights stream from memory straight into tensor-core fragments, once for up
// to 16 tokens.
//
// A block of eight warps owns strips of 16 weight rows (for a pair 8 of gate and the same 8 of up).
// Warps share a strip's k blocks; every block's sum goes to shared memory, and one thread an
// element adds them in ascending order, which is the canonical order whatever the number of warps.
// Dense products read their first weights before the kernel in front of them has ended. Of few
// chosen experts blocks find their own tile, which saves the kernel that lists them.
#include <algorithm>

#include "launch.cuh"
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
  int32_t groups;           ///< of warps, each at a strip of its own
  int32_t strips;           ///< of a block of threads: a group takes one or two in turn
};

/// A warp's way through k blocks, and strips.
struct SkinnyCursor {
  int32_t strip;  ///< of the block of threads
  int32_t block;

  __device__ explicit SkinnyCursor(const SkinnyShape& shape) {
    const auto warp = static_cast<int32_t>(threadIdx.x / 32);
    strip = warp / shape.warps_per_strip;
    block = warp % shape.warps_per_strip;
  }

  __device__ bool is_there(const SkinnyShape& shape) const { return block < shape.num_blocks; }

  /// The strips of a k block in turn: the later ones find its x in L1.
  __device__ void advance(const SkinnyShape& shape) {
    strip += shape.groups;
    if (strip >= shape.strips) {
      strip = static_cast<int32_t>(threadIdx.x / 32) / shape.warps_per_strip;
      block += shape.warps_per_strip;
    }
  }
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

/// What one k block of a warp needs.
template <ProductMode kMode, int32_t kTiles>
struct SkinnyStage {
  using Traits = MmaTraits<kMode>;
  uint4 w[2][Traits::kWeightChunks];
  uint4 x[kTiles][Traits::kXChunks];

  template <bool kPair>
  __device__ void load_weights(const ProductArgs& args,
                               const std::byte* data,
                               int64_t row_bytes,
                               int32_t strip,
                               int32_t block) {
    const int32_t g = threadIdx.x % 32 / 4;
    const int32_t t = threadIdx.x % 4;
    const int64_t begin = static_cast<int64_t>(block) * kBlockK * Traits::kWeightSize;
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const std::byte* row =
          data + weight_row<kPair>(args, strip, g + half * 8) * row_bytes + begin;
#pragma unroll
      for (int32_t c = 0; c < Traits::kWeightChunks; ++c) {
        w[half][c] = __ldg(reinterpret_cast<const uint4*>(row + weight_chunk(c, t)));
      }
    }
  }

  /// Beyond a row's end, and for rows that are not there, zeros: their weights are zeros too, but
  /// what lies in memory may be NaN.
  __device__ void load_x(const std::byte* const (&rows)[kTiles], int32_t block, int32_t row_bytes) {
    const int32_t t = threadIdx.x % 4;
    const int32_t begin = block * kBlockK * Traits::kXSize;
#pragma unroll
    for (int32_t tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int32_t c = 0; c < Traits::kXChunks; ++c) {
        const int32_t at = begin + x_chunk<kMode>(c, t);
        x[tile][c] = make_uint4(0, 0, 0, 0);
        if (rows[tile] != nullptr && at < row_bytes) {
          x[tile][c] = *reinterpret_cast<const uint4*>(rows[tile] + at);
        }
      }
    }
  }
};

/// Sums of one block: 16 rows x 8 num_tiles tokens, to shared memory as [token][kTokenStride].
template <ProductMode kMode, int32_t kTiles>
__device__ void multiply_block(const SkinnyStage<kMode, kTiles>& stage,
                               int32_t num_tiles,
                               float* sums) {
  float sum[kTiles][4] = {};
#pragma unroll
  for (int32_t s = 0; s < kSteps; ++s) {
    uint32_t a[4];
    weight_words<kMode>(stage.w[0], s, a[0], a[2]);
    weight_words<kMode>(stage.w[1], s, a[1], a[3]);
#pragma unroll
    for (int32_t tile = 0; tile < kTiles; ++tile) {
      if (tile < num_tiles) {
        uint32_t b0;
        uint32_t b1;
        x_words<kMode>(stage.x[tile], s, b0, b1);
        mma<kMode>(sum[tile], a, b0, b1);
      }
    }
  }
  const int32_t g = threadIdx.x % 32 / 4;
  const int32_t t = threadIdx.x % 4;
#pragma unroll
  for (int32_t tile = 0; tile < kTiles; ++tile) {
    if (tile < num_tiles) {
      float* at = sums + (tile * 8 + 2 * t) * kTokenStride + g;
      at[0] = sum[tile][0];
      at[kTokenStride] = sum[tile][1];
      at[8] = sum[tile][2];
      at[kTokenStride + 8] = sum[tile][3];
    }
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

/// Scales of all weight rows of the block's strips. A thread has one row of 16 throughout.
template <ProductMode kMode, bool kPair, int32_t kTiles>
__device__ void load_weight_scales(const ProductArgs& args,
                                   const SkinnyShape& shape,
                                   int32_t expert,
                                   const SkinnyShared<kMode, kTiles>& shared) {
  if constexpr (kMode != ProductMode::bf16) {
    const DeviceMatrix& m = matrix_of(args, expert);
    const float* scales = expert_matrix(args, expert).scales;
    const int32_t r = threadIdx.x % kStripRows;
    for (int32_t s = 0; s < shape.strips; ++s) {
      const int32_t strip = static_cast<int32_t>(blockIdx.x) * shape.strips + s;
      const float* row = scales + static_cast<int64_t>(scale_row_of(
                                      m, weight_row<kPair>(args, strip, r))) *
                                      m.num_groups;
      float* to = shared.weight_scales + s * shape.num_blocks * kStripRows + r;
#pragma unroll 4
      for (int32_t block = threadIdx.x / kStripRows; block < shape.num_blocks;
           block += kThreads / kStripRows) {
        to[block * kStripRows] = __ldg(row + block);
      }
    }
  }
}

template <ProductMode kMode, int32_t kTiles>
__device__ void load_x_scales(const ProductArgs& args,
                              const SkinnyShape& shape,
                              int32_t count,
                              const int32_t* entries,
                              const SkinnyShared<kMode, kTiles>& shared) {
  constexpr int32_t kTokens = kTiles * 8;
  if constexpr (kMode == ProductMode::fp8) {
    for (int32_t i = threadIdx.x; i < shape.num_blocks * kTokens; i += kThreads) {
      const int32_t m = i % kTokens;
      shared.x_scales[i] =
          m < count ? args.x.scales[x_row_of(args, entries[m]) * args.x.scale_row +
                                    i / kTokens * args.x.scale_group]
                    : 0.0F;
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
#pragma unroll 8
  for (int32_t block = 0; block < shape.num_blocks; ++block) {
    const float x_scale = kMode == ProductMode::fp8 ? shared.x_scales[block * kTokens + m] : 1.0F;
    const float weight_scale =
        kMode == ProductMode::bf16 ? 1.0F : weight_scales[block * kStripRows];
    total = add_block<kMode>(total, sums[block * shared.kBlockFloats], x_scale, weight_scale);
  }
  return total;
}

/// Sums of all strips, scaled and merged, to the output: a thread a row of a strip and a token.
template <ProductMode kMode, bool kPair, int32_t kTiles>
__device__ __forceinline__ void store_strips(const ProductArgs& args,
                                             const SkinnyShape& shape,
                                             const RowTile& tile,
                                             const int32_t* entries,
                                             const SkinnyShared<kMode, kTiles>& shared) {
  const int32_t columns = kPair ? 8 : kStripRows;  // of out, a strip
  const int32_t num_sums = tile.count * shape.strips * kStripRows;
  for (int32_t base = 0; base < num_sums; base += kThreads) {
    const int32_t i = base + static_cast<int32_t>(threadIdx.x);
    const int32_t r = i % kStripRows;
    const int32_t s = i / kStripRows % shape.strips;
    const int32_t token = i / (kStripRows * shape.strips);
    float value = i < num_sums ? total_of(shared, shape, s, r, token) : 0.0F;
    if (kPair) {
      value = swiglu(value, __shfl_down_sync(kFullMask, value, 8));
    }
    const int32_t column = (static_cast<int32_t>(blockIdx.x) * shape.strips + s) * columns + r;
    if (i < num_sums && r < columns && column < args.out_columns) {
      store_act(args.out, entries[token] - args.out_row_begin, column, value, 1.0F);
    }
  }
}

/// What find_tile shares among the threads.
struct TileSearch {
  __align__(16) int32_t experts[kThreads];
  int32_t heads[kWarps];  ///< a warp's number of tiles
  int32_t expert;         ///< of the tile, -1 = there is none
  int32_t rank;           ///< of its first entry among the expert's
};

/// Tile `index` of the chosen experts, without lists: tiles in the order of their first entries.
/// Every thread holds an entry and counts those before it with the same expert. Fills `entries`.
template <int32_t kTokens>
__device__ RowTile find_tile(const ProductArgs& args,
                             int32_t index,
                             int32_t* entries,
                             TileSearch& search) {
  const ChosenRows& chosen = args.chosen;
  const auto i = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = i % 32;
  const int32_t warp = i / 32;
  int32_t mine = -1;
  if (i < chosen.num_entries) {
    const int32_t slot = i % chosen.slots;
    const int32_t token = i / chosen.slots;
    mine = slot == chosen.top_k
               ? args.num_experts
               : chosen.ids[token * chosen.id_stride + slot] - chosen.first_expert;
    const bool is_here = slot == chosen.top_k || (mine >= 0 && mine < args.num_experts);
    mine = is_here ? mine : -1;
  }
  search.experts[i] = mine;
  if (i == 0) {
    search.expert = -1;
  }
  __syncthreads();
  int32_t rank = 0;
  for (int32_t j = 0; j < min(chosen.num_entries, (warp + 1) * 32); j += 4) {
    const int4 four = *reinterpret_cast<const int4*>(&search.experts[j]);
    rank += j < i && four.x == mine ? 1 : 0;
    rank += j + 1 < i && four.y == mine ? 1 : 0;
    rank += j + 2 < i && four.z == mine ? 1 : 0;
    rank += j + 3 < i && four.w == mine ? 1 : 0;
  }
  const bool is_head = mine >= 0 && rank % kTokens == 0;
  const uint32_t votes = __ballot_sync(kFullMask, is_head);
  if (lane == 0) {
    search.heads[warp] = __popc(votes);
  }
  __syncthreads();
  int32_t before = __popc(votes & ((1U << lane) - 1U));
#pragma unroll
  for (int32_t w = 0; w < kWarps; ++w) {
    before += w < warp ? search.heads[w] : 0;
  }
  if (is_head && before == index) {
    search.expert = mine;
    search.rank = rank;
  }
  __syncthreads();
  const int32_t place = rank - search.rank;
  const bool is_mine = mine >= 0 && mine == search.expert && place >= 0 && place < kTokens;
  if (is_mine) {
    entries[place] = chosen.entry_begin + i;
  }
  const int32_t count = __syncthreads_count(is_mine ? 1 : 0);
  return RowTile{search.expert, 0, count, 0};
}

/// How a kernel hides latency: with k blocks under way in each warp, or with warps.
template <ProductMode kMode, int32_t kTiles, bool kDeep>
struct SkinnyDepth {
  static constexpr bool kIsLarge = kMode == ProductMode::bf16 || kTiles == 2;
  static constexpr int32_t kAhead = !kDeep ? 1 : kIsLarge ? 2 : 3;  ///< k blocks of a warp
  /// Of threads, on a multiprocessor.
  static constexpr int32_t kBlocks = kMode == ProductMode::bf16 && kTiles == 2 && kDeep ? 1
                                     : kDeep || kIsLarge                                ? 2
                                                                                        : 3;
};

/// Where a block of threads reads its weights and x.
template <ProductMode kMode, bool kPair, int32_t kTiles>
struct SkinnySource {
  using Stage = SkinnyStage<kMode, kTiles>;

  const ProductArgs& args;
  const DeviceMatrix& matrix;
  const std::byte* data;
  int32_t first_strip;
  const std::byte* tokens[kTiles] = {};  ///< a lane's row of each tile; null = none

  __device__ SkinnySource(const ProductArgs& product, const SkinnyShape& shape, int32_t expert)
      : args(product),
        matrix(matrix_of(product, expert)),
        data(expert_matrix(product, expert).data),
        first_strip(static_cast<int32_t>(blockIdx.x) * shape.strips) {}

  /// `found`: the tile's entries, or null where they are listed.
  __device__ void find_tokens(const RowTile& tile, const int32_t* found) {
    const int32_t g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int32_t i = 0; i < kTiles; ++i) {
      if (i * 8 + g < tile.count) {
        const int32_t entry =
            found != nullptr ? found[i * 8 + g] : entry_of(args, tile.begin + i * 8 + g);
        tokens[i] =
            args.x.data + x_row_of(args, entry) * args.x.stride * MmaTraits<kMode>::kXSize;
      }
    }
  }

  __device__ void load_weights(Stage& stage, const SkinnyCursor& at) const {
    stage.template load_weights<kPair>(
        args, data, matrix.row_bytes, first_strip + at.strip, at.block);
  }

  __device__ void load_x(Stage& stage, const SkinnyCursor& at) const {
    stage.load_x(tokens, at.block, matrix.columns * MmaTraits<kMode>::kXSize);
  }
};

/// All k blocks of a warp: `stages` hold its first ones, `ahead` is the one after those.
template <ProductMode kMode, bool kPair, int32_t kTiles, int32_t kAhead>
__device__ __forceinline__ void multiply_blocks(const SkinnySource<kMode, kPair, kTiles>& source,
                                                const SkinnyShape& shape,
                                                const SkinnyShared<kMode, kTiles>& shared,
                                                int32_t num_tiles,
                                                SkinnyCursor ahead,
                                                SkinnyStage<kMode, kTiles> (&stages)[kAhead]) {
  SkinnyCursor at(shape);
  while (at.is_there(shape)) {
#pragma unroll
    for (int32_t s = 0; s < kAhead; ++s) {
      if (at.is_there(shape)) {
        multiply_block<kMode, kTiles>(
            stages[s],
            num_tiles,
            shared.sums + (at.strip * shape.num_blocks + at.block) * shared.kBlockFloats);
        at.advance(shape);
        if (ahead.is_there(shape)) {
          source.load_weights(stages[s], ahead);
          source.load_x(stages[s], ahead);
          ahead.advance(shape);
        }
      }
    }
  }
}

template <ProductMode kMode, bool kPair, int32_t kTiles, bool kDeep>
__global__ void __launch_bounds__(kThreads, SkinnyDepth<kMode, kTiles, kDeep>::kBlocks)
    skinny_kernel(const __grid_constant__ ProductArgs args,
                  const __grid_constant__ SkinnyShape shape) {
  constexpr int32_t kTokens = kTiles * 8;
  constexpr int32_t kAhead = SkinnyDepth<kMode, kTiles, kDeep>::kAhead;
  extern __shared__ float memory[];
  __shared__ int32_t entries[kTokens];
  __shared__ TileSearch search;
  let_next_start();
  // Which weights a dense product reads is known before what earlier kernels write.
  const bool is_dense = args.tiles == nullptr && args.chosen.ids == nullptr;
  const bool is_searched = args.chosen.ids != nullptr;
  if (!is_dense) {
    wait_for_previous();
  }
  const auto index = static_cast<int32_t>(blockIdx.y);
  const RowTile tile = is_searched ? find_tile<kTokens>(args, index, entries, search)
                                   : row_tile(args, index, kTokens);
  if (tile.count <= 0) {
    return;
  }
  const SkinnyShared<kMode, kTiles> shared(memory, shape);
  SkinnySource<kMode, kPair, kTiles> source(args, shape, tile.expert);
  SkinnyStage<kMode, kTiles> stages[kAhead];
  SkinnyCursor ahead(shape);
#pragma unroll
  for (int32_t s = 0; s < kAhead; ++s) {
    if (ahead.is_there(shape)) {
      source.load_weights(stages[s], ahead);
      ahead.advance(shape);
    }
  }
  if (is_dense) {
    wait_for_previous();
  }
  source.find_tokens(tile, is_searched ? entries : nullptr);
  ahead = SkinnyCursor(shape);
#pragma unroll
  for (int32_t s = 0; s < kAhead; ++s) {
    if (ahead.is_there(shape)) {
      source.load_x(stages[s], ahead);
      ahead.advance(shape);
    }
  }
  load_weight_scales<kMode, kPair, kTiles>(args, shape, tile.expert, shared);
  if (!is_searched && threadIdx.x < tile.count) {
    entries[threadIdx.x] = entry_of(args, tile.begin + static_cast<int32_t>(threadIdx.x));
  }
  multiply_blocks<kMode, kPair, kTiles, kAhead>(
      source, shape, shared, (tile.count + 7) / 8, ahead, stages);
  __syncthreads();
  if constexpr (kMode == ProductMode::fp8) {
    load_x_scales<kMode, kTiles>(args, shape, tile.count, entries, shared);
    __syncthreads();
  }
  store_strips<kMode, kPair, kTiles>(args, shape, tile, entries, shared);
}

SkinnyShape shape_of(int32_t columns) {
  SkinnyShape shape{};
  shape.num_blocks = (columns + kBlockK - 1) / kBlockK;
  shape.warps_per_strip = kWarps;
  const auto rounded = [&] {
    return (shape.num_blocks + shape.warps_per_strip - 1) / shape.warps_per_strip *
           shape.warps_per_strip;
  };
  // Fewer warps a strip where many would idle in the last round.
  while (shape.warps_per_strip > shape.num_blocks ||
         (shape.warps_per_strip > 4 && rounded() * 3 > shape.num_blocks * 4)) {
    shape.warps_per_strip /= 2;
  }
  shape.groups = kWarps / shape.warps_per_strip;
  shape.strips = shape.groups;
  return shape;
}

int64_t shared_bytes(const SkinnyShape& shape, int32_t tile_rows) {
  return tile_rows == 8 ? SkinnyShared<ProductMode::fp8, 1>::bytes(shape)
                        : SkinnyShared<ProductMode::fp8, 2>::bytes(shape);
}

template <ProductMode kMode, bool kPair, int32_t kTiles>
void launch(const ProductArgs& args, const ProductGrid& grid, cudaStream_t stream) {
  constexpr int32_t kFewBlocks = 264;  ///< of threads: all resident at once
  constexpr int32_t kManyStrips = 256;
  constexpr int32_t kManyTiles = 16;
  constexpr int64_t kMostShared = 56 << 10;  ///< of two strips: with more, too few blocks fit
  SkinnyShape shape = shape_of(args.weight.columns);
  const int32_t all_strips = (args.out_columns + (kPair ? 7 : 15)) / (kPair ? 8 : kStripRows);
  // Two strips a group: short ones that are many are then all under way at once, and of many tiles
  // x is read half as often.
  const bool is_short = shape.num_blocks <= 2 * shape.warps_per_strip &&
                        all_strips >= kManyStrips * shape.groups;
  SkinnyShape twice = shape;
  twice.strips *= 2;
  if ((is_short || grid.num_tiles >= kManyTiles) &&
      shared_bytes(twice, grid.tile_rows) <= kMostShared) {
    shape = twice;
  }
  const int64_t bytes = shared_bytes(shape, grid.tile_rows);
  const int32_t columns = (kPair ? 8 : kStripRows) * shape.strips;
  const dim3 blocks(static_cast<uint32_t>((args.out_columns + columns - 1) / columns),
                    static_cast<uint32_t>(grid.num_tiles));
  const bool is_deep = int64_t{blocks.x} * blocks.y <= kFewBlocks;
  const auto kernel = is_deep ? skinny_kernel<kMode, kPair, kTiles, true>
                              : skinny_kernel<kMode, kPair, kTiles, false>;
  HADAL_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  launch_early(kernel, blocks, dim3(kThreads), static_cast<size_t>(bytes), stream, args, shape);
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
