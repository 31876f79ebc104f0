// What all product kernels share: which rows a tile has, where its weights and scales are, and the
// way out.
#pragma once

#include "device_math.cuh"
#include "product.h"

namespace hadal::cuda {

/// The tile of this block; count 0 when there is nothing to do.
__device__ inline RowTile row_tile(const ProductArgs& args, int32_t index, int32_t tile_rows) {
  if (args.tiles != nullptr) {
    RowTile tile = args.tiles[index];
    tile.count = tile.expert < 0 ? 0 : tile.count;
    return tile;
  }
  const int32_t begin = index * tile_rows;
  return RowTile{0, begin, min(tile_rows, args.num_rows - begin), 0};
}

/// Entry of row i of the list.
__device__ inline int32_t entry_of(const ProductArgs& args, int32_t i) {
  return args.entries != nullptr ? args.entries[i] : i;
}

__device__ inline int32_t x_row_of(const ProductArgs& args, int32_t entry) {
  return args.gather != nullptr ? args.gather[entry] : entry / args.x_divisor;
}

/// One expert's matrix.
struct ExpertMatrix {
  const std::byte* data;
  const float* scales;
};

__device__ inline const DeviceMatrix& matrix_of(const ProductArgs& args, int32_t expert) {
  return expert == args.num_experts ? args.shared : args.weight;
}

__device__ inline ExpertMatrix expert_matrix(const ProductArgs& args, int32_t expert) {
  const DeviceMatrix& m = matrix_of(args, expert);
  const int64_t local = expert == args.num_experts ? 0 : expert;
  return {m.data + local * m.expert_bytes, m.scales + local * m.expert_scales};
}

/// Row of the scales that row `row` of the matrix has.
__device__ inline int32_t scale_row_of(const DeviceMatrix& m, int32_t row) {
  return m.has_whole_blocks ? row / kBlockK : m.scale_rows[row];
}

/// silu(gate) * up in float32.
__device__ inline float swiglu(float gate, float up) {
  return __fdiv_rn(gate, 1.0F + expf(-gate)) * up;
}

}  // namespace hadal::cuda
