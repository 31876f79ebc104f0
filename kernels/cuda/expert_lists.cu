// Tokens by expert, as tiles of rows: one block an expert, so the order never depends on timing.
#include <algorithm>

#include "cuda_check.h"
#include "device_math.cuh"
#include "product.h"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kWarps = kThreads / 32;

struct ListArgs {
  const int32_t* expert_ids;
  int64_t id_stride;
  int32_t top_k;
  int32_t slots;
  int32_t first_expert;
  int32_t num_experts;
  int32_t token_begin;
  int32_t num_tokens;
  int32_t tile_rows;
  int32_t max_tiles;
  int32_t* entries;
  RowTile* tiles;
};

/// Local expert of the i-th entry; num_experts for the shared one, -1 for other ranks'.
__device__ int32_t local_expert(const ListArgs& args, int32_t i) {
  const int32_t slot = i % args.slots;
  if (slot == args.top_k) {
    return args.num_experts;
  }
  const int64_t token = args.token_begin + i / args.slots;
  const int32_t local = args.expert_ids[token * args.id_stride + slot] - args.first_expert;
  return local >= 0 && local < args.num_experts ? local : -1;
}

/// Sum of counts[begin, end) and of their tiles.
__device__ void sum_before(const int32_t* counts,
                           int32_t end,
                           int32_t tile_rows,
                           int32_t* rows,
                           int32_t* tiles,
                           int32_t* scratch) {
  int32_t my_rows = 0;
  int32_t my_tiles = 0;
  for (int32_t e = threadIdx.x; e < end; e += kThreads) {
    my_rows += counts[e];
    my_tiles += (counts[e] + tile_rows - 1) / tile_rows;
  }
  if (threadIdx.x == 0) {
    scratch[0] = 0;
    scratch[1] = 0;
  }
  __syncthreads();
  atomicAdd(&scratch[0], my_rows);
  atomicAdd(&scratch[1], my_tiles);
  __syncthreads();
  *rows = scratch[0];
  *tiles = scratch[1];
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) list_kernel(ListArgs args) {
  extern __shared__ int32_t counts[];  // [num_experts + 1], then scratch
  __shared__ int32_t scratch[2];
  __shared__ int32_t warp_counts[kWarps];
  const int32_t expert = static_cast<int32_t>(blockIdx.x);
  const int32_t num_entries = args.num_tokens * args.slots;
  for (int32_t e = threadIdx.x; e <= args.num_experts; e += kThreads) {
    counts[e] = 0;
  }
  __syncthreads();
  for (int32_t i = threadIdx.x; i < num_entries; i += kThreads) {
    const int32_t local = local_expert(args, i);
    if (local >= 0) {
      atomicAdd(&counts[local], 1);
    }
  }
  __syncthreads();
  int32_t begin = 0;
  int32_t first_tile = 0;
  sum_before(counts, expert, args.tile_rows, &begin, &first_tile, scratch);
  const int32_t count = counts[expert];
  const int32_t num_tiles = (count + args.tile_rows - 1) / args.tile_rows;
  for (int32_t t = threadIdx.x; t < num_tiles; t += kThreads) {
    const int32_t at = t * args.tile_rows;
    args.tiles[first_tile + t] = RowTile{expert, begin + at, min(args.tile_rows, count - at), 0};
  }
  if (expert == static_cast<int32_t>(gridDim.x) - 1) {
    for (int32_t t = first_tile + num_tiles + threadIdx.x; t < args.max_tiles; t += kThreads) {
      args.tiles[t] = RowTile{-1, 0, 0, 0};
    }
  }
  const int32_t lane = threadIdx.x % 32;
  const int32_t warp = threadIdx.x / 32;
  int32_t next = begin;
  for (int32_t base = 0; base < num_entries && next < begin + count; base += kThreads) {
    const int32_t i = base + static_cast<int32_t>(threadIdx.x);
    const bool is_mine = i < num_entries && local_expert(args, i) == expert;
    const uint32_t votes = __ballot_sync(kFullMask, is_mine);
    if (lane == 0) {
      warp_counts[warp] = __popc(votes);
    }
    __syncthreads();
    int32_t before = 0;
    int32_t total = 0;
    for (int32_t w = 0; w < kWarps; ++w) {
      before += w < warp ? warp_counts[w] : 0;
      total += warp_counts[w];
    }
    if (is_mine) {
      const int32_t rank = __popc(votes & ((1U << lane) - 1U));
      args.entries[next + before + rank] = args.token_begin * args.slots + i;
    }
    next += total;
    __syncthreads();
  }
}

}  // namespace

ExpertTiles list_experts(const ConstTensorView& expert_ids,
                         int32_t first_expert,
                         int32_t num_experts,
                         bool has_shared,
                         int32_t token_begin,
                         int32_t num_tokens,
                         int32_t tile_rows,
                         Workspace& workspace,
                         cudaStream_t stream) {
  ListArgs args{};
  args.expert_ids = expert_ids.as<int32_t>();
  args.id_stride = expert_ids.strides[0];
  args.top_k = static_cast<int32_t>(expert_ids.shape[1]);
  args.slots = args.top_k + (has_shared ? 1 : 0);
  args.first_expert = first_expert;
  args.num_experts = num_experts;
  args.token_begin = token_begin;
  args.num_tokens = num_tokens;
  args.tile_rows = tile_rows;
  const int32_t num_entries = num_tokens * args.slots;
  args.max_tiles = num_entries / tile_rows + std::min(num_experts + 1, num_entries);
  int32_t* entries = workspace.take<int32_t>(num_entries);
  RowTile* tiles = workspace.take<RowTile>(args.max_tiles);
  args.entries = entries;
  args.tiles = tiles;
  const auto shared_bytes = static_cast<uint32_t>(num_experts + 1) * sizeof(int32_t);
  list_kernel<<<static_cast<uint32_t>(num_experts + 1), kThreads, shared_bytes, stream>>>(args);
  ExpertTiles result;
  result.tiles = tiles;
  result.entries = entries;
  result.grid = {tile_rows, args.max_tiles};
  return result;
}

}  // namespace hadal::cuda
