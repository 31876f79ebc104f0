// Products of many rows on sm_90a: weights are the wide side of warpgroup products and come from
// registers, tokens the narrow side and come from shared memory.
//
// Four warps fill stages of one k block each by cp.async; one or two warpgroups multiply. A stage's
// weights are read as fragments (E4M3 codes become BF16 on the way), 64 rows at a time; their sums
// of the block start from zero and are then added with their scales: the canonical order of
// product.h. Steps of k16 take the same 16 elements as those of product_mma.cuh, so that bits are
// the same as of the portable kernels. There a step's elements are four runs of four; here a step
// of the tokens must be 32 bytes in a row, so `launch_order_x` first copies the tokens in the order
// of steps.
#include "cuda_check.h"
#include "hopper.cuh"
#include "launch.cuh"
#include "product_mma.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kLoaders = 128;             ///< threads that fill stages
constexpr int32_t kResultStride = 132;        ///< floats of a token in 128 columns of the result
constexpr int32_t kBlockBytes = kBlockK * 2;  ///< of a token in a k block
constexpr int32_t kStagesBytes = 200 << 10;   ///< of shared memory for stages, at most

constexpr int32_t kMultipliersMeet = 1;  ///< names of barriers
constexpr int32_t kAllMeet = 2;

/// kGroups warpgroups, each kHalves times 64 rows of the weight, by kTokens tokens.
template <ProductMode kMode, bool kPair, int32_t kGroups, int32_t kHalves, int32_t kTokens>
struct HopperShape {
  static constexpr ProductMode kModeOf = kMode;
  static constexpr bool kIsPair = kPair;
  static constexpr int32_t kNumGroups = kGroups;
  static constexpr int32_t kNumHalves = kHalves;
  static constexpr int32_t kNumTokens = kTokens;
  static constexpr int32_t kRows = kGroups * kHalves * 64;
  static constexpr int32_t kColumns = kPair ? kRows / 2 : kRows;  ///< of out
  static constexpr int32_t kThreads = kLoaders + kGroups * 128;
  static constexpr int32_t kWeightPitch = kBlockK * MmaTraits<kMode>::kWeightSize;
  static constexpr int32_t kXBytes = kTokens * kBlockBytes;
  static constexpr int32_t kWeightBytes = kRows * kWeightPitch;
  static constexpr int32_t kScaleBytes = kMode == ProductMode::bf16 ? 0 : (kRows + kTokens) * 4;
  static constexpr int32_t kStageBytes =
      (kXBytes + kWeightBytes + kScaleBytes + 1023) / 1024 * 1024;
  static constexpr int32_t kStages =
      kStagesBytes / kStageBytes < 8 ? kStagesBytes / kStageBytes : 8;
  static constexpr int32_t kBytes = kStages * kStageBytes + 1024;  ///< and the way to 1024
  static constexpr int32_t kRegions = (kColumns + 127) / 128;      ///< of the result
  /// Without setmaxnreg each thread has 168 registers.
  static constexpr bool kSplitsRegisters = kGroups == 2 && kTokens == 128;
  static_assert(kStages >= 3);
  static_assert(!kPair || (kHalves == 2 && kGroups == 2), "a pair makes whole quantisation groups");
  static_assert(kRegions * kTokens * kResultStride * 4 <= kStages * kStageBytes);
};

__device__ void copy_scale(uint32_t to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(to), "l"(from));
}

/// What a loading thread copies, the same in every k block. For rows of the weight and tokens that
/// are not there zeros are written, or nothing: what they make is not stored.
template <class Shape>
struct Loader {
  static constexpr ProductMode kMode = Shape::kModeOf;
  static constexpr int32_t kChunks = Shape::kWeightPitch / 16;  ///< of a row of the weight
  static constexpr int32_t kRowStep = kLoaders / kChunks;
  static constexpr int32_t kPartRows = Shape::kIsPair ? Shape::kRows / 2 : Shape::kRows;
  static constexpr int32_t kParts = Shape::kRows / kPartRows;
  static constexpr int32_t kScales = (Shape::kRows + kLoaders - 1) / kLoaders;

