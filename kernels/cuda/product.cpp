// Which kernel computes a product: a pure function of its shapes, formats and the device. Kernels
// of one mode give the same bits, so the choice is of speed alone.
#include "product.h"

#include <algorithm>

#include "cuda_ops.h"

namespace hadal::cuda {

namespace {

constexpr int32_t kSkinnyRows = 16;      ///< most rows of a tile of the skinny kernel
constexpr int32_t kExpertWideRows = 24;  ///< mean rows of an expert from which wide tiles pay

bool has_whole_chunks(const ConstActMatrix& x, int32_t columns) {
  const int64_t size = x.format == ActFormat::e4m3 ? 1 : 2;
  return columns * size % 16 == 0 && x.stride * size % 16 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

int32_t ceil_div(int32_t a, int32_t b) {
  return (a + b - 1) / b;
}

/// Rows of a tile for `rows` rows of one weight.
int32_t dense_tile_rows(const ProductArgs& args, bool is_pair, const DeviceInfo& device) {
  if (args.num_rows <= kSkinnyRows) {
    return args.num_rows <= 8 ? 8 : kSkinnyRows;
  }
  const int32_t wide_rows = is_pair ? 64 : 128;
  const int32_t blocks = ceil_div(args.out_columns, 128) * ceil_div(args.num_rows, wide_rows);
  // Too few wide tiles leave multiprocessors idle, and the skinny kernel's weights come from L2.
  const bool is_wide = args.num_rows > 256 || blocks * 4 >= device.num_multiprocessors * 3;
  return is_wide ? wide_rows : kSkinnyRows;
}

int32_t expert_tile_rows(int32_t num_entries, int32_t num_experts) {
  const int32_t mean = num_entries / std::max(num_experts, 1);
  if (mean >= kExpertWideRows) {
    return 64;
  }
  return mean <= 4 ? 8 : kSkinnyRows;
}

}  // namespace

ProductMode mode_of(const ProductArgs& args) {
  const DType weight = args.weight.dtype;
  const ActFormat x = args.x.format;
  const bool has_shared = args.shared.data != nullptr;
  const bool is_aligned =
      args.weight.column_offset == 0 && (!has_shared || args.shared.column_offset == 0);
  if (!is_aligned || x == ActFormat::f32 || !has_whole_chunks(args.x, args.weight.columns)) {
    return ProductMode::plain;
  }
  if (weight == DType::f8_e4m3) {
    return x == ActFormat::e4m3 ? ProductMode::fp8 : ProductMode::w8a16;
  }
  return weight == DType::bf16 && x == ActFormat::bf16 ? ProductMode::bf16 : ProductMode::plain;
}

/// Launches one product whose tiles are known.
void CudaOps::launch_product(ProductArgs args,
                             ProductMode mode,
                             bool is_pair,
                             const ProductGrid& grid,
                             int64_t num_out_rows,
                             cudaStream_t stream) {
  if (grid.tile_rows > kSkinnyRows) {
    launch_wide_product(args, mode, is_pair, grid, stream);
    return;
  }
  // A skinny block has less than a quantisation group: float32 first, then the format.
  const ActMatrix out = args.out;
  const bool is_quantised = out.format == ActFormat::e4m3;
  if (is_quantised) {
    args.out = {};
    args.out.data =
        reinterpret_cast<std::byte*>(workspace_.take<float>(num_out_rows * args.out_columns));
    args.out.stride = args.out_columns;
  }
  launch_skinny_product(args, mode, is_pair, grid, stream);
  if (is_quantised) {
    const auto* values = reinterpret_cast<const float*>(args.out.data);
    args.out = out;
    launch_quantise(args, values, grid, stream);
  }
}

void CudaOps::run_product(const ProductArgs& args, bool is_pair, cudaStream_t stream) {
  if (args.num_rows == 0) {
    return;
  }
  const ProductMode mode = mode_of(args);
  if (mode == ProductMode::plain) {
    launch_plain_product(
        args, is_pair, {kPlainTileRows, ceil_div(args.num_rows, kPlainTileRows)}, stream);
    return;
  }
  int32_t tile_rows = dense_tile_rows(args, is_pair, device_);
  if (!fits_skinny(args.weight.columns, tile_rows, device_.max_shared_bytes)) {
    tile_rows = is_pair ? 64 : 128;
  }
  launch_product(
      args, mode, is_pair, {tile_rows, ceil_div(args.num_rows, tile_rows)}, args.num_rows, stream);
}

void CudaOps::run_expert_product(ProductArgs args,
                                 bool is_pair,
                                 const ChosenExperts& chosen,
                                 cudaStream_t stream) {
  const ProductMode mode = mode_of(args);
  const int32_t slots =
      static_cast<int32_t>(chosen.expert_ids.shape[1]) + (chosen.has_shared ? 1 : 0);
  const int32_t num_entries = chosen.num_tokens * slots;
  int32_t tile_rows = expert_tile_rows(num_entries, args.num_experts);
  if (mode == ProductMode::plain) {
    tile_rows = kPlainTileRows;
  } else if (!fits_skinny(args.weight.columns, tile_rows, device_.max_shared_bytes)) {
    tile_rows = 64;
  }
  const ExpertTiles tiles = list_experts(chosen.expert_ids,
                                         chosen.first_expert,
                                         args.num_experts,
                                         chosen.has_shared,
                                         chosen.token_begin,
                                         chosen.num_tokens,
                                         tile_rows,
                                         workspace_,
                                         stream);
  args.tiles = tiles.tiles;
  args.entries = tiles.entries;
  if (mode == ProductMode::plain) {
    launch_plain_product(args, is_pair, tiles.grid, stream);
  } else {
    launch_product(args, mode, is_pair, tiles.grid, num_entries, stream);
  }
}

}  // namespace hadal::cuda
