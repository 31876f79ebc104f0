// Float32 rows to an op's activation format, for products whose quantisation groups span blocks.
#include "launch.cuh"
#include "product_device.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kWarps = 8;

/// One warp a row and group of 128 columns; rows by tile, as the product listed them.
__global__ void __launch_bounds__(kWarps * 32)
    quantise_kernel(const __grid_constant__ ProductArgs args,
                    const float* values,
                    int32_t tile_rows) {
  let_next_start();
  wait_for_previous();
  const RowTile tile = row_tile(args, static_cast<int32_t>(blockIdx.y), tile_rows);
  const int32_t column = static_cast<int32_t>(blockIdx.x) * static_cast<int32_t>(kQuantGroup);
  for (int32_t i = threadIdx.x / 32; i < tile.count; i += kWarps) {
    const int32_t row = entry_of(args, tile.begin + i) - args.out_row_begin;
    float quad[4] = {};
    load_quad({reinterpret_cast<const std::byte*>(values), args.out_columns, false},
              row,
              column + threadIdx.x % 32 * 4,
              args.out_columns,
              quad);
    store_group_quads(args.out, row, column, args.out_columns, quad);
  }
}

}  // namespace

void launch_quantise(const ProductArgs& args,
                     const float* values,
                     const ProductGrid& grid,
                     cudaStream_t stream) {
  const dim3 blocks(static_cast<uint32_t>((args.out_columns + kQuantGroup - 1) / kQuantGroup),
                    static_cast<uint32_t>(grid.num_tiles));
  launch_early(quantise_kernel, blocks, dim3(kWarps * 32), 0, stream, args, values, grid.tile_rows);
}

}  // namespace hadal::cuda
