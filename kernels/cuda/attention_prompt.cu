// Attention of prompt rows, non-absorbed form, on bf16 tensor cores: two kernels.
//
//   project  keys (without their rope part) and values of every page of the rows, from the cached
//            latents: the prefix's and the chunk's alike, so a chunk boundary changes nothing
//   attend   64 queries of one head over all pages that they see, page by page from position 0,
//            with a running softmax per query
//
// sm_90a has its own of both: attention_project_hopper.cu and attention_prompt_hopper.cu.
//
// FP8 latents become bf16, exactly, on their way to project's tiles; attend reads the rope part,
// which is bf16 in either format. A query's sums do not depend on its neighbours in the tile: pages
// that it does not see add zeros.
#include "attention.h"
#include "attention_project.cuh"
#include "attention_prompt.cuh"
#include "device_math.cuh"
#include "launch.cuh"
#include "mma.cuh"

namespace hadal::cuda {

namespace {

constexpr float kLog2e = 1.4426950408889634F;

// ---- project: [64 tokens, 512] x [128 rows of kv_b, 512]^T --------------------------------------

struct ProjectShared {
  alignas(128) std::byte latents[kProjectStages][kPageLatentBytes];
  alignas(128) std::byte weights[kProjectStages][kProjectColumns * kDepthBytes];
};

/// One step: the warp adds to its 32 tokens (from `tokens`) x 32 columns (from `columns`).
__device__ inline void project_step(
    uint32_t latents, uint32_t weights, int32_t tokens, int32_t columns, float (&c)[2][4][4]) {
  const int32_t lane = threadIdx.x % 32;
#pragma unroll
  for (int32_t k = 0; k < kProjectDepth / 16; ++k) {
    uint32_t a[2][4];
    uint32_t b[2][4];
#pragma unroll
    for (int32_t m = 0; m < 2; ++m) {
      load_matrices(
          a[m], latents + swizzled(tokens + 16 * m + lane % 16, 2 * k + lane / 16, kDepthBytes));
      // Rows of kv_b 0-7 at both halves of the depth, then rows 8-15.
      const int32_t column = columns + 16 * m + lane % 8 + lane / 16 * 8;
      load_matrices(b[m], weights + swizzled(column, 2 * k + lane / 8 % 2, kDepthBytes));
    }
#pragma unroll
    for (int32_t m = 0; m < 2; ++m) {
#pragma unroll
      for (int32_t n = 0; n < 4; ++n) {
        const uint32_t b0 = b[n / 2][n % 2 * 2];
        const uint32_t b1 = b[n / 2][n % 2 * 2 + 1];
        mma(c[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b0, b1);
      }
    }
  }
}

/// Grid (2 * heads of the group, pages): block x / 2 is the head, x % 2 keys or values. FP8 codes
/// stay in registers for the length of a step before they are stored for the step after the next.
template <bool kFp8>
__global__ void __launch_bounds__(kProjectThreads) project_kernel(PromptParams p) {
  extern __shared__ __align__(128) std::byte memory[];
  auto& s = *reinterpret_cast<ProjectShared*>(memory);
  wait_for_previous();
  let_next_start();
  const int32_t half = static_cast<int32_t>(blockIdx.x) % 2;
  const ProjectTile tile = find_project_tile(
      p, static_cast<int32_t>(blockIdx.y), static_cast<int32_t>(blockIdx.x) / 2, half);
  if (tile.count == 0) {
    return;
  }
  constexpr int32_t kAhead = kProjectStages - 1;
#pragma unroll
  for (int32_t step = 0; step < kAhead; ++step) {
    if constexpr (kFp8) {
      store_latents(fetch_latents(tile, step), s.latents[step]);
    } else {
      load_latents(tile, step, shared_address(s.latents[step]));
    }
    load_weights(tile, step, shared_address(s.weights[step]));
    commit_copies();
  }
  [[maybe_unused]] CodeChunk codes;
  if constexpr (kFp8) {
    codes = fetch_latents(tile, kAhead);
  }
  const int32_t lane = threadIdx.x % 32;
  const int32_t warp = threadIdx.x / 32;
  const int32_t tokens = warp % 2 * 32;
  const int32_t columns = warp / 2 * 32;
  float c[2][4][4] = {};
  for (int32_t step = 0; step < kProjectSteps; ++step) {
    wait_copies<kAhead - 1>();
    __syncthreads();
    if (step + kAhead < kProjectSteps) {
      const int32_t stage = (step + kAhead) % kProjectStages;
      if constexpr (kFp8) {
        store_latents(codes, s.latents[stage]);
      } else {
        load_latents(tile, step + kAhead, shared_address(s.latents[stage]));
      }
      load_weights(tile, step + kAhead, shared_address(s.weights[stage]));
    }
    commit_copies();
    if constexpr (kFp8) {
      if (step + kAhead + 1 < kProjectSteps) {
        codes = fetch_latents(tile, step + kAhead + 1);
      }
    }
    project_step(shared_address(s.latents[step % kProjectStages]),
                 shared_address(s.weights[step % kProjectStages]),
                 tokens,
                 columns,
                 c);
  }
  uint16_t* out = tile.out + half * kNope;
#pragma unroll
  for (int32_t m = 0; m < 2; ++m) {
#pragma unroll
    for (int32_t n = 0; n < 4; ++n) {
      const int32_t column = columns + 8 * n + lane % 4 * 2;
      const int32_t token = tokens + 16 * m + lane / 4;
      *reinterpret_cast<uint32_t*>(out + token * kSlab + column) =
          f32_to_bf16x2(c[m][n][0], c[m][n][1]);
      *reinterpret_cast<uint32_t*>(out + (token + 8) * kSlab + column) =
          f32_to_bf16x2(c[m][n][2], c[m][n][3]);
    }
  }
}

// ---- attend -------------------------------------------------------------------------------------

constexpr int32_t kThreads = 128;
constexpr int32_t kQueries = kThreads / 32 * 16;
constexpr int32_t kParts = kQueryTile / kQueries;  ///< blocks of a tile of queries
constexpr int32_t kKeys = kKvPageTokens;
constexpr int32_t kKeyBytes = kHeadDim * 2;     // 384: three lines
constexpr int32_t kKeyChunks = kKeyBytes / 16;  // 24, the last 8 are rope
constexpr int32_t kNopeChunks = kNope * 2 / 16;
constexpr int32_t kValueBytes = kValue * 2;
constexpr int32_t kValueChunks = kValueBytes / 16;

struct AttendShared {
  alignas(128) std::byte queries[kQueries * kKeyBytes];
  alignas(128) std::byte keys[2][kKeys * kKeyBytes];
  alignas(128) std::byte values[2][kKeys * kValueBytes];
};

/// Where a row's keys and values are.
struct KeySource {
  const uint16_t* kv;  ///< of the row's page 0 and this head
  int64_t page_size;   ///< elements of kv from page to page
  const int32_t* page_table;
  const std::byte* rope;  ///< of page 0 of the cache and its first token
  int64_t page_bytes;
  int32_t record_bytes;
  int32_t length;
};

__device__ inline void load_keys(const KeySource& source, int32_t tile, AttendShared& s) {
  const uint32_t keys = shared_address(s.keys[tile % 2]);
  const uint32_t values = shared_address(s.values[tile % 2]);
  const uint16_t* kv = source.kv + tile * source.page_size;
  const std::byte* rope = source.rope + source.page_table[tile] * source.page_bytes;
  const int32_t left = source.length - tile * kKeys;
#pragma unroll
  for (int32_t j = 0; j < kKeys * kKeyChunks / kThreads; ++j) {
    const int32_t index = static_cast<int32_t>(threadIdx.x) + j * kThreads;
    const int32_t row = index / kKeyChunks;
    const int32_t chunk = index % kKeyChunks;
    const void* from = kv + row * kSlab + chunk * 8;
    if (chunk >= kNopeChunks) {
      from = rope + row * source.record_bytes + (chunk - kNopeChunks) * 16;
    }
    copy_async(keys + swizzled(row, chunk, kKeyBytes), from, row < left);
  }
#pragma unroll
  for (int32_t j = 0; j < kKeys * kValueChunks / kThreads; ++j) {
    const int32_t index = static_cast<int32_t>(threadIdx.x) + j * kThreads;
    const int32_t row = index / kValueChunks;
    const int32_t chunk = index % kValueChunks;
    copy_async(values + swizzled(row, chunk, kValueBytes),
               kv + row * kSlab + kNope + chunk * 8,
               row < left);
  }
}

/// Running softmax of the lane's queries g and g + 8 of its warp's 16.
struct Running {
  float max[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0F, 0.0F};
};

/// Scores become weights in place; out is rescaled. `visible[h]` = keys of this tile that query
/// g + 8 h sees (may exceed 64 or be negative).
__device__ inline void softmax_tile(float (&scores)[8][4],
                                    float (&out)[16][4],
                                    Running& running,
                                    const int32_t (&visible)[2],
                                    float scale) {
  const int32_t i = threadIdx.x % 4;
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    float max = running.max[h];
#pragma unroll
    for (int32_t n = 0; n < 8; ++n) {
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        float& score = scores[n][2 * h + e];
        score = 8 * n + 2 * i + e < visible[h] ? score * scale : -INFINITY;
        max = fmaxf(max, score);
      }
    }
    max = fmaxf(max, __shfl_xor_sync(kFullMask, max, 1));
    max = fmaxf(max, __shfl_xor_sync(kFullMask, max, 2));
    const float keep = exp2f(running.max[h] - max);
    running.max[h] = max;
    float sum = 0.0F;
#pragma unroll
    for (int32_t n = 0; n < 8; ++n) {
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        float& score = scores[n][2 * h + e];
        score = exp2f(score - max);
        sum += score;
      }
    }
    sum += __shfl_xor_sync(kFullMask, sum, 1);
    sum += __shfl_xor_sync(kFullMask, sum, 2);
    running.total[h] = running.total[h] * keep + sum;
#pragma unroll
    for (int32_t n = 0; n < 16; ++n) {
      out[n][2 * h] *= keep;
      out[n][2 * h + 1] *= keep;
    }
  }
}

