// moe_down of few tokens in one kernel: products and their sum, without memory between them.
//
// A block owns a stripe of 16 or 32 columns for all tokens. It lists the tokens of each expert in
// shared memory itself (the lists' order changes no bit: every product has its own place), its
// warps take tiles of one expert and up to 8 tokens and stream the expert's rows of the stripe from
// memory, once a tile; then tokens are summed in slot order.
#include <algorithm>

#include "launch.cuh"
#include "moe_down.h"
#include "product_mma.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kWarps = 9;  ///< one token of R1 has 9 slots: one each
constexpr int32_t kThreads = kWarps * 32;
constexpr int32_t kTileTokens = 8;

/// Where things lie in shared memory, in bytes.
struct FusedShape {
  int32_t num_entries;
  int32_t num_blocks;  ///< of k
  int32_t product_bytes;
  int32_t max_tiles;
  int32_t bytes;
};

struct Tile {
  int32_t expert;
  int16_t begin;
  int16_t count;
};

struct FusedShared {
  std::byte* products;  ///< [entries][columns of the stripe], BF16 or float32
  float* factors;       ///< [entries]
  int32_t* locals;      ///< [entries]: local expert or -1
  int32_t* order;       ///< [entries]: entries by expert
  Tile* tiles;
  int32_t* counts;  ///< [experts + 1], then where an expert's entries begin

  __device__ FusedShared(std::byte* memory, const FusedShape& shape) {
    products = memory;
    factors = reinterpret_cast<float*>(products + shape.product_bytes);
    locals = reinterpret_cast<int32_t*>(factors + shape.num_entries);
    order = locals + shape.num_entries;
    tiles = reinterpret_cast<Tile*>(order + shape.num_entries);
    counts = reinterpret_cast<int32_t*>(tiles + shape.max_tiles);
  }
};

/// Exclusive sums over the threads of a block of rows (high half) and tiles (low half).
__device__ uint32_t scan_before(uint32_t mine, uint32_t* warp_totals, uint32_t& all) {
  const int32_t lane = threadIdx.x % 32;
  const int32_t warp = threadIdx.x / 32;
  uint32_t sum = mine;
#pragma unroll
  for (int32_t offset = 1; offset < 32; offset *= 2) {
    const uint32_t other = __shfl_up_sync(kFullMask, sum, offset);
    sum += lane >= offset ? other : 0U;
  }
  if (lane == 31) {
    warp_totals[warp] = sum;
  }
  __syncthreads();
  uint32_t before = sum - mine;
  all = 0;
#pragma unroll
  for (int32_t w = 0; w < kWarps; ++w) {
    before += w < warp ? warp_totals[w] : 0U;
    all += warp_totals[w];
  }
  return before;
}

/// Tiles of all chosen experts; returns their number.
__device__ int32_t list_tiles(const SlotArgs& args,
                              const FusedShape& shape,
                              const FusedShared& shared,
                              uint32_t* warp_totals) {
  const int32_t num_lists = args.num_experts + 1;
  for (int32_t i = threadIdx.x; i < shape.num_entries; i += kThreads) {
    const int32_t slot = i % args.slots;
    const int32_t token = i / args.slots;
    int32_t local = args.num_experts;
    float factor = 1.0F;
    if (slot < args.top_k) {
      local = args.expert_ids[token * args.id_stride + slot] - args.first_expert;
      local = local >= 0 && local < args.num_experts ? local : -1;
      factor = args.expert_weights[token * args.weight_stride + slot];
    }
    shared.locals[i] = local;
    shared.factors[i] = factor;
    shared.order[i] = local >= 0 ? atomicAdd(&shared.counts[local], 1) : 0;
  }
  __syncthreads();
  // A thread takes neighbouring experts.
  const int32_t per_thread = (num_lists + kThreads - 1) / kThreads;
  const int32_t first = static_cast<int32_t>(threadIdx.x) * per_thread;
  const int32_t last = min(first + per_thread, num_lists);
  uint32_t mine = 0;
  for (int32_t e = first; e < last; ++e) {
    const auto count = static_cast<uint32_t>(shared.counts[e]);
    mine += count << 16 | (count + kTileTokens - 1) / kTileTokens;
  }
  uint32_t all = 0;
  uint32_t before = scan_before(mine, warp_totals, all);
  for (int32_t e = first; e < last; ++e) {
    const int32_t count = shared.counts[e];
    auto begin = static_cast<int32_t>(before >> 16);
    auto tile = static_cast<int32_t>(before & 0xffffU);
    shared.counts[e] = begin;
    before += static_cast<uint32_t>(count) << 16;
    for (int32_t left = count; left > 0; left -= kTileTokens, begin += kTileTokens, ++tile) {
      shared.tiles[tile] =
          Tile{e, static_cast<int16_t>(begin), static_cast<int16_t>(min(left, kTileTokens))};
      ++before;
    }
  }
  __syncthreads();
  // Ranks become places; the list overwrites the ranks, so all are read first.
  constexpr int32_t kHeld = 8;
  int32_t places[kHeld];
#pragma unroll
  for (int32_t j = 0; j < kHeld; ++j) {
    const int32_t i = static_cast<int32_t>(threadIdx.x) + j * kThreads;
    const int32_t local = i < shape.num_entries ? shared.locals[i] : -1;
    places[j] = local >= 0 ? shared.counts[local] + shared.order[i] : -1;
  }
  __syncthreads();
#pragma unroll
  for (int32_t j = 0; j < kHeld; ++j) {
    if (places[j] >= 0) {
      shared.order[places[j]] = static_cast<int32_t>(threadIdx.x) + j * kThreads;
    }
  }
  __syncthreads();
  return static_cast<int32_t>(all & 0xffffU);
}

