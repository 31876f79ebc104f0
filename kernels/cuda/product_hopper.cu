// Products of many rows on sm_90a: weights are the wide side of warpgroup products and come from
// registers, tokens the narrow side and come from shared memory.
//
// Four warps fill stages of one k block each by the copy engine; one or two warpgroups multiply. A
// stage's weights are read as fragments (E4M3 codes become BF16 on the way), 64 rows at a time;
// their sums of the block start from zero and are then added with their scales: the canonical order
// of product.h. Steps of k16 take the same 16 elements as those of product_mma.cuh, so that bits
// are the same as of the portable kernels. There a step's elements are four runs of four; here a
// step of the tokens must be 32 bytes in a row, so `launch_order_x` first copies the tokens in the
// order of steps.
#include <string>

#include <cuda.h>

#include "cuda_check.h"
#include "hopper_stages.cuh"

namespace hadal::cuda {

namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

EncodeTiled encode_tiled() {
  static const EncodeTiled found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    HADAL_CUDA_CHECK(cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result));
    HADAL_CHECK(result == cudaDriverEntryPointSuccess, "the driver has no tensor maps");
    return reinterpret_cast<EncodeTiled>(function);
  }();
  return found;
}

CUtensorMap map_of(const std::byte* data, int64_t row_bytes, int64_t rows, int32_t box_rows) {
  CUtensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(row_bytes), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[2] = {128, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult code = encode_tiled()(&map,
                                       CU_TENSOR_MAP_DATA_TYPE_UINT8,
                                       2,
                                       reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(data)),
                                       sizes,
                                       strides,
                                       box,
                                       steps,
                                       CU_TENSOR_MAP_INTERLEAVE_NONE,
                                       CU_TENSOR_MAP_SWIZZLE_128B,
                                       CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                       CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  HADAL_CHECK(
      code == CUDA_SUCCESS,
      "cannot map " + std::to_string(rows) + " rows of " + std::to_string(row_bytes) + " bytes");
  return map;
}

/// Row of the stage's weights at which half h of this warpgroup begins.
template <class Shape>
__device__ int32_t half_row(int32_t group, int32_t half) {
  return Shape::kIsPair ? half * (Shape::kRows / 2) + group * 64
                        : group * (Shape::kNumHalves * 64) + half * 64;
}

/// Row of a warpgroup's 64 that this lane has first, the other is 8 further: rows of neighbouring
/// lanes differ by 4, so that eight lanes' chunks meet eight different banks.
__device__ int32_t lane_row() {
  const int32_t g = threadIdx.x % 32 / 4;
  return threadIdx.x % 128 / 32 * 16 + g % 2 * 4 + g / 2;
}

/// The fragments of the block's steps of rows `row` and row + 8.
template <class Shape>
__device__ void load_fragments(const std::byte* weights, int32_t row, uint32_t (&a)[kSteps][4]) {
  constexpr ProductMode kMode = Shape::kModeOf;
  constexpr int32_t kChunks = MmaTraits<kMode>::kWeightChunks;
  const int32_t t = threadIdx.x % 4;
  uint4 first[kChunks];
  uint4 second[kChunks];
#pragma unroll
  for (int32_t c = 0; c < kChunks; ++c) {
    const int32_t place = ((c % 2 * 4 + t) ^ (row % 8)) * 16;
    const std::byte* at = weights + (c / 2 * Shape::kRows + row) * 128 + place;
    first[c] = *reinterpret_cast<const uint4*>(at);
    second[c] = *reinterpret_cast<const uint4*>(at + 8 * 128);
  }
#pragma unroll
  for (int32_t s = 0; s < kSteps; ++s) {
    if constexpr (kMode == ProductMode::bf16) {
      weight_words<kMode>(first, s, a[s][0], a[s][2]);
      weight_words<kMode>(second, s, a[s][1], a[s][3]);
    } else {
      weight_words<ProductMode::w8a16>(first, s, a[s][0], a[s][2]);
      weight_words<ProductMode::w8a16>(second, s, a[s][1], a[s][3]);
    }
  }
}

/// Fragments are made no later than here.
__device__ void keep_here(uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (int32_t s = 0; s < kSteps; ++s) {
    asm volatile("" : "+r"(a[s][0]), "+r"(a[s][1]), "+r"(a[s][2]), "+r"(a[s][3]));
  }
}

/// Begins the sums of one k block of 64 rows; the steps of the block's second half lie `half_bytes`
/// on.
template <int32_t kTokens>
__device__ void begin_half(const uint32_t (&a)[kSteps][4],
                           uint32_t x,
                           uint32_t half_bytes,
                           float (&part)[kTokens / 2]) {
  begin_products();
#pragma unroll
  for (int32_t s = 0; s < kSteps; ++s) {
    const uint64_t b = swizzled_operand(x + s / 4 * half_bytes + s % 4 * 32);
    if (s == 0) {
      Wgmma<kTokens>::template issue<false>(part, a[s], b);
    } else {
      Wgmma<kTokens>::template issue<true>(part, a[s], b);
    }
  }
  commit_products();
}

/// Adds the sums of a block to the totals. `scales` are the stage's, `row` is the lane's first.
template <class Shape, int32_t kTokens>
__device__ void add_half(const float* scales,
                         int32_t row,
                         const float (&part)[kTokens / 2],
                         float (&total)[kTokens / 2]) {
  constexpr ProductMode kMode = Shape::kModeOf;
  const int32_t t = threadIdx.x % 4;
  const float row_scales[2] = {kMode == ProductMode::bf16 ? 1.0F : scales[row],
                               kMode == ProductMode::bf16 ? 1.0F : scales[row + 8]};
#pragma unroll
  for (int32_t n = 0; n < kTokens / 8; ++n) {
    float2 x_scales = make_float2(1.0F, 1.0F);
    if constexpr (kMode == ProductMode::fp8) {
      x_scales = *reinterpret_cast<const float2*>(scales + Shape::kRows + n * 8 + 2 * t);
    }
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      total[n * 4 + i] = add_block<kMode>(total[n * 4 + i],
                                          part[n * 4 + i],
                                          i % 2 == 0 ? x_scales.x : x_scales.y,
                                          row_scales[i / 2]);
    }
  }
}