  const std::byte* weights[kParts];  ///< this thread's chunk of its first row
  uint32_t weight_step;              ///< bytes from a row of this thread to the next
  int32_t rows_left;                 ///< from this thread's first row
  const float* scales;
  int32_t scale_at[kScales];  ///< of this thread's rows; -1 beyond the last
  const std::byte* x;         ///< this thread's chunk of row 0
  const uint32_t* x_offsets;  ///< of the tile's tokens, in 16 bytes
  int32_t tokens_left;        ///< from this thread's first token
  const float* x_scales;      ///< of this thread's token, or null
  int32_t x_scale_group;

  __device__ Loader(const ProductArgs& args, int32_t first, const RowTile& tile) {
    const int32_t row = thread() / kChunks;
    const DeviceMatrix& matrix = matrix_of(args, tile.expert);
    const ExpertMatrix expert = expert_matrix(args, tile.expert);
    const std::byte* begin =
        expert.data + (first + row) * matrix.row_bytes + thread() % kChunks * 16;
#pragma unroll
    for (int32_t part = 0; part < kParts; ++part) {
      weights[part] = begin + part * args.out_columns * matrix.row_bytes;
    }
    weight_step = static_cast<uint32_t>(kRowStep * matrix.row_bytes);
    rows_left = args.out_columns - first - row;
    scales = expert.scales;
#pragma unroll
    for (int32_t i = 0; i < kScales; ++i) {
      const int32_t r = thread() + i * kLoaders;
      const int32_t column = first + r % kPartRows;
      scale_at[i] = -1;
      if (kMode != ProductMode::bf16 && r < Shape::kRows && column < args.out_columns) {
        scale_at[i] =
            matrix.scale_rows[column + r / kPartRows * args.out_columns] * matrix.num_groups;
      }
    }
  }

  /// `offsets` of the tokens in `ordered`; x_row is the row of this thread's token.
  __device__ void set_tokens(const ProductArgs& args,
                             const std::byte* ordered,
                             const uint32_t* offsets,
                             int32_t count,
                             int32_t x_row) {
    x = ordered + thread() % 16 * 16;
    x_offsets = offsets + thread() / 16;
    tokens_left = count - thread() / 16;
    x_scales = nullptr;
    if (kMode == ProductMode::fp8 && thread() < count) {
      x_scales = args.x.scales + x_row * args.x.scale_row;
    }
    x_scale_group = static_cast<int32_t>(args.x.scale_group);
  }

  static __device__ int32_t thread() {
    return static_cast<int32_t>(threadIdx.x % kLoaders);
  }

  /// What no kernel writes.
  __device__ void load_constant(uint32_t stage, int32_t block) const {
    const int32_t place = (thread() % kChunks ^ (thread() / kChunks % 2 * 4)) * 16;
    const uint32_t to = stage + Shape::kXBytes + thread() / kChunks * Shape::kWeightPitch + place;
#pragma unroll
    for (int32_t i = 0; i < Shape::kRows / kRowStep; ++i) {
      constexpr int32_t kPartSteps = kPartRows / kRowStep;
      const std::byte* from = weights[i / kPartSteps] + block * Shape::kWeightPitch;
      const int32_t step = i % kPartSteps;
      copy_async(to + i * kRowStep * Shape::kWeightPitch,
                 from + static_cast<uint64_t>(weight_step) * step,
                 step * kRowStep < rows_left);
    }
#pragma unroll
    for (int32_t i = 0; i < kScales; ++i) {
      if (scale_at[i] >= 0) {
        copy_scale(scale_place(stage) + i * kLoaders * 4, scales + scale_at[i] + block);
      }
    }
  }

  __device__ void load_rest(uint32_t stage, int32_t block) const {
    const int32_t c = thread() % 16;
    const uint32_t to = stage + c / 8 * (Shape::kNumTokens * 128) + thread() / 16 * 128 +
                        ((c % 8) ^ (thread() / 16)) * 16;
    const std::byte* from = x + block * kBlockBytes;
#pragma unroll
    for (int32_t i = 0; i < Shape::kNumTokens / 8; ++i) {
      copy_async(
          to + i * 1024, from + static_cast<uint64_t>(x_offsets[i * 8]) * 16, i * 8 < tokens_left);
    }
    if (kMode == ProductMode::fp8 && x_scales != nullptr) {
      copy_scale(scale_place(stage) + Shape::kRows * 4, x_scales + int64_t{block} * x_scale_group);
    }
  }