/// What one step of a warp needs: a k block of a tile.
template <ProductMode kMode, int32_t kRowTiles>
struct FusedStage {
  using Traits = MmaTraits<kMode>;
  uint4 w[kRowTiles][2][Traits::kWeightChunks];
  uint4 x[Traits::kXChunks];
  float w_scales[kRowTiles][2];
  float x_scales[2];
};

/// A warp's way through its tiles, block by block.
struct Cursor {
  int32_t tile;
  int32_t block;

  __device__ void advance(int32_t num_blocks) {
    if (++block == num_blocks) {
      block = 0;
      tile += kWarps;
    }
  }
};

/// Rows of the stripe that a lane reads, and their scale rows of routed experts and the shared one.
template <int32_t kRowTiles>
struct StripeRows {
  int32_t column[kRowTiles][2];
  int32_t scale_row[kRowTiles][2];
  int32_t shared_scale_row[kRowTiles][2];

  template <ProductMode kMode>
  __device__ void find(const ProductArgs& args, int32_t first_column) {
    const int32_t g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int32_t i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t row = min(first_column + i * 16 + half * 8 + g, args.out_columns - 1);
        column[i][half] = row;
        if constexpr (kMode != ProductMode::bf16) {
          scale_row[i][half] = scale_row_of(args.weight, row);
          shared_scale_row[i][half] =
              args.shared.data != nullptr ? scale_row_of(args.shared, row) : 0;
        }
      }
    }
  }
};

template <ProductMode kMode, int32_t kRowTiles>
__device__ void load_stage(const ProductArgs& args,
                           const FusedShared& shared,
                           const StripeRows<kRowTiles>& rows,
                           const Cursor& at,
                           FusedStage<kMode, kRowTiles>& stage) {
  using Traits = MmaTraits<kMode>;
  const int32_t g = threadIdx.x % 32 / 4;
  const int32_t t = threadIdx.x % 4;
  const Tile tile = shared.tiles[at.tile];
  const DeviceMatrix& m = matrix_of(args, tile.expert);
  const ExpertMatrix expert = expert_matrix(args, tile.expert);
  const std::byte* weights =
      expert.data + static_cast<int64_t>(at.block) * kBlockK * Traits::kWeightSize;
#pragma unroll
  for (int32_t i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const std::byte* row = weights + rows.column[i][half] * m.row_bytes;
#pragma unroll
      for (int32_t c = 0; c < Traits::kWeightChunks; ++c) {
        stage.w[i][half][c] = __ldg(reinterpret_cast<const uint4*>(row + weight_chunk(c, t)));
      }
      if constexpr (kMode != ProductMode::bf16) {
        const int32_t scale_row = tile.expert == args.num_experts ? rows.shared_scale_row[i][half]
                                                                  : rows.scale_row[i][half];
        stage.w_scales[i][half] = __ldg(expert.scales + scale_row * m.num_groups + at.block);
      }
    }
  }
  const int64_t entry = g < tile.count ? shared.order[tile.begin + g] : -1;
  const std::byte* x = args.x.data + entry * args.x.stride * Traits::kXSize;
  const int32_t row_bytes = m.columns * Traits::kXSize;
#pragma unroll
  for (int32_t c = 0; c < Traits::kXChunks; ++c) {
    const int32_t offset = at.block * kBlockK * Traits::kXSize + x_chunk<kMode>(c, t);
    stage.x[c] = make_uint4(0, 0, 0, 0);
    if (entry >= 0 && offset < row_bytes) {
      stage.x[c] = *reinterpret_cast<const uint4*>(x + offset);
    }
  }
  if constexpr (kMode == ProductMode::fp8) {
#pragma unroll
    for (int32_t j = 0; j < 2; ++j) {
      const int32_t i = 2 * t + j;
      stage.x_scales[j] = i < tile.count
                              ? args.x.scales[shared.order[tile.begin + i] * args.x.scale_row +
                                              at.block * args.x.scale_group]
                              : 0.0F;
    }
  }
}

