// Attention of prompt rows on sm_90a: attention_prompt.cu's second kernel by warpgroup products.
//
// One thread copies the images that project made, two pages of keys at a time, and two warpgroups
// serve 64 queries each: S = Q K^T of a tile is followed at once by O += P V of the one before it,
// so that a tile's softmax runs beside the latter and beside the other group's products. Tiles of
// 128 keys lie at fixed positions, and keys that a query does not see add zeros, so that its sums
// depend on neither its neighbours nor the chunk.
#include "attention.h"
#include "attention_hopper.cuh"
#include "attention_prompt.cuh"
#include "launch.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kGroups = 2;  ///< of 64 queries
constexpr int32_t kGroupThreads = 128;
constexpr int32_t kThreads = (1 + kGroups) * kGroupThreads;
constexpr int32_t kWarps = kGroups * kGroupThreads / 32;  ///< that read a stage
constexpr int32_t kPages = 2;                             ///< of a tile of keys
constexpr int32_t kKeys = kPages * kKvPageTokens;
constexpr int32_t kLine = 128;  ///< bytes
constexpr int32_t kFeatureTiles = kHeadDim / 64;
constexpr int32_t kPageTileBytes = kImageTile * 2;          ///< 64 lines
constexpr int32_t kKeyTileBytes = kPages * kPageTileBytes;  ///< 128 lines
constexpr int32_t kKeyBytes = kFeatureTiles * kKeyTileBytes;
constexpr int32_t kPageValueBytes = kValue * kLine;
constexpr int32_t kValueBytes = kPages * kPageValueBytes;
constexpr int32_t kStages = 2;
constexpr int32_t kQueryTileBytes = kQueryTile * kLine;
constexpr int32_t kGroupsMeet = 1;  ///< name of a barrier
constexpr float kLog2e = 1.4426950408889634F;
static_assert(kQueryTile == kGroups * 64 && kKeys == 128 && kValue == 128);
static_assert(kImageValues * 2 == kFeatureTiles * kPageTileBytes);

struct AttendShared {
  alignas(1024) std::byte queries[kFeatureTiles * kQueryTileBytes];
  alignas(1024) std::byte keys[kStages][kKeyBytes];
  alignas(1024) std::byte values[kStages][kValueBytes];
  uint64_t keys_full[kStages];
  uint64_t keys_empty[kStages];
  uint64_t values_full[kStages];
  uint64_t values_empty[kStages];
  float2 totals[kThreads / 32];  ///< of no use: see come_before_wait
};

constexpr int32_t kSharedBytes = static_cast<int32_t>(sizeof(AttendShared)) + 1024;

__device__ inline float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// What gives these totals is computed before a wait that follows: the compiler would move the wait
/// ahead of it.
__device__ inline void come_before_wait(const float (&totals)[2], uint32_t place) {
  asm volatile("st.volatile.shared.v2.f32 [%0], {%1, %2};\n" ::"r"(place),
               "f"(totals[0]),
               "f"(totals[1])
               : "memory");
}

/// S = Q K^T: 64 queries from `queries` on, 128 keys.
__device__ inline void issue_scores(uint32_t queries, uint32_t keys, float (&s)[64]) {
#pragma unroll
  for (int32_t k = 0; k < kHeadDim / 16; ++k) {
    const uint64_t a = swizzled_operand(queries + k / 4 * kQueryTileBytes + k % 4 * 32);
    const uint64_t b = swizzled_operand(keys + k / 4 * kKeyTileBytes + k % 4 * 32);
    if (k == 0) {
      multiply_shared<false>(s, a, b);
    } else {
      multiply_shared<true>(s, a, b);
    }
  }
  commit_products();
}

/// O += P V.
__device__ inline void issue_sums(const uint32_t (&p)[8][4], uint32_t values, float (&o)[64]) {
#pragma unroll
  for (int32_t k = 0; k < kKeys / 16; ++k) {
    const uint64_t b = swizzled_operand(values + k / 4 * kPageValueBytes + k % 4 * 32);
    Wgmma<128>::issue<true>(o, p[k], b);
  }
  commit_products();
}

/// Running softmax of the lane's queries g and g + 8 of its warp's 16; `total` is of its own keys.
struct Running {
  float max[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0F, 0.0F};
};