  static __device__ uint32_t scale_place(uint32_t stage) {
    return stage + Shape::kXBytes + Shape::kWeightBytes + thread() * 4;
  }
};

/// Barriers of the stages: `full` counts loading warps, `empty` multiplying warps.
template <class Shape>
struct Ring {
  uint32_t stages;
  uint32_t full;
  uint32_t empty;

  __device__ uint32_t stage(int32_t i) const { return stages + i * Shape::kStageBytes; }
};

/// All blocks; of the first `num_begun` the constant part is on its way.
template <class Shape>
__device__ void load_blocks(const Loader<Shape>& loader,
                            const Ring<Shape>& ring,
                            int32_t num_blocks,
                            int32_t num_begun) {
  // A block is handed over once the next kAhead are on their way.
  constexpr int32_t kAhead = Shape::kStages - 2;
  int32_t stage = 0;
  uint32_t phase = 1;  // the first round waits for nothing
  int32_t done = 0;
  for (int32_t block = 0; block < num_blocks + kAhead; ++block) {
    if (block < num_blocks) {
      wait_phase(ring.empty + stage * 8, phase);
      if (block >= num_begun) {
        loader.load_constant(ring.stage(stage), block);
      }
      loader.load_rest(ring.stage(stage), block);
      ++stage;
      if (stage == Shape::kStages) {
        stage = 0;
        phase ^= 1U;
      }
    }
    commit_copies();
    if (block >= kAhead) {
      wait_copies<kAhead>();
      fence_shared_for_products();
      __syncwarp();
      if (threadIdx.x % 32 == 0) {
        arrive(ring.full + done * 8);
      }
      done = done + 1 == Shape::kStages ? 0 : done + 1;
    }
  }
}

/// Row of the stage's weights at which half h of this warpgroup begins.
template <class Shape>
__device__ int32_t half_row(int32_t group, int32_t half) {
  return Shape::kIsPair ? half * (Shape::kRows / 2) + group * 64
                        : group * (Shape::kNumHalves * 64) + half * 64;
}

