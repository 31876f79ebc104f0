// Stages of the sm_90a product (product_hopper.cu): what lies in one and how it is filled.
//
// A stage holds one k block: tokens [2][tokens][128 bytes] and weights [boxes][rows][128 bytes],
// both with the swizzle of swizzled_operand, then scales of rows and tokens. The copy engine brings
// tokens and weights, cp.async the scales, which are too scattered for it.
#pragma once

#include <cuda.h>

#include "hopper.cuh"
#include "launch.cuh"
#include "product_mma.cuh"

namespace hadal::cuda {

inline constexpr int32_t kLoaders = 128;       ///< threads that fill stages
inline constexpr int32_t kResultStride = 132;  ///< floats of a token in 128 columns of the result
inline constexpr int32_t kBlockBytes = kBlockK * 2;  ///< of a token in a k block
inline constexpr int32_t kStagesBytes = 200 << 10;   ///< of shared memory for stages, at most

inline constexpr int32_t kMultipliersMeet = 1;  ///< names of barriers
inline constexpr int32_t kAllMeet = 2;
inline constexpr int32_t kTurn = 3;  ///< and 4: of the first and second warpgroup to multiply

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

__device__ inline void copy_scale(uint32_t to, const float* from) {
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

/// Barriers of the stages: `full` counts loading threads, `empty` multiplying warps.
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
  int32_t stage = 0;
  uint32_t phase = 1;  // the first round waits for nothing
  for (int32_t block = 0; block < num_blocks; ++block) {
    const uint32_t full = ring.full + stage * 8;
    wait_phase(ring.empty + stage * 8, phase);
    if (block >= num_begun) {
      loader.load_constant(ring.stage(stage), full, block);
    }
    loader.load_rest(ring.stage(stage), full, block);
    arrive_after_copies(full);
    ++stage;
    if (stage == Shape::kStages) {
      stage = 0;
      phase ^= 1U;
    }
  }
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
      init_barrier(ring.full + s * 8, kLoaders);
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

}  // namespace hadal::cuda