/// Scores of keys that the queries do not see: `visible[h]` = keys of this tile that query g + 8 h
/// sees (may exceed 128).
__device__ inline void mask(float (&s)[64], const int32_t (&visible)[2]) {
  const int32_t i = threadIdx.x % 4;
#pragma unroll
  for (int32_t n = 0; n < kKeys / 8; ++n) {
#pragma unroll
    for (int32_t e = 0; e < 4; ++e) {
      s[4 * n + e] = 8 * n + 2 * i + e % 2 < visible[e / 2] ? s[4 * n + e] : -INFINITY;
    }
  }
}

/// Scores become weights in place; gives the factors of the sums so far. `scale` includes log2(e).
__device__ inline void weigh(float (&s)[64], float scale, Running& running, float (&keep)[2]) {
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    float max = running.max[h];
#pragma unroll
    for (int32_t n = 0; n < kKeys / 8; ++n) {
      max = fmaxf(max, fmaxf(s[4 * n + 2 * h], s[4 * n + 2 * h + 1]));
    }
    max = fmaxf(max, __shfl_xor_sync(kFullMask, max, 1));
    max = fmaxf(max, __shfl_xor_sync(kFullMask, max, 2));
    const float shift = max * scale;
    keep[h] = exp2_fast(__fmaf_rn(running.max[h], scale, -shift));
    running.max[h] = max;
    float sum = 0.0F;
#pragma unroll
    for (int32_t n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        float& score = s[4 * n + 2 * h + e];
        score = exp2_fast(__fmaf_rn(score, scale, -shift));
        sum += score;
      }
    }
    running.total[h] = __fmaf_rn(running.total[h], keep[h], sum);
  }
}

/// C's elements as A's.
__device__ inline void round_weights(const float (&s)[64], uint32_t (&p)[8][4]) {
#pragma unroll
  for (int32_t k = 0; k < 8; ++k) {
    p[k][0] = f32_to_bf16x2(s[8 * k], s[8 * k + 1]);
    p[k][1] = f32_to_bf16x2(s[8 * k + 2], s[8 * k + 3]);
    p[k][2] = f32_to_bf16x2(s[8 * k + 4], s[8 * k + 5]);
    p[k][3] = f32_to_bf16x2(s[8 * k + 6], s[8 * k + 7]);
  }
}

/// One thread copies all tiles of keys and values.
__device__ inline void copy_tiles(const PromptParams& p,
                                  const QueryTile& work,
                                  int64_t local_head,
                                  AttendShared& s) {
  const int32_t num_pages = pages_of(work.position + work.count);
  const uint16_t* images = p.kv + (work.page * p.num_heads + local_head) * kImageSize;
  const int64_t stride = static_cast<int64_t>(p.num_heads) * kImageSize;
  for (int32_t tile = 0; tile * kPages < num_pages; ++tile) {
    const int32_t stage = tile % kStages;
    const uint32_t parity = (tile / kStages + 1) % 2;
    // Half a tile past the last page is never seen, but must be numbers.
    const uint16_t* pages[kPages] = {
        images + tile * kPages * stride,
        images + min(tile * kPages + 1, num_pages - 1) * stride,
    };
    const uint32_t keys_full = shared_address(&s.keys_full[stage]);
    wait_phase(shared_address(&s.keys_empty[stage]), parity);
    arrive_expecting(keys_full, kKeyBytes);
#pragma unroll
    for (int32_t i = 0; i < kPages; ++i) {
#pragma unroll
      for (int32_t f = 0; f < kFeatureTiles; ++f) {
        copy_bulk(shared_address(s.keys[stage] + f * kKeyTileBytes + i * kPageTileBytes),
                  pages[i] + f * kImageTile,
                  kPageTileBytes,
                  keys_full);
      }
    }
    const uint32_t values_full = shared_address(&s.values_full[stage]);
    wait_phase(shared_address(&s.values_empty[stage]), parity);
    arrive_expecting(values_full, kValueBytes);
#pragma unroll
    for (int32_t i = 0; i < kPages; ++i) {
      copy_bulk(shared_address(s.values[stage] + i * kPageValueBytes),
                pages[i] + kImageValues,
                kPageValueBytes,
                values_full);
    }
  }
}

