// Tokens by expert, as tiles of rows, in an order that never depends on timing. Short lists: one
// kernel, a block an expert. Long ones are cut into chunks: one kernel counts each chunk's experts,
// a second puts every entry where the counts of the chunks before its own say.
#include <algorithm>

#include "device_math.cuh"
#include "launch.cuh"
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
  let_next_start();
  wait_for_previous();
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

constexpr int32_t kChunk = 512;  ///< entries of a block of threads, one a thread
constexpr int32_t kChunkWarps = kChunk / 32;
constexpr int32_t kLongEntries = 4096;  ///< from which chunks pay

/// counts[chunk][list] of every chunk.
__global__ void __launch_bounds__(kChunk) count_kernel(ListArgs args, int32_t* counts) {
  extern __shared__ int32_t mine[];  // [num_experts + 1]
  let_next_start();
  wait_for_previous();
  const int32_t num_lists = args.num_experts + 1;
  for (int32_t e = threadIdx.x; e < num_lists; e += kChunk) {
    mine[e] = 0;
  }
  __syncthreads();
  const auto i = static_cast<int32_t>(blockIdx.x * kChunk + threadIdx.x);
  const int32_t local = i < args.num_tokens * args.slots ? local_expert(args, i) : -1;
  if (local >= 0) {
    atomicAdd(&mine[local], 1);
  }
  __syncthreads();
  for (int32_t e = threadIdx.x; e < num_lists; e += kChunk) {
    counts[static_cast<int64_t>(blockIdx.x) * num_lists + e] = mine[e];
  }
}

/// Exclusive sum over the threads of a block, and the sum of all.
__device__ int32_t scan_before(int32_t mine, int32_t* warp_totals, int32_t* all) {
  const int32_t lane = threadIdx.x % 32;
  const int32_t warp = threadIdx.x / 32;
  int32_t sum = mine;
#pragma unroll
  for (int32_t offset = 1; offset < 32; offset *= 2) {
    const int32_t other = __shfl_up_sync(kFullMask, sum, offset);
    sum += lane >= offset ? other : 0;
  }
  __syncthreads();  // the totals of an earlier scan have been read
  if (lane == 31) {
    warp_totals[warp] = sum;
  }
  __syncthreads();
  int32_t before = sum - mine;
  *all = 0;
#pragma unroll
  for (int32_t w = 0; w < kChunkWarps; ++w) {
    before += w < warp ? warp_totals[w] : 0;
    *all += warp_totals[w];
  }
  return before;
}

/// Places of a chunk's entries; the tiles of list e are written by block e % gridDim.x.
__global__ void __launch_bounds__(kChunk) place_kernel(ListArgs args, const int32_t* counts) {
  extern __shared__ int32_t next[];  // [num_experts + 1]: the next place of each list
  __shared__ int32_t warp_totals[kChunkWarps];
  let_next_start();
  wait_for_previous();
  const int32_t num_lists = args.num_experts + 1;
  const auto block = static_cast<int32_t>(blockIdx.x);
  const auto num_chunks = static_cast<int32_t>(gridDim.x);
  int32_t first_row = 0;
  int32_t first_tile = 0;
  for (int32_t base = 0; base < num_lists; base += kChunk) {
    const int32_t e = base + static_cast<int32_t>(threadIdx.x);
    int32_t before = 0;
    int32_t count = 0;
    if (e < num_lists) {
#pragma unroll 8
      for (int32_t c = 0; c < num_chunks; ++c) {
        const int32_t some = counts[static_cast<int64_t>(c) * num_lists + e];
        before += c < block ? some : 0;
        count += some;
      }
    }
    const int32_t num_tiles = (count + args.tile_rows - 1) / args.tile_rows;
    int32_t all_rows = 0;
    int32_t all_tiles = 0;
    const int32_t begin = first_row + scan_before(count, warp_totals, &all_rows);
    const int32_t tile = first_tile + scan_before(num_tiles, warp_totals, &all_tiles);
    if (e < num_lists) {
      next[e] = begin + before;
      for (int32_t t = 0; t < num_tiles && e % num_chunks == block; ++t) {
        const int32_t at = t * args.tile_rows;
        args.tiles[tile + t] = RowTile{e, begin + at, min(args.tile_rows, count - at), 0};
      }
    }
    first_row += all_rows;
    first_tile += all_tiles;
  }
  for (int32_t t = first_tile + block * kChunk + static_cast<int32_t>(threadIdx.x);
       t < args.max_tiles;
       t += num_chunks * kChunk) {
    args.tiles[t] = RowTile{-1, 0, 0, 0};
  }
  const int32_t i = block * kChunk + static_cast<int32_t>(threadIdx.x);
  const int32_t local = i < args.num_tokens * args.slots ? local_expert(args, i) : -1;
  const uint32_t peers = __match_any_sync(kFullMask, local);
  const auto rank = static_cast<int32_t>(__popc(peers & ((1U << (threadIdx.x % 32)) - 1U)));
  for (int32_t w = 0; w < kChunkWarps; ++w) {
    __syncthreads();
    if (static_cast<int32_t>(threadIdx.x / 32) == w) {
      const int32_t place = local >= 0 ? next[local] + rank : -1;
      __syncwarp();
      if (place >= 0) {
        args.entries[place] = args.token_begin * args.slots + i;
        if (rank == 0) {
          next[local] = place + __popc(peers);
        }
      }
    }
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
  if (num_entries < kLongEntries) {
    launch_early(list_kernel,
                 dim3(static_cast<uint32_t>(num_experts + 1)),
                 dim3(kThreads),
                 shared_bytes,
                 stream,
                 args);
  } else {
    const dim3 chunks(static_cast<uint32_t>((num_entries + kChunk - 1) / kChunk));
    auto* counts = workspace.take<int32_t>(int64_t{chunks.x} * (num_experts + 1));
    launch_early(count_kernel, chunks, dim3(kChunk), shared_bytes, stream, args, counts);
    launch_early(place_kernel, chunks, dim3(kChunk), shared_bytes, stream, args, counts);
  }
  ExpertTiles result;
  result.tiles = tiles;
  result.entries = entries;
  result.grid = {tile_rows, args.max_tiles};
  return result;
}

}  // namespace hadal::cuda