__device__ inline void attend_tile(const uint32_t (&q)[12][4],
                                   float (&out)[16][4],
                                   Running& running,
                                   const int32_t (&visible)[2],
                                   float scale,
                                   uint32_t keys,
                                   uint32_t values) {
  const int32_t lane = threadIdx.x % 32;
  float scores[8][4] = {};
#pragma unroll
  for (int32_t k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int32_t n = 0; n < 4; ++n) {
      uint32_t b[4];
      // Keys 0-7 at both halves of the features, then keys 8-15.
      const int32_t key = 16 * n + lane % 8 + lane / 16 * 8;
      load_matrices(b, keys + swizzled(key, 2 * k + lane / 8 % 2, kKeyBytes));
      mma(scores[2 * n], q[k][0], q[k][1], q[k][2], q[k][3], b[0], b[1]);
      mma(scores[2 * n + 1], q[k][0], q[k][1], q[k][2], q[k][3], b[2], b[3]);
    }
  }
  softmax_tile(scores, out, running, visible, scale);
#pragma unroll
  for (int32_t k = 0; k < kKeys / 16; ++k) {
    // The scores' layout is that of A: tile 2 k is features 0-7, tile 2 k + 1 features 8-15.
    const uint32_t a0 = f32_to_bf16x2(scores[2 * k][0], scores[2 * k][1]);
    const uint32_t a1 = f32_to_bf16x2(scores[2 * k][2], scores[2 * k][3]);
    const uint32_t a2 = f32_to_bf16x2(scores[2 * k + 1][0], scores[2 * k + 1][1]);
    const uint32_t a3 = f32_to_bf16x2(scores[2 * k + 1][2], scores[2 * k + 1][3]);
#pragma unroll
    for (int32_t n = 0; n < 8; ++n) {
      uint32_t b[4];
      // Transposed: keys 0-7 and 8-15 of values 0-7, then of values 8-15.
      const int32_t key = 16 * k + lane % 16;
      load_matrices_transposed(b, values + swizzled(key, 2 * n + lane / 16, kValueBytes));
      mma(out[2 * n], a0, a1, a2, a3, b[0], b[1]);
      mma(out[2 * n + 1], a0, a1, a2, a3, b[2], b[3]);
    }
  }
}