/// A stage and the phase of its barrier, block after block.
template <class Shape>
struct Cursor {
  int32_t stage = 0;
  uint32_t phase = 0;

  __device__ void advance() {
    ++stage;
    if (stage == Shape::kStages) {
      stage = 0;
      phase ^= 1U;
    }
  }
};

template <class Shape>
__device__ void leave_stage(const Ring<Shape>& ring, int32_t stage) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) {
    arrive(ring.empty + stage * 8);
  }
}

/// All blocks of the first kTokens tokens, 64 rows at a time. Two warpgroups take turns: one
/// prepares fragments and adds sums while the other multiplies.
template <class Shape, int32_t kTokens>
__device__ void multiply_blocks(const Ring<Shape>& ring,
                                const std::byte* stages,
                                int32_t num_blocks,
                                float (&total)[Shape::kNumHalves][kTokens / 2]) {
  const int32_t group = threadIdx.x / 128;
  const int32_t row = lane_row();
  float part[kTokens / 2] = {};
  Cursor<Shape> at;
  static_assert(Shape::kNumGroups == 2);
  if (group == 1) {
    come(kTurn, 256);
  }
  for (int32_t block = 0; block < num_blocks; ++block) {
    wait_phase(ring.full + at.stage * 8, at.phase);
    const std::byte* weights = stages + at.stage * Shape::kStageBytes + Shape::kXBytes;
    const auto* scales = reinterpret_cast<const float*>(weights + Shape::kWeightBytes);
#pragma unroll
    for (int32_t half = 0; half < Shape::kNumHalves; ++half) {
      const int32_t first = half_row<Shape>(group, half) + row;
      uint32_t a[kSteps][4];
      load_fragments<Shape>(weights, first, a);
      keep_here(a);
      meet(kTurn + group, 256);
      begin_half<kTokens>(a, ring.stage(at.stage), Shape::kNumTokens * 128, part);
      if (group == 0 || block + 1 < num_blocks || half + 1 < Shape::kNumHalves) {
        come(kTurn + 1 - group, 256);
      }
      wait_products(part);
      add_half<Shape, kTokens>(scales, first, part, total[half]);
    }
    leave_stage(ring, at.stage);
    at.advance();
  }
}