/// The stage's block into the totals, in the canonical order (product.h).
template <ProductMode kMode, int32_t kRowTiles>
__device__ void add_stage(const FusedStage<kMode, kRowTiles>& stage, float (&total)[kRowTiles][4]) {
  float part[kRowTiles][4] = {};
#pragma unroll
  for (int32_t s = 0; s < kSteps; ++s) {
    uint32_t b0;
    uint32_t b1;
    x_words<kMode>(stage.x, s, b0, b1);
#pragma unroll
    for (int32_t i = 0; i < kRowTiles; ++i) {
      uint32_t a[4];
      weight_words<kMode>(stage.w[i][0], s, a[0], a[2]);
      weight_words<kMode>(stage.w[i][1], s, a[1], a[3]);
      mma<kMode>(part[i], a, b0, b1);
    }
  }
#pragma unroll
  for (int32_t i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      const float x_scale = kMode == ProductMode::fp8 ? stage.x_scales[j % 2] : 1.0F;
      const float w_scale = kMode == ProductMode::bf16 ? 1.0F : stage.w_scales[i][j / 2];
      total[i][j] = add_block<kMode>(total[i][j], part[i][j], x_scale, w_scale);
    }
  }
}

/// A tile's totals to their places.
template <int32_t kRowTiles>
__device__ void put_products(const FusedShared& shared,
                             const Tile& tile,
                             bool is_bf16,
                             const float (&total)[kRowTiles][4]) {
  constexpr int32_t kColumns = kRowTiles * 16;
  const int32_t g = threadIdx.x % 32 / 4;
  const int32_t t = threadIdx.x % 4;
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    const int32_t m = 2 * t + j % 2;
    if (m < tile.count) {
      const int32_t at = shared.order[tile.begin + m] * kColumns + g + j / 2 * 8;
#pragma unroll
      for (int32_t i = 0; i < kRowTiles; ++i) {
        if (is_bf16) {
          reinterpret_cast<uint16_t*>(shared.products)[at + i * 16] = f32_to_bf16_bits(total[i][j]);
        } else {
          reinterpret_cast<float*>(shared.products)[at + i * 16] = total[i][j];
        }
      }
    }
  }
}

/// Sums of tokens in slot order to the output, two columns a thread.
template <int32_t kRowTiles>
__device__ void sum_slots(const SlotArgs& args,
                          const FusedShared& shared,
                          int32_t first_column,
                          int32_t out_columns) {
  constexpr int32_t kPairs = kRowTiles * 8;
  for (int32_t i = threadIdx.x; i < args.num_tokens * kPairs; i += kThreads) {
    const int32_t token = i / kPairs;
    const int32_t pair = i % kPairs;
    float low = 0.0F;
    float high = 0.0F;
    for (int32_t slot = 0; slot < args.slots; ++slot) {
      const int32_t entry = token * args.slots + slot;
      if (shared.locals[entry] < 0) {
        continue;
      }
      const float factor = shared.factors[entry];
      const int32_t at = entry * kPairs + pair;
      float2 value;
      if (args.out.is_bf16) {
        const uint32_t word = reinterpret_cast<const uint32_t*>(shared.products)[at];
        value = make_float2(bf16_bits_to_f32(word & 0xffffU), bf16_bits_to_f32(word >> 16));
      } else {
        value = reinterpret_cast<const float2*>(shared.products)[at];
      }
      low = fmaf(factor, value.x, low);
      high = fmaf(factor, value.y, high);
    }
    const int32_t column = first_column + pair * 2;
    if (args.out.is_bf16 && column + 1 < out_columns && args.out.stride % 2 == 0 &&
        reinterpret_cast<uintptr_t>(args.out.data) % 4 == 0) {
      reinterpret_cast<uint32_t*>(args.out.data)[(token * args.out.stride + column) / 2] =
          f32_to_bf16x2(low, high);
      continue;
    }
    if (column < out_columns) {
      store_plain(args.out, token, column, low);
    }
    if (column + 1 < out_columns) {
      store_plain(args.out, token, column + 1, high);
    }
  }
}