/// Where the keys and values of a tile's row are.
__device__ inline KeySource key_source(const PromptParams& p, const QueryTile& tile) {
  constexpr int64_t kTileSize = static_cast<int64_t>(kKeys) * kSlab;
  return {p.kv + (tile.page * p.num_heads + blockIdx.y) * kTileSize,
          p.num_heads * kTileSize,
          p.step.page_table + tile.row * p.step.table_stride,
          p.step.pages + p.step.rope_at,
          p.step.page_bytes,
          p.step.record_bytes,
          tile.position + tile.count};
}

__device__ inline void load_query_tile(const PromptParams& p,
                                       const QueryTile& tile,
                                       int64_t head,
                                       uint32_t queries) {
#pragma unroll
  for (int32_t j = 0; j < kQueries * kKeyChunks / kThreads; ++j) {
    const int32_t index = static_cast<int32_t>(threadIdx.x) + j * kThreads;
    const int32_t query = index / kKeyChunks;
    const int32_t chunk = index % kKeyChunks;
    const bool valid = query < tile.count;
    const int64_t at = (static_cast<int64_t>(tile.token) + (valid ? query : 0)) * p.heads + head;
    copy_async(queries + swizzled(query, chunk, kKeyBytes), p.q + at * kHeadDim + chunk * 8, valid);
  }
}