/// The same for one half, with registers to spare: the next block's fragments are prepared while
/// this one's are multiplied.
template <class Shape, int32_t kTokens>
__device__ void multiply_ahead(const Ring<Shape>& ring,
                               const std::byte* stages,
                               int32_t num_blocks,
                               float (&total)[kTokens / 2]) {
  const int32_t row = half_row<Shape>(threadIdx.x / 128, 0) + lane_row();
  float part[kTokens / 2] = {};
  uint32_t a[2][kSteps][4];
  Cursor<Shape> at;
  Cursor<Shape> next;
  wait_phase(ring.full, 0);
  load_fragments<Shape>(stages + Shape::kXBytes, row, a[0]);
  next.advance();
  for (int32_t pair = 0; pair < num_blocks; pair += 2) {
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
      if (pair + i < num_blocks) {
        const std::byte* stage = stages + at.stage * Shape::kStageBytes;
        begin_half<kTokens>(a[i], ring.stage(at.stage), Shape::kNumTokens * 128, part);
        if (pair + i + 1 < num_blocks) {
          wait_phase(ring.full + next.stage * 8, next.phase);
          load_fragments<Shape>(
              stages + next.stage * Shape::kStageBytes + Shape::kXBytes, row, a[1 - i]);
          keep_here(a[1 - i]);
        }
        wait_products(part);
        const auto* scales =
            reinterpret_cast<const float*>(stage + Shape::kXBytes + Shape::kWeightBytes);
        add_half<Shape, kTokens>(scales, row, part, total);
        leave_stage(ring, at.stage);
        at = next;
        next.advance();
      }
    }
  }
}

/// Totals to shared memory as [128 columns][token][column], then to out, a warp a token.
template <class Shape, int32_t kTokens>
__device__ void store_tile(const ProductArgs& args,
                           const float (&total)[Shape::kNumHalves][kTokens / 2],
                           int32_t first,
                           int32_t count,
                           const int32_t* entries,
                           float* result) {
  constexpr int32_t kMultipliers = Shape::kNumGroups * 128;
  const int32_t group = threadIdx.x / 128;
  const int32_t row = lane_row();
  const int32_t t = threadIdx.x % 4;
  meet(kMultipliersMeet, kMultipliers);  // all have left the stages
#pragma unroll
  for (int32_t half = 0; half < (Shape::kIsPair ? 1 : Shape::kNumHalves); ++half) {
    const int32_t column = half_row<Shape>(group, half) + row;
    float* to = result + column / 128 * (kTokens * kResultStride) + column % 128;
#pragma unroll
    for (int32_t i = 0; i < kTokens / 2; ++i) {
      const int32_t m = i / 4 * 8 + 2 * t + i % 2;
      float value = total[half][i];
      if constexpr (Shape::kIsPair) {
        value = swiglu(value, total[1][i]);
      }
      to[m * kResultStride + i / 2 % 2 * 8] = value;
    }
  }
  meet(kMultipliersMeet, kMultipliers);
  const int32_t columns = min(first + Shape::kColumns, args.out_columns);
#pragma unroll 1
  for (int32_t i = threadIdx.x / 32; i < count * Shape::kRegions; i += kMultipliers / 32) {
    const int32_t m = i / Shape::kRegions;
    const int32_t region = i % Shape::kRegions;
    const int32_t begin = first + region * 128;
    if (begin < columns) {
      const float4 four = *reinterpret_cast<const float4*>(
          result + (region * kTokens + m) * kResultStride + threadIdx.x % 32 * 4);
      const float values[4] = {four.x, four.y, four.z, four.w};
      store_group_quads(args.out, entries[m] - args.out_row_begin, begin, columns, values);
    }
  }
}

