// Which kernel computes a product: a pure function of its shapes and formats.
#include "product.h"

#include "cuda_ops.h"

namespace hadal::cuda {

void CudaOps::run_product(const ProductArgs& args, bool is_pair, cudaStream_t stream) {
  if (args.num_rows == 0) {
    return;
  }
  const int32_t tiles = (args.num_rows + kPlainTileRows - 1) / kPlainTileRows;
  launch_plain_product(args, is_pair, {kPlainTileRows, tiles}, stream);
}

void CudaOps::run_expert_product(ProductArgs args,
                                 bool is_pair,
                                 const ChosenExperts& chosen,
                                 cudaStream_t stream) {
  const ExpertTiles tiles = list_experts(chosen.expert_ids,
                                         chosen.first_expert,
                                         args.num_experts,
                                         chosen.has_shared,
                                         chosen.token_begin,
                                         chosen.num_tokens,
                                         kPlainTileRows,
                                         workspace_,
                                         stream);
  args.tiles = tiles.tiles;
  args.entries = tiles.entries;
  launch_plain_product(args, is_pair, tiles.grid, stream);
}

}  // namespace hadal::cuda
