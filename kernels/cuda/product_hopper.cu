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
  static constexpr int32_t kColumns = kPair ? kRows / 2 : kRows;   ///< of out
  static constexpr int32_t kPartRows = kPair ? kRows / 2 : kRows;  ///< in a row in the matrix
  static constexpr int32_t kThreads = kLoaders + kGroups * 128;
  static constexpr int32_t kWeightPitch = kBlockK * MmaTraits<kMode>::kWeightSize;
  static constexpr int32_t kWeightBoxes = kWeightPitch / 128;  ///< a row
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

/// Rows of 128 bytes and more as the copy engine sees them, in boxes of 128 bytes with the 128-byte
/// swizzle of swizzled_operand.
struct HopperMaps {
  CUtensorMap weight;  ///< rows of all experts
  CUtensorMap shared;
  CUtensorMap x;
};

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
                                       const_cast<std::byte*>(data),
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

__device__ void copy_scale(uint32_t to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(to), "l"(from));
}

/// What fills a stage, the same in every k block: one thread asks for boxes of weights and tokens
/// (for gathered tokens a warp, a row each), all copy scales.
template <class Shape>
struct Loader {
  static constexpr ProductMode kMode = Shape::kModeOf;
  static constexpr int32_t kParts = Shape::kRows / Shape::kPartRows;
  static constexpr int32_t kScales = (Shape::kRows + kLoaders - 1) / kLoaders;
  static constexpr int32_t kLaneTokens = (Shape::kNumTokens + 31) / 32;

  const HopperMaps& maps;
  const CUtensorMap* weights;
  int32_t weight_row;  ///< of the first part
  int32_t part_rows;   ///< from a part to the next
  const float* scales;
  int32_t scale_at[kScales];  ///< of this thread's rows; -1 beyond the last
  bool is_gathered;
  int32_t x_rows[kLaneTokens];  ///< of this lane's tokens when gathered; else [0], the tile's first
  int32_t count;                ///< of tokens
  const float* x_scales;        ///< of this thread's token, or null
  int32_t x_scale_group;

  __device__ Loader(const ProductArgs& args,
                    const HopperMaps& all_maps,
                    int32_t first,
                    const RowTile& tile)
      : maps(all_maps) {
    const DeviceMatrix& matrix = matrix_of(args, tile.expert);
    const bool is_shared = tile.expert == args.num_experts;
    weights = is_shared ? &maps.shared : &maps.weight;
    weight_row = (is_shared ? 0 : tile.expert * matrix.rows) + first;
    part_rows = args.out_columns;
    scales = expert_matrix(args, tile.expert).scales;
#pragma unroll
    for (int32_t i = 0; i < kScales; ++i) {
      const int32_t r = thread() + i * kLoaders;
      const int32_t column = first + r % Shape::kPartRows;
      scale_at[i] = -1;
      if (kMode != ProductMode::bf16 && r < Shape::kRows && column < args.out_columns) {
        const int32_t row = column + r / Shape::kPartRows * args.out_columns;
        scale_at[i] = matrix.scale_rows[row] * matrix.num_groups;
      }
    }
  }

  /// After the kernel in front: the tile's rows of x, `row_begin` rows of which are not in the map.
  __device__ void set_tokens(const ProductArgs& args, const RowTile& tile, int64_t row_begin) {
    is_gathered = args.tiles != nullptr;
    count = tile.count;
    x_rows[0] = tile.begin;
    if (is_gathered) {
#pragma unroll
      for (int32_t i = 0; i < kLaneTokens; ++i) {
        const int32_t m = min(static_cast<int32_t>(threadIdx.x % 32) + i * 32, count - 1);
        const int64_t row = x_row_of(args, entry_of(args, tile.begin + m));
        x_rows[i] = static_cast<int32_t>(row - row_begin);
      }
    }
    x_scales = nullptr;
    if (kMode == ProductMode::fp8 && thread() < count) {
      const int64_t row = x_row_of(args, entry_of(args, tile.begin + thread()));
      x_scales = args.x.scales + row * args.x.scale_row;
    }
    x_scale_group = static_cast<int32_t>(args.x.scale_group);
  }

  static __device__ int32_t thread() {
    return static_cast<int32_t>(threadIdx.x % kLoaders);
  }