/// What a multiplying warpgroup does.
template <class Shape, int32_t kTokens>
__device__ void multiply_tile(const ProductArgs& args,
                              const Ring<Shape>& ring,
                              std::byte* stages,
                              int32_t num_blocks,
                              int32_t first,
                              int32_t count,
                              const int32_t* entries) {
  float total[Shape::kNumHalves][kTokens / 2] = {};
  if constexpr (Shape::kNumHalves == 1) {
    multiply_ahead<Shape, kTokens>(ring, stages, num_blocks, total[0]);
  } else {
    multiply_blocks<Shape, kTokens>(ring, stages, num_blocks, total);
  }
  store_tile<Shape, kTokens>(args, total, first, count, entries, reinterpret_cast<float*>(stages));
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    hopper_kernel(const __grid_constant__ ProductArgs args,
                  const __grid_constant__ HopperMaps maps,
                  int64_t row_begin) {
  extern __shared__ std::byte memory[];
  __shared__ int32_t entries[Shape::kNumTokens];
  __shared__ alignas(8) uint64_t barriers[2 * Shape::kStages];
  std::byte* stages = memory + (-shared_address(memory) & 1023U);
  const uint32_t full = shared_address(barriers);
  const Ring<Shape> ring{shared_address(stages), full, full + Shape::kStages * 8};
  const int32_t num_blocks = (args.weight.columns + kBlockK - 1) / kBlockK;
  const int32_t first = static_cast<int32_t>(blockIdx.x) * Shape::kColumns;
  let_next_start();
  if (threadIdx.x >= Shape::kNumGroups * 128) {
    if constexpr (Shape::kSplitsRegisters) {
      lower_registers<40>();
    }
    load_tile<Shape>(args, maps, row_begin, ring, num_blocks, first, entries);
  } else {
    if constexpr (Shape::kSplitsRegisters) {
      raise_registers<232>();
    }
    wait_for_previous();
    const int32_t count = row_tile(args, static_cast<int32_t>(blockIdx.y), Shape::kNumTokens).count;
    if (count <= 0) {
      return;
    }
    meet(kAllMeet, Shape::kThreads);
    // An expert's last tile is rarely full.
    constexpr int32_t kTokens = Shape::kNumTokens;
    constexpr int32_t kFewTokens = Shape::kIsPair && kTokens == 128 ? 64 : kTokens;
    if (kFewTokens < kTokens && count <= kFewTokens) {
      multiply_tile<Shape, kFewTokens>(args, ring, stages, num_blocks, first, count, entries);
    } else {
      multiply_tile<Shape, kTokens>(args, ring, stages, num_blocks, first, count, entries);
    }
  }
}

template <class Shape>
void launch(const ProductArgs& args,
            const OrderedX& x,
            const ProductGrid& grid,
            cudaStream_t stream) {
  const int64_t pitch = (args.weight.columns + kBlockK - 1) / kBlockK * kBlockBytes;
  HopperMaps maps;
  maps.weight = map_of(args.weight.data,
                       args.weight.row_bytes,
                       int64_t{args.num_experts} * args.weight.rows,
                       Shape::kPartRows);
  maps.shared =
      args.shared.data == nullptr
          ? maps.weight
          : map_of(args.shared.data, args.shared.row_bytes, args.shared.rows, Shape::kPartRows);
  maps.x = map_of(x.data, pitch, x.rows, args.tiles == nullptr ? Shape::kNumTokens : 1);
  const auto kernel = hopper_kernel<Shape>;
  HADAL_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes));
  const dim3 blocks(
      static_cast<uint32_t>((args.out_columns + Shape::kColumns - 1) / Shape::kColumns),
      static_cast<uint32_t>(grid.num_tiles));
  launch_early(
      kernel, blocks, dim3(Shape::kThreads), Shape::kBytes, stream, args, maps, x.row_begin);
}

