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

/// Bytes of a row that launch_order_x writes.
int64_t ordered_pitch(const ProductArgs& args) {
  return int64_t{ceil_div(args.weight.columns, kBlockK)} * kBlockK * 2;
}

/// Tiles of the sm_90a kernel; those of BF16 weights are no pairs.
struct HopperChoice {
  HopperTile tile;
  bool is_bf16;
  bool is_pair;
};

constexpr HopperChoice kHopperTiles[] = {
    {{256, 128}, false, false},
    {{128, 64}, false, false},
    {{128, 32}, false, false},
    {{64, 32}, false, false},
    {{256, 128}, false, true},
    {{256, 64}, false, true},
    {{256, 32}, false, true},
    {{128, 128}, true, false},
    {{64, 128}, true, false},
    {{64, 64}, true, false},
    {{64, 32}, true, false},
};

/// Clocks that all blocks of threads take, from rates that L2, shared memory and tensor cores of an
/// H200 reach.
int64_t hopper_clocks(const HopperChoice& choice,
                      int32_t weight_rows,
                      int32_t num_rows,
                      int32_t num_blocks,
                      int32_t num_multiprocessors) {
  constexpr int32_t kBytesOfOne = 44;    // a clock, into one multiprocessor
  constexpr int32_t kBytesOfAll = 4400;  // into all
  constexpr int32_t kLeastBlock = 450;   // clocks from a stage's barrier to the next
  constexpr int32_t kBegin = 2500;
  const auto [rows, tokens] = choice.tile;
  const int32_t count = ceil_div(weight_rows, rows) * ceil_div(num_rows, tokens);
  const int32_t active = std::min(count, num_multiprocessors);
  const int32_t bytes = kBlockK * (rows * (choice.is_bf16 ? 2 : 1) + tokens * 2);
  const int32_t loading = bytes / std::min(kBytesOfOne, kBytesOfAll / active);
  const int32_t multiplying = rows * tokens / 16;
  const int64_t one =
      int64_t{num_blocks} * std::max({loading, multiplying, kLeastBlock}) + multiplying + kBegin;
  return count <= 4 * num_multiprocessors ? ceil_div(count, num_multiprocessors) * one
                                          : one * count / num_multiprocessors;
}

}  // namespace

HopperTile choose_hopper_tile(const ProductArgs& args,
                              ProductMode mode,
                              bool is_pair,
                              int32_t num_multiprocessors) {
  HopperTile best;
  if (mode == ProductMode::plain || args.num_rows <= kSkinnyRows) {
    return best;
  }
  // Few strips of few rows: skinny blocks share their k blocks and are more.
  if ((args.out_columns < 4096 && args.num_rows <= 32) ||
      (args.out_columns < 1024 && args.num_rows <= 256)) {
    return best;
  }
  int64_t least = 0;
  for (const HopperChoice& choice : kHopperTiles) {
    if (choice.is_bf16 != (mode == ProductMode::bf16) || choice.is_pair != is_pair) {
      continue;
    }
    const int64_t clocks = hopper_clocks(choice,
                                         args.out_columns * (is_pair ? 2 : 1),
                                         args.num_rows,
                                         ceil_div(args.weight.columns, kBlockK),
                                         num_multiprocessors);
    if (best.tokens == 0 || clocks < least) {
      best = choice.tile;
      least = clocks;
    }
  }
  return best;
}

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
  if (run_hopper_product(args, mode, is_pair, stream)) {
    return;
  }
  int32_t tile_rows = dense_tile_rows(args, is_pair, device_);
  if (!fits_skinny(args.weight.columns, tile_rows, device_.max_shared_bytes)) {
    tile_rows = is_pair ? 64 : 128;
  }
  launch_product(
      args, mode, is_pair, {tile_rows, ceil_div(args.num_rows, tile_rows)}, args.num_rows, stream);
}

bool CudaOps::run_hopper_product(ProductArgs args,
                                 ProductMode mode,
                                 bool is_pair,
                                 cudaStream_t stream) {
  if (device_.kernel_family != KernelFamily::sm90a ||
      (mode == ProductMode::fp8 && args.gather != nullptr)) {
    return false;
  }
  const HopperTile tile = choose_hopper_tile(args, mode, is_pair, device_.num_multiprocessors);
  if (tile.tokens == 0) {
    return false;
  }
  const int64_t pitch = ordered_pitch(args);
  const int64_t fitting = workspace_.free_bytes() / pitch / tile.tokens * tile.tokens;
  const auto chunk = static_cast<int32_t>(std::min<int64_t>(args.num_rows, fitting));
  if (chunk == 0) {
    return false;
  }
  auto* ordered = workspace_.take<std::byte>(chunk * pitch);
  const ConstActMatrix x = args.x;
  const int32_t* gather = args.gather;
  const int32_t num_rows = args.num_rows;
  const int64_t x_size = x.format == ActFormat::e4m3 ? 1 : 2;
  for (int32_t begin = 0; begin < num_rows; begin += chunk) {
    const int32_t count = std::min(chunk, num_rows - begin);
    args.num_rows = count;
    args.out_row_begin = -begin;
    args.gather = gather != nullptr ? gather + begin : nullptr;
    if (gather == nullptr) {
      args.x.data = x.data + begin * x.stride * x_size;
      args.x.scales = x.scales != nullptr ? x.scales + begin * x.scale_row : nullptr;
    }
    launch_order_x(args, mode, count, ordered, stream);
    args.gather = nullptr;
    launch_hopper_product(args,
                          mode,
                          is_pair,
                          tile,
                          {ordered, count, 0},
                          {tile.tokens, ceil_div(count, tile.tokens)},
                          stream);
  }
  return true;
}