/// Grid (parts of query tiles, heads of the group).
__global__ void __launch_bounds__(kThreads) attend_kernel(PromptParams p) {
  extern __shared__ __align__(128) std::byte memory[];
  auto& s = *reinterpret_cast<AttendShared*>(memory);
  wait_for_previous();
  let_next_start();
  const auto block = static_cast<int32_t>(blockIdx.x);
  const QueryTile work =
      find_query_tile<kQueries>(p, block / kParts, kParts - 1 - block % kParts);
  if (work.count == 0) {
    return;
  }
  const KeySource source = key_source(p, work);
  const int64_t head = p.first_head + static_cast<int32_t>(blockIdx.y);
  const int32_t num_tiles = pages_of(source.length);
  const uint32_t queries = shared_address(s.queries);
  load_query_tile(p, work, head, queries);
  load_keys(source, 0, s);
  commit_copies();
  if (num_tiles > 1) {
    load_keys(source, 1, s);
  }
  commit_copies();

  const int32_t lane = threadIdx.x % 32;
  const int32_t first = static_cast<int32_t>(threadIdx.x) / 32 * 16;
  uint32_t q[12][4];
  float out[16][4] = {};
  Running running;
  for (int32_t tile = 0; tile < num_tiles; ++tile) {
    wait_copies<1>();
    __syncthreads();
    if (tile == 0) {
#pragma unroll
      for (int32_t k = 0; k < kHeadDim / 16; ++k) {
        load_matrices(q[k], queries + swizzled(first + lane % 16, 2 * k + lane / 16, kKeyBytes));
      }
    }
    const int32_t seen = work.position + first + lane / 4 + 1 - tile * kKeys;
    const int32_t visible[2] = {seen, seen + 8};
    attend_tile(q,
                out,
                running,
                visible,
                p.scale * kLog2e,
                shared_address(s.keys[tile % 2]),
                shared_address(s.values[tile % 2]));
    __syncthreads();
    if (tile + 2 < num_tiles) {
      load_keys(source, tile + 2, s);
    }
    commit_copies();
  }
  store_queries(p, out, running.total, work.token, first, work.count, head);
}

template <bool kFp8>
void launch_project(const PromptParams& p, cudaStream_t stream) {
  constexpr auto kBytes = static_cast<int32_t>(sizeof(ProjectShared));
  // Idempotent, and no work of the stream: legal while a graph is captured.
  (void)cudaFuncSetAttribute(
      project_kernel<kFp8>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  const dim3 grid(2 * static_cast<uint32_t>(p.num_heads), static_cast<uint32_t>(p.rows.most_pages));
  launch_early(project_kernel<kFp8>,
               grid,
               dim3(kProjectThreads),
               static_cast<size_t>(kBytes),
               stream,
               p);
}

}  // namespace

void launch_prompt(const PromptParams& p, cudaStream_t stream) {
  if (p.has_images) {
    launch_hopper_project(p, stream);
    launch_hopper_attend(p, stream);
    return;
  }
  p.step.kv_type == DType::f8_e4m3 ? launch_project<true>(p, stream)
                                   : launch_project<false>(p, stream);
  constexpr auto kAttendBytes = static_cast<int32_t>(sizeof(AttendShared));
  (void)cudaFuncSetAttribute(
      attend_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kAttendBytes);
  const dim3 attend_grid(static_cast<uint32_t>(p.rows.most_tiles * kParts),
                         static_cast<uint32_t>(p.num_heads));
  launch_early(attend_kernel,
               attend_grid,
               dim3(kThreads),
               static_cast<size_t>(kAttendBytes),
               stream,
               p);
}

}  // namespace hadal::cuda