template <ProductMode kMode, int32_t kRowTiles, int32_t kStages>
__global__ void __launch_bounds__(kThreads, kRowTiles)
    fused_down_kernel(const __grid_constant__ ProductArgs args,
                      const __grid_constant__ SlotArgs slots,
                      const __grid_constant__ FusedShape shape) {
  extern __shared__ __align__(16) std::byte memory[];
  __shared__ uint32_t warp_totals[kWarps];
  let_next_start();
  const FusedShared shared(memory, shape);
  for (int32_t e = threadIdx.x; e <= slots.num_experts; e += kThreads) {
    shared.counts[e] = 0;
  }
  const int32_t first_column = static_cast<int32_t>(blockIdx.x) * kRowTiles * 16;
  StripeRows<kRowTiles> rows;
  rows.template find<kMode>(args, first_column);
  __syncthreads();
  wait_for_previous();
  const int32_t num_tiles = list_tiles(slots, shape, shared, warp_totals);
  Cursor ahead{static_cast<int32_t>(threadIdx.x) / 32, 0};
  Cursor at = ahead;
  FusedStage<kMode, kRowTiles> stages[kStages];
#pragma unroll
  for (int32_t s = 0; s < kStages; ++s) {
    if (ahead.tile < num_tiles) {
      load_stage<kMode, kRowTiles>(args, shared, rows, ahead, stages[s]);
      ahead.advance(shape.num_blocks);
    }
  }
  float total[kRowTiles][4] = {};
  while (at.tile < num_tiles) {
#pragma unroll
    for (int32_t s = 0; s < kStages; ++s) {
      if (at.tile < num_tiles) {
        add_stage<kMode, kRowTiles>(stages[s], total);
        if (ahead.tile < num_tiles) {
          load_stage<kMode, kRowTiles>(args, shared, rows, ahead, stages[s]);
          ahead.advance(shape.num_blocks);
        }
        if (at.block + 1 == shape.num_blocks) {
          put_products<kRowTiles>(shared, shared.tiles[at.tile], slots.out.is_bf16, total);
#pragma unroll
          for (int32_t i = 0; i < kRowTiles * 4; ++i) {
            total[i / 4][i % 4] = 0.0F;
          }
        }
        at.advance(shape.num_blocks);
      }
    }
  }
  __syncthreads();
  sum_slots<kRowTiles>(slots, shared, first_column, args.out_columns);
}

FusedShape shape_of(const ProductArgs& product, const SlotArgs& slots, int32_t columns) {
  FusedShape shape{};
  const int32_t lists = slots.num_experts + 1;
  shape.num_entries = slots.num_tokens * slots.slots;
  shape.num_blocks = (product.weight.columns + kBlockK - 1) / kBlockK;
  shape.product_bytes = shape.num_entries * columns * (slots.out.is_bf16 ? 2 : 4);
  shape.max_tiles = shape.num_entries / kTileTokens + std::min(lists, shape.num_entries);
  shape.bytes = shape.product_bytes + shape.num_entries * 3 * 4 +
                shape.max_tiles * static_cast<int32_t>(sizeof(Tile)) + lists * 4;
  return shape;
}

template <ProductMode kMode, int32_t kRowTiles, int32_t kStages>
void launch(const ProductArgs& product, const SlotArgs& slots, cudaStream_t stream) {
  constexpr int32_t kColumns = kRowTiles * 16;
  const FusedShape shape = shape_of(product, slots, kColumns);
  const auto kernel = fused_down_kernel<kMode, kRowTiles, kStages>;
  HADAL_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.bytes));
  const auto blocks = static_cast<uint32_t>((product.out_columns + kColumns - 1) / kColumns);
  launch_early(kernel,
               dim3(blocks),
               dim3(kThreads),
               static_cast<size_t>(shape.bytes),
               stream,
               product,
               slots,
               shape);
}

/// Most tokens: above, products that share reads of x among columns are faster.
constexpr int32_t kMaxTokens = 192;
constexpr int32_t kMaxStripe = 32;

}  // namespace

bool fits_fused_down(const ProductArgs& product, const SlotArgs& slots, int32_t max_shared_bytes) {
  const FusedShape shape = shape_of(product, slots, kMaxStripe);
  return slots.num_tokens <= kMaxTokens && shape.num_entries <= 8 * kThreads &&
         shape.bytes <= max_shared_bytes - 1024;
}

void launch_fused_down(const ProductArgs& product,
                       ProductMode mode,
                       const SlotArgs& slots,
                       int32_t num_multiprocessors,
                       cudaStream_t stream) {
  // Wide stripes read x half as often, where they leave no multiprocessor idle.
  const bool is_wide = product.weight.columns <= 2 * kBlockK &&
                       product.out_columns >= num_multiprocessors * kMaxStripe;
  switch (mode) {
    case ProductMode::fp8:
      return is_wide ? launch<ProductMode::fp8, 2, 1>(product, slots, stream)
                     : launch<ProductMode::fp8, 1, 3>(product, slots, stream);
    case ProductMode::bf16:
      return launch<ProductMode::bf16, 1, 3>(product, slots, stream);
    case ProductMode::w8a16:
      return is_wide ? launch<ProductMode::w8a16, 2, 1>(product, slots, stream)
                     : launch<ProductMode::w8a16, 1, 3>(product, slots, stream);
    case ProductMode::plain:
      HADAL_CHECK(false, "a plain product has its own kernel");
  }
}

}  // namespace hadal::cuda