bool CudaOps::run_hopper_experts(ProductArgs args,
                                 ProductMode mode,
                                 bool is_pair,
                                 const ChosenExperts& chosen,
                                 cudaStream_t stream) {
  const int32_t slots =
      static_cast<int32_t>(chosen.expert_ids.shape[1]) + (chosen.has_shared ? 1 : 0);
  const int32_t mean = chosen.num_tokens * slots / std::max(args.num_experts, 1);
  const bool has_kernel = is_pair && args.x_divisor == slots &&
                          (mode == ProductMode::w8a16 || mode == ProductMode::fp8);
  if (device_.kernel_family != KernelFamily::sm90a || !has_kernel || mean < kExpertWideRows) {
    return false;
  }
  const HopperTile tile{256, mean < 2 * kExpertWideRows ? 32 : mean < 96 ? 64 : 128};
  const int64_t pitch = ordered_pitch(args);
  const int64_t list_bytes = int64_t{4} * slots + static_cast<int64_t>(sizeof(RowTile)) * slots;
  const int64_t most_tiles = static_cast<int64_t>(sizeof(RowTile)) * (args.num_experts + 1);
  const int64_t fitting = (workspace_.free_bytes() - most_tiles - 1024) / (pitch + list_bytes);
  if (fitting < std::min(chosen.num_tokens, 1024)) {
    return false;
  }
  const int64_t mark = workspace_.mark();
  for (int32_t done = 0; done < chosen.num_tokens;) {
    const auto count = static_cast<int32_t>(std::min<int64_t>(chosen.num_tokens - done, fitting));
    const int32_t token_begin = chosen.token_begin + done;
    workspace_.reset_to(mark);
    auto* ordered = workspace_.take<std::byte>(count * pitch);
    ProductArgs part = args;
    part.x.data = args.x.data + token_begin * args.x.stride * (mode == ProductMode::fp8 ? 1 : 2);
    launch_order_x(part, mode, count, ordered, stream);
    const ExpertTiles tiles = list_experts(chosen.expert_ids,
                                           chosen.first_expert,
                                           args.num_experts,
                                           chosen.has_shared,
                                           token_begin,
                                           count,
                                           tile.tokens,
                                           workspace_,
                                           stream);
    args.tiles = tiles.tiles;
    args.entries = tiles.entries;
    launch_hopper_product(
        args, mode, is_pair, tile, {ordered, count, token_begin}, tiles.grid, stream);
    done += count;
  }
  return true;
}

void CudaOps::run_expert_product(ProductArgs args,
                                 bool is_pair,
                                 const ChosenExperts& chosen,
                                 cudaStream_t stream) {
  const ProductMode mode = mode_of(args);
  if (run_hopper_experts(args, mode, is_pair, chosen, stream)) {
    return;
  }
  const int32_t slots =
      static_cast<int32_t>(chosen.expert_ids.shape[1]) + (chosen.has_shared ? 1 : 0);
  const int32_t num_entries = chosen.num_tokens * slots;
  int32_t tile_rows = expert_tile_rows(num_entries, args.num_experts);
  if (mode == ProductMode::plain) {
    tile_rows = kPlainTileRows;
  } else if (!fits_skinny(args.weight.columns, tile_rows, device_.max_shared_bytes)) {
    tile_rows = 64;
  }
  if (mode != ProductMode::plain && tile_rows <= kSkinnyRows && num_entries <= kSearchedEntries &&
      args.out.format != ActFormat::e4m3) {
    args.chosen = {
        chosen.expert_ids.as<int32_t>() + chosen.token_begin * chosen.expert_ids.strides[0],
        chosen.expert_ids.strides[0],
        slots - (chosen.has_shared ? 1 : 0),
        slots,
        chosen.first_expert,
        chosen.token_begin * slots,
        num_entries};
    launch_product(args, mode, is_pair, {tile_rows, num_entries}, num_entries, stream);
    return;
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
