// A product of activation rows with one weight matrix, or with the matrices of chosen experts: the
// one shape behind linear, gate_up, lm_head and the two halves of the mixture of experts.
//
//   out[o(i)] = x[r(i)] * W_e(i)^T              or   silu(x * gate^T) * (x * up^T)
//
// Rows are cut into tiles of one expert. Canonical order of summation of an element, kept by every
// kernel: over k in blocks of 128, each summed from zero in the kernel's own fixed way, blocks
// added in ascending order in float32. Rows, columns and grids never enter.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "cuda_weight.h"
#include "device_views.h"
#include "workspace.h"

namespace hadal::cuda {

inline constexpr int32_t kBlockK = 128;  ///< columns of a block of the canonical order

/// Rows [begin, begin + count) of the list of entries, all of one expert.
struct RowTile {
  int32_t expert = 0;
  int32_t begin = 0;
  int32_t count = 0;
  int32_t unused = 0;
};

/// Which rows chose which expert, where kernels find that themselves: entry i is slot i % slots of
/// token i / slots.
struct ChosenRows {
  const int32_t* ids = nullptr;  ///< [tokens, top_k], global; null = not so
  int64_t id_stride = 0;
  int32_t top_k = 0;
  int32_t slots = 0;  ///< top_k, and one for the shared expert
  int32_t first_expert = 0;
  int32_t entry_begin = 0;  ///< number of entry 0 in x and out
  int32_t num_entries = 0;
};

struct ProductArgs {
  ConstActMatrix x;
  DeviceMatrix weight;  ///< of the experts 0..num_experts - 1
  DeviceMatrix shared;  ///< of expert num_experts, when there is one
  int32_t num_experts = 1;
  /// Tiles on the device, `expert` < 0 beyond the last; null = one expert, rows in order.
  const RowTile* tiles = nullptr;
  ChosenRows chosen;                 ///< instead of tiles: the skinny kernel alone
  const int32_t* entries = nullptr;  ///< with tiles: entry of each listed row
  const int32_t* gather = nullptr;   ///< without tiles: row of x for each row; null = the same
  int32_t num_rows = 0;              ///< without tiles
  int32_t x_divisor = 1;             ///< row of x = entry / x_divisor
  ActMatrix out;                     ///< row = entry - out_row_begin
  int32_t out_row_begin = 0;
  int32_t out_columns = 0;  ///< features of out: rows of the weight, or half of them for a pair
};

/// What a launch needs on the host. `tile_rows` bounds RowTile::count.
struct ProductGrid {
  int32_t tile_rows = 0;
  int32_t num_tiles = 0;  ///< an upper bound
};

/// How a product is computed; all kernels of a mode give the same bits.
enum class ProductMode : uint8_t {
  plain,  ///< float32 arithmetic, any formats and block offsets
  fp8,    ///< tensor cores: E4M3 weights, E4M3 activations with 1 x 128 scales
  bf16,   ///< tensor cores: BF16 both
  w8a16,  ///< tensor cores: E4M3 weights, BF16 activations
};

/// Follows from formats, alignment and block offsets alone, never from the number of rows.
ProductMode mode_of(const ProductArgs& args);

/// Any formats and offsets, float32 arithmetic. tile_rows = kPlainTileRows.
inline constexpr int32_t kPlainTileRows = 32;
void launch_plain_product(const ProductArgs& args,
                          bool is_pair,
                          const ProductGrid& grid,
                          cudaStream_t stream);

/// Few rows, weights straight from memory; modes but plain, tile_rows 8 or 16, out not e4m3. With
/// `chosen`, of at most kSearchedEntries entries, blocks find their tiles themselves.
inline constexpr int32_t kSearchedEntries = 160;
void launch_skinny_product(const ProductArgs& args,
                           ProductMode mode,
                           bool is_pair,
                           const ProductGrid& grid,
                           cudaStream_t stream);
/// Whether its block sums of this many columns fit shared memory.
bool fits_skinny(int32_t columns, int32_t tile_rows, int32_t max_shared_bytes);

/// Many rows, tiles in shared memory; modes but plain, tile_rows 64, or 128 for no pair.
void launch_wide_product(const ProductArgs& args,
                         ProductMode mode,
                         bool is_pair,
                         const ProductGrid& grid,
                         cudaStream_t stream);

/// What a block of threads of the sm_90a kernel makes: rows of the weight (both of a pair) x
/// tokens. tokens = 0: none.
struct HopperTile {
  int32_t rows = 0;
  int32_t tokens = 0;
};

/// The tile that is expected to be fastest for `num_rows` rows of one weight; none for what the
/// sm_90a kernel leaves to others: few rows, and BF16 pairs.
HopperTile choose_hopper_tile(const ProductArgs& args,
                              ProductMode mode,
                              bool is_pair,
                              int32_t num_multiprocessors);

/// Rows of x in the order in which the sm_90a kernel multiplies: BF16 [rows][blocks * kBlockK], the
/// first of which is row `row_begin` of x.
struct OrderedX {
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t row_begin = 0;
};

/// Rows 0..num_rows - 1 of x, or those that `gather` names, to `out`.
void launch_order_x(const ProductArgs& args,
                    ProductMode mode,
                    int32_t num_rows,
                    std::byte* out,
                    cudaStream_t stream);

/// Many rows on sm_90a, weights beside tokens in shared memory; modes but plain, without gather. x
/// is taken from `x` alone but for its scales. tile_rows = tile.tokens.
void launch_hopper_product(const ProductArgs& args,
                           ProductMode mode,
                           bool is_pair,
                           const HopperTile& tile,
                           const OrderedX& x,
                           const ProductGrid& grid,
                           cudaStream_t stream);

/// args.out of the rows of all tiles from float32 `values` [rows, out_columns], same row numbers.
void launch_quantise(const ProductArgs& args,
                     const float* values,
                     const ProductGrid& grid,
                     cudaStream_t stream);

/// Which rows chose which expert, as tiles.
struct ExpertTiles {
  const RowTile* tiles = nullptr;
  const int32_t* entries = nullptr;
  ProductGrid grid;
};

/// Lists the entries token * slots + slot of tokens [token_begin, token_begin + num_tokens) by
/// local expert, ascending within one; the shared expert comes last, with every token.
ExpertTiles list_experts(const ConstTensorView& expert_ids,
                         int32_t first_expert,
                         int32_t num_experts,
                         bool has_shared,
                         int32_t token_begin,
                         int32_t num_tokens,
                         int32_t tile_rows,
                         Workspace& workspace,
                         cudaStream_t stream);

}  // namespace hadal::cuda