  /// What no kernel writes.
  __device__ void load_constant(uint32_t stage, uint32_t full, int32_t block) const {
    if (thread() == 0) {
      expect_bytes(full, Shape::kWeightBytes);
#pragma unroll
      for (int32_t i = 0; i < kParts * Shape::kWeightBoxes; ++i) {
        const int32_t part = i / Shape::kWeightBoxes;
        const int32_t box = i % Shape::kWeightBoxes;
        copy_box(
            stage + Shape::kXBytes + box * (Shape::kRows * 128) + part * Shape::kPartRows * 128,
            weights,
            block * Shape::kWeightPitch + box * 128,
            weight_row + part * part_rows,
            full);
      }
    }
#pragma unroll
    for (int32_t i = 0; i < kScales; ++i) {
      if (scale_at[i] >= 0) {
        copy_scale(scale_place(stage) + i * kLoaders * 4, scales + scale_at[i] + block);
      }
    }
  }

  __device__ void load_rest(uint32_t stage, uint32_t full, int32_t block) const {
    constexpr int32_t kHalfBytes = Shape::kNumTokens * 128;
    if (kMode == ProductMode::fp8 && x_scales != nullptr) {
      copy_scale(scale_place(stage) + Shape::kRows * 4, x_scales + int64_t{block} * x_scale_group);
    }
    if (thread() == 0) {
      expect_bytes(full, is_gathered ? count * kBlockBytes : Shape::kXBytes);
      if (!is_gathered) {
        copy_box(stage, &maps.x, block * kBlockBytes, x_rows[0], full);
        copy_box(stage + kHalfBytes, &maps.x, block * kBlockBytes + 128, x_rows[0], full);
      }
    }
    if (is_gathered && thread() < 32) {
#pragma unroll
      for (int32_t i = 0; i < kLaneTokens; ++i) {
        const int32_t m = thread() + i * 32;
        if (m < count) {
          const uint32_t to = stage + m * 128;
          copy_box(to, &maps.x, block * kBlockBytes, x_rows[i], full);
          copy_box(to + kHalfBytes, &maps.x, block * kBlockBytes + 128, x_rows[i], full);
        }
      }
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
        loader.load_constant(ring.stage(stage), ring.full + stage * 8, block);
      }
      loader.load_rest(ring.stage(stage), ring.full + stage * 8, block);
      ++stage;
      if (stage == Shape::kStages) {
        stage = 0;
        phase ^= 1U;
      }
    }
    commit_copies();
    if (block >= kAhead) {
      wait_copies<kAhead>();
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
  const int32_t row = lane_row();
  const int32_t t = threadIdx.x % 4;
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
      uint32_t a[kSteps][4];
      load_fragments<Shape>(weights, at, a);
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
  multiply_blocks<Shape, kTokens>(ring, stages, num_blocks, total);
  store_tile<Shape, kTokens>(args, total, first, count, entries, reinterpret_cast<float*>(stages));
}

/// What the loading threads do. They also make the barriers and the lists of the tile's rows.
template <class Shape>
__device__ void load_tile(const ProductArgs& args,
                          const HopperMaps& maps,
                          int64_t row_begin,
                          const Ring<Shape>& ring,
                          int32_t num_blocks,
                          int32_t first,
                          int32_t* entries) {
  const int32_t thread = Loader<Shape>::thread();
  if (thread == 0) {
    for (int32_t s = 0; s < Shape::kStages; ++s) {
      init_barrier(ring.full + s * 8, kLoaders / 32);
      init_barrier(ring.empty + s * 8, Shape::kNumGroups * 4);
    }
    fence_barrier_init();
  }
  if (args.tiles != nullptr) {
    wait_for_previous();
  }
  const RowTile tile = row_tile(args, static_cast<int32_t>(blockIdx.y), Shape::kNumTokens);
  if (tile.count <= 0) {
    return;
  }
  Loader<Shape> loader(args, maps, first, tile);
  int32_t num_begun = 0;
  if (args.tiles == nullptr) {
    num_begun = min(Shape::kStages, num_blocks);
    for (int32_t block = 0; block < num_begun; ++block) {
      loader.load_constant(ring.stage(block), ring.full + block * 8, block);
    }
    wait_for_previous();
  }
  if (thread < tile.count) {
    entries[thread] = entry_of(args, tile.begin + thread);
  }
  loader.set_tokens(args, tile, row_begin);
  meet(kAllMeet, Shape::kThreads);
  load_blocks(loader, ring, num_blocks, num_begun);
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