/// The block's queries, swizzled; zeros past the last.
__device__ inline void load_queries(const PromptParams& p,
                                    const QueryTile& work,
                                    int64_t head,
                                    AttendShared& s) {
  constexpr int32_t kChunks = kHeadDim / 8;
  for (int32_t index = static_cast<int32_t>(threadIdx.x) - kGroupThreads;
       index < kQueryTile * kChunks;
       index += kGroups * kGroupThreads) {
    const int32_t query = index / kChunks;
    const int32_t chunk = index % kChunks;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (query < work.count) {
      const int64_t row = (static_cast<int64_t>(work.token) + query) * p.heads + head;
      value = *reinterpret_cast<const uint4*>(p.q + row * kHeadDim + chunk * 8);
    }
    const int32_t at = chunk / 8 * kQueryTileBytes + swizzled(query, chunk % 8, kLine);
    *reinterpret_cast<uint4*>(s.queries + at) = value;
  }
  fence_shared_for_products();
  meet(kGroupsMeet, kGroups * kGroupThreads);
}

__device__ inline void release(uint64_t& barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) {
    arrive(shared_address(&barrier));
  }
}

/// A warpgroup's queries.
struct GroupWork {
  uint32_t queries;   ///< in shared memory
  int32_t first;      ///< of the warp's 16, in the block
  int32_t num_tiles;  ///< that they see
  int32_t all_tiles;  ///< that the block's queries see
  int32_t seen;       ///< keys that the lane's query g sees
  int32_t least;      ///< keys that the group's first query sees
  int32_t warp;
};

__device__ inline GroupWork find_group(const QueryTile& work, AttendShared& shared) {
  const auto tiles_of = [](int32_t tokens) { return (tokens + kKeys - 1) / kKeys; };
  GroupWork result;
  // From lane 0, so that the compiler knows it to be one value in a warp.
  result.warp = __shfl_sync(kFullMask, static_cast<int32_t>(threadIdx.x) / 32, 0);
  result.first = result.warp * 16 - kGroupThreads / 32 * 16;
  const int32_t group_first = result.first / 64 * 64;
  const int32_t num_queries = min(max(work.count - group_first, 0), 64);
  result.queries = shared_address(shared.queries) + group_first * kLine;
  result.all_tiles = tiles_of(work.position + work.count);
  result.num_tiles = num_queries == 0 ? 0 : tiles_of(work.position + group_first + num_queries);
  result.seen = work.position + result.first + static_cast<int32_t>(threadIdx.x) % 32 / 4 + 1;
  result.least = work.position + group_first + 1;
  return result;
}

/// Masks what a tile's scores may not see, then weighs them.
__device__ inline void weigh_tile(const GroupWork& group,
                                  int32_t tile,
                                  float scale,
                                  float (&s)[64],
                                  Running& running,
                                  float (&keep)[2]) {
  if (group.least < (tile + 1) * kKeys) {
    const int32_t visible[2] = {group.seen - tile * kKeys, group.seen + 8 - tile * kKeys};
    mask(s, visible);
  }
  weigh(s, scale, running, keep);
}

/// O and the softmax over the tiles that the group sees, of which there is one.
__device__ inline void attend_tiles(
    const GroupWork& group, float scale, AttendShared& shared, float (&o)[64], Running& running) {
  float s[64];
  uint32_t weights[8][4];
  float keep[2];
  wait_phase(shared_address(&shared.keys_full[0]), 0);
  begin_products();
  issue_scores(group.queries, shared_address(shared.keys[0]), s);
  wait_all_but<0>(s);
  release(shared.keys_empty[0]);
  weigh_tile(group, 0, scale, s, running, keep);
  round_weights(s, weights);
  for (int32_t tile = 1; tile < group.num_tiles; ++tile) {
    const int32_t stage = tile % kStages;
    const int32_t before = (tile - 1) % kStages;
    wait_phase(shared_address(&shared.keys_full[stage]), tile / kStages % 2);
    wait_phase(shared_address(&shared.values_full[before]), (tile - 1) / kStages % 2);
    begin_products();
    issue_scores(group.queries, shared_address(shared.keys[stage]), s);
    issue_sums(weights, shared_address(shared.values[before]), o);
    wait_all_but<1>(s);
    release(shared.keys_empty[stage]);
    weigh_tile(group, tile, scale, s, running, keep);
    come_before_wait(running.total, shared_address(&shared.totals[group.warp]));
    wait_all_but<0>(o);
    release(shared.values_empty[before]);
    if (__any_sync(kFullMask, keep[0] != 1.0F || keep[1] != 1.0F)) {
#pragma unroll
      for (int32_t i = 0; i < 64; ++i) {
        o[i] *= keep[i / 2 % 2];
      }
    }
    round_weights(s, weights);
  }
  const int32_t last = group.num_tiles - 1;
  wait_phase(shared_address(&shared.values_full[last % kStages]), last / kStages % 2);
  begin_products();
  issue_sums(weights, shared_address(shared.values[last % kStages]), o);
  wait_all_but<0>(o);
  release(shared.values_empty[last % kStages]);
}