/// The shapes of kHopperTiles (product.h).
template <ProductMode kMode, bool kPair>
void launch_tile(const ProductArgs& args,
                 const HopperTile& tile,
                 const OrderedX& x,
                 const ProductGrid& grid,
                 cudaStream_t stream) {
  const auto is = [&](int32_t rows, int32_t tokens) {
    return tile.rows == rows && tile.tokens == tokens;
  };
  if constexpr (kMode == ProductMode::bf16) {
    if (!kPair && is(128, 128)) {
      return launch<HopperShape<kMode, false, 2, 1, 128>>(args, x, grid, stream);
    }
    if (!kPair && is(64, 128)) {
      return launch<HopperShape<kMode, false, 1, 1, 128>>(args, x, grid, stream);
    }
    if (!kPair && is(64, 64)) {
      return launch<HopperShape<kMode, false, 1, 1, 64>>(args, x, grid, stream);
    }
    if (!kPair && is(64, 32)) {
      return launch<HopperShape<kMode, false, 1, 1, 32>>(args, x, grid, stream);
    }
  } else {
    if (is(256, 128)) {
      return launch<HopperShape<kMode, kPair, 2, 2, 128>>(args, x, grid, stream);
    }
    if (kPair && is(256, 64)) {
      return launch<HopperShape<kMode, true, 2, 2, 64>>(args, x, grid, stream);
    }
    if (kPair && is(256, 32)) {
      return launch<HopperShape<kMode, true, 2, 2, 32>>(args, x, grid, stream);
    }
    if (!kPair && is(128, 64)) {
      return launch<HopperShape<kMode, false, 2, 1, 64>>(args, x, grid, stream);
    }
    if (!kPair && is(128, 32)) {
      return launch<HopperShape<kMode, false, 2, 1, 32>>(args, x, grid, stream);
    }
    if (!kPair && is(64, 32)) {
      return launch<HopperShape<kMode, false, 1, 1, 32>>(args, x, grid, stream);
    }
  }
  HADAL_CHECK(false, "a product on sm_90a has none of these tiles");
}

template <ProductMode kMode>
void launch_mode(const ProductArgs& args,
                 bool is_pair,
                 const HopperTile& tile,
                 const OrderedX& x,
                 const ProductGrid& grid,
                 cudaStream_t stream) {
  is_pair ? launch_tile<kMode, true>(args, tile, x, grid, stream)
          : launch_tile<kMode, false>(args, tile, x, grid, stream);
}

}  // namespace

void launch_hopper_product(const ProductArgs& args,
                           ProductMode mode,
                           bool is_pair,
                           const HopperTile& tile,
                           const OrderedX& x,
                           const ProductGrid& grid,
                           cudaStream_t stream) {
  HADAL_CHECK(grid.tile_rows == tile.tokens && args.gather == nullptr,
              "a product on sm_90a has ordered rows and tiles of its own size");
  switch (mode) {
    case ProductMode::fp8:
      return launch_mode<ProductMode::fp8>(args, is_pair, tile, x, grid, stream);
    case ProductMode::bf16:
      return launch_mode<ProductMode::bf16>(args, is_pair, tile, x, grid, stream);
    case ProductMode::w8a16:
      return launch_mode<ProductMode::w8a16>(args, is_pair, tile, x, grid, stream);
    case ProductMode::plain:
      HADAL_CHECK(false, "a plain product has its own kernel");
  }
}

}  // namespace hadal::cuda