/// The fragments of the block's steps of two rows, 8 apart.
template <ProductMode kMode>
__device__ void load_fragments(const std::byte* low,
                               const std::byte* high,
                               int32_t flip,
                               uint32_t (&a)[kSteps][4]) {
  constexpr int32_t kChunks = MmaTraits<kMode>::kWeightChunks;
  const int32_t t = threadIdx.x % 4;
  uint4 first[kChunks];
  uint4 second[kChunks];
#pragma unroll
  for (int32_t c = 0; c < kChunks; ++c) {
    const int32_t at = (c * 4 ^ flip) * 16 + t * 16;
    first[c] = *reinterpret_cast<const uint4*>(low + at);
    second[c] = *reinterpret_cast<const uint4*>(high + at);
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

/// The sums of one k block of 64 rows; the steps of the block's second half lie `half_bytes` on.
template <int32_t kTokens>
__device__ void multiply_half(const uint32_t (&a)[kSteps][4],
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
  wait_products(part);
}

/// All blocks of the first kTokens tokens.
template <class Shape, int32_t kTokens>
__device__ void multiply_blocks(const Ring<Shape>& ring,
                                const std::byte* stages,
                                int32_t num_blocks,
                                float (&total)[Shape::kNumHalves][kTokens / 2]) {
  constexpr ProductMode kMode = Shape::kModeOf;
  const int32_t group = threadIdx.x / 128;
  const int32_t row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  const int32_t t = threadIdx.x % 4;
  const int32_t flip = row % 2 * 4;
  float part[kTokens / 2] = {};
  int32_t stage = 0;
  uint32_t phase = 0;
  for (int32_t block = 0; block < num_blocks; ++block) {
    wait_phase(ring.full + stage * 8, phase);
    const std::byte* weights = stages + stage * Shape::kStageBytes + Shape::kXBytes;
    const auto* scales = reinterpret_cast<const float*>(weights + Shape::kWeightBytes);
#pragma unroll
    for (int32_t half = 0; half < Shape::kNumHalves; ++half) {
      const int32_t at = half_row<Shape>(group, half) + row;
      const std::byte* low = weights + at * Shape::kWeightPitch;
      uint32_t a[kSteps][4];
      load_fragments<kMode>(low, low + 8 * Shape::kWeightPitch, flip, a);
      multiply_half<kTokens>(a, ring.stage(stage), Shape::kNumTokens * 128, part);
      const float row_scales[2] = {kMode == ProductMode::bf16 ? 1.0F : scales[at],
                                   kMode == ProductMode::bf16 ? 1.0F : scales[at + 8]};
#pragma unroll
      for (int32_t n = 0; n < kTokens / 8; ++n) {
        float2 x_scales = make_float2(1.0F, 1.0F);
        if constexpr (kMode == ProductMode::fp8) {
          x_scales = *reinterpret_cast<const float2*>(scales + Shape::kRows + n * 8 + 2 * t);
        }
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          total[half][n * 4 + i] = add_block<kMode>(total[half][n * 4 + i],
                                                    part[n * 4 + i],
                                                    i % 2 == 0 ? x_scales.x : x_scales.y,
                                                    row_scales[i / 2]);
        }
      }
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      arrive(ring.empty + stage * 8);
    }
    ++stage;
    if (stage == Shape::kStages) {
      stage = 0;
      phase ^= 1U;
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
  const int32_t row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
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
  multiply_blocks<Shape, kTokens>(ring, stages, num_blocks, total);
  store_tile<Shape, kTokens>(args, total, first, count, entries, reinterpret_cast<float*>(stages));
}

/// What the loading threads do. They also make the barriers and the lists of the tile's rows.
template <class Shape>
__device__ void load_tile(const ProductArgs& args,
                          const OrderedX& x,
                          const Ring<Shape>& ring,
                          int32_t num_blocks,
                          int32_t first,
                          int32_t* entries,
                          uint32_t* x_offsets) {
  const int32_t thread = Loader<Shape>::thread();
  if (thread == 0) {
    for (int32_t s = 0; s < Shape::kStages; ++s) {
      init_barrier(ring.full + s * 8, kLoaders / 32);
      init_barrier(ring.empty + s * 8, Shape::kNumGroups * 4);
    }
    fence_barrier_init();
  }
  const auto index = static_cast<int32_t>(blockIdx.y);
  if constexpr (Shape::kSplitsRegisters) {
    wait_for_previous();
  } else if (args.tiles != nullptr) {
    wait_for_previous();
  }
  const RowTile tile = row_tile(args, index, Shape::kNumTokens);
  if (tile.count <= 0) {
    return;
  }
  Loader<Shape> loader(args, first, tile);
  // Constants may be on their way before the kernel in front has ended. Of little use beside many
  // rows, and short of registers there.
  int32_t num_begun = 0;
  if (!Shape::kSplitsRegisters && args.tiles == nullptr) {
    num_begun = min(Shape::kStages, num_blocks);
    for (int32_t block = 0; block < num_begun; ++block) {
      loader.load_constant(ring.stage(block), block);
    }
    wait_for_previous();
  }
  const int32_t entry = entry_of(args, tile.begin + min(thread, tile.count - 1));
  const int32_t x_row = x_row_of(args, entry);
  if (thread < Shape::kNumTokens) {
    entries[thread] = entry;
    x_offsets[thread] =
        static_cast<uint32_t>((x_row - x.row_begin) * num_blocks * (kBlockBytes / 16));
  }
  loader.set_tokens(args, x.data, x_offsets, tile.count, x_row);
  meet(kAllMeet, Shape::kThreads);
  load_blocks(loader, ring, num_blocks, num_begun);
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    hopper_kernel(const __grid_constant__ ProductArgs args, OrderedX x) {
  extern __shared__ std::byte memory[];
  __shared__ int32_t entries[Shape::kNumTokens];
  __shared__ uint32_t x_offsets[Shape::kNumTokens];
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
    load_tile<Shape>(args, x, ring, num_blocks, first, entries, x_offsets);
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
  const auto kernel = hopper_kernel<Shape>;
  HADAL_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes));
  const dim3 blocks(
      static_cast<uint32_t>((args.out_columns + Shape::kColumns - 1) / Shape::kColumns),
      static_cast<uint32_t>(grid.num_tiles));
  launch_early(kernel, blocks, dim3(Shape::kThreads), Shape::kBytes, stream, args, x);
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