/// One warpgroup: its 64 queries over all tiles that they see.
__device__ inline void attend_group(const PromptParams& p,
                                    const QueryTile& work,
                                    int64_t head,
                                    AttendShared& shared) {
  const GroupWork group = find_group(work, shared);
  float o[64];
#pragma unroll
  for (int32_t i = 0; i < 64; ++i) {
    o[i] = 0.0F;
  }
  Running running;
  if (group.num_tiles > 0) {
    attend_tiles(group, p.scale * kLog2e, shared, o, running);
  }
  // Tiles that the other group alone sees: their copies are waited for, so that phases count both.
  for (int32_t tile = group.num_tiles; tile < group.all_tiles; ++tile) {
    const int32_t stage = tile % kStages;
    wait_phase(shared_address(&shared.keys_full[stage]), tile / kStages % 2);
    release(shared.keys_empty[stage]);
    wait_phase(shared_address(&shared.values_full[stage]), tile / kStages % 2);
    release(shared.values_empty[stage]);
  }
  if (group.num_tiles == 0) {
    return;
  }
  float out[16][4];
#pragma unroll
  for (int32_t i = 0; i < 64; ++i) {
    out[i / 4][i % 4] = o[i];
  }
  float totals[2];
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    const float pair = running.total[h] + __shfl_xor_sync(kFullMask, running.total[h], 1);
    totals[h] = pair + __shfl_xor_sync(kFullMask, pair, 2);
  }
  store_queries(p, out, totals, work.token, group.first, work.count, head);
}

/// Grid (heads of the group, query tiles).
__global__ void __launch_bounds__(kThreads, 1) hopper_attend_kernel(PromptParams p) {
  extern __shared__ std::byte memory[];
  const uint32_t place = shared_address(memory);
  auto& s = *reinterpret_cast<AttendShared*>(memory + (1024 - place % 1024) % 1024);
  wait_for_previous();
  let_next_start();
  const QueryTile work = find_query_tile<kQueryTile>(p, static_cast<int32_t>(blockIdx.y), 0);
  if (work.count == 0) {
    return;
  }
  if (threadIdx.x == 0) {
#pragma unroll
    for (int32_t i = 0; i < kStages; ++i) {
      init_barrier(shared_address(&s.keys_full[i]), 1);
      init_barrier(shared_address(&s.keys_empty[i]), kWarps);
      init_barrier(shared_address(&s.values_full[i]), 1);
      init_barrier(shared_address(&s.values_empty[i]), kWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < kGroupThreads) {
    lower_registers<24>();
    if (threadIdx.x == 0) {
      copy_tiles(p, work, blockIdx.x, s);
    }
  } else {
    raise_registers<240>();
    const int64_t head = p.first_head + static_cast<int32_t>(blockIdx.x);
    load_queries(p, work, head, s);
    attend_group(p, work, head, s);
  }
}

}  // namespace

void launch_hopper_attend(const PromptParams& p, cudaStream_t stream) {
  // Idempotent, and no work of the stream: legal while a graph is captured.
  (void)cudaFuncSetAttribute(
      hopper_attend_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  launch_early(hopper_attend_kernel,
               dim3(static_cast<uint32_t>(p.num_heads), static_cast<uint32_t>(p.rows.most_tiles)),
               dim3(kThreads),
               static_cast<size_t>(kSharedBytes),
               stream,
               p);
}

}  // namespace hadal::cuda
