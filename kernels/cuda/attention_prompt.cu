// Attention of prompt rows, non-absorbed form, on bf16 tensor cores: two kernels.
//
//   project  keys (without their rope part) and values of every page of the rows, from the cached
//            latents: the prefix's and the chunk's alike, so a chunk boundary changes nothing
//   attend   64 queries of one head over all pages that they see, page by page from position 0,
//            with a running softmax per query
//
// FP8 latents become bf16, exactly, on their way to project's tiles; attend reads the rope part,
// which is bf16 in either format. A query's sums do not depend on its neighbours in the tile: pages
// that it does not see add zeros.
#include "attention.h"
#include "device_math.cuh"
#include "kv_latents.cuh"
#include "mma.cuh"

namespace hadal::cuda {

namespace {

constexpr float kLog2e = 1.4426950408889634F;

__device__ int32_t row_length(const StepView& step, int32_t row) {
  return step.positions[step.row_offsets[row + 1] - 1] + 1;
}

// ---- project: [64 tokens, 512] x [128 rows of kv_b, 512]^T --------------------------------------

constexpr int32_t kProjectThreads = 256;
constexpr int32_t kProjectDepth = 64;  ///< features of a stage
constexpr int32_t kProjectStages = 3;
constexpr int32_t kProjectSteps = kLatents / kProjectDepth;
constexpr int32_t kProjectColumns = 128;
constexpr int32_t kDepthBytes = kProjectDepth * 2;  // one 128-byte line
constexpr int32_t kDepthChunks = kDepthBytes / 16;

struct ProjectShared {
  alignas(128) std::byte latents[kProjectStages][kKvPageTokens * kDepthBytes];
  alignas(128) std::byte weights[kProjectStages][kProjectColumns * kDepthBytes];
};

struct ProjectTile {
  const std::byte* records;  ///< of the page's first token
  const uint16_t* weights;   ///< [128][512]
  int32_t count;             ///< tokens of the page that hold something
};

__device__ inline void load_latents(const ProjectTile& tile, int32_t step, ProjectShared& s) {
  const uint32_t latents = shared_address(s.latents[step % kProjectStages]);
#pragma unroll
  for (int32_t j = 0; j < kKvPageTokens * kDepthChunks / kProjectThreads; ++j) {
    const int32_t index = static_cast<int32_t>(threadIdx.x) + j * kProjectThreads;
    const int32_t row = index / kDepthChunks;
    const int32_t chunk = index % kDepthChunks;
    copy_async(latents + swizzled(row, chunk, kDepthBytes),
               tile.records + row * kWidth * 2 + step * kDepthBytes + chunk * 16,
               row < tile.count);
  }
}

/// Sixteen FP8 codes of a step, thread t of token t / 4: a stage is 64 tokens x 64 codes.
__device__ inline CodeChunk fetch_latents(const ProjectTile& tile, int32_t step) {
  static_assert(kKvPageTokens * kProjectDepth / 16 == kProjectThreads);
  const int32_t row = static_cast<int32_t>(threadIdx.x) / 4;
  const int32_t chunk = step * (kProjectDepth / 16) + static_cast<int32_t>(threadIdx.x) % 4;
  return load_codes(tile.records + row * kFp8RecordBytes, chunk, row < tile.count);
}

__device__ inline void store_latents(const CodeChunk& codes, int32_t step, ProjectShared& s) {
  const int32_t row = static_cast<int32_t>(threadIdx.x) / 4;
  const int32_t chunk = static_cast<int32_t>(threadIdx.x) % 4 * 2;
  store_codes(codes, s.latents[step % kProjectStages], row, chunk, kDepthBytes, false);
}

__device__ inline void load_weights(const ProjectTile& tile, int32_t step, ProjectShared& s) {
  const uint32_t weights = shared_address(s.weights[step % kProjectStages]);
  const int32_t depth = step * kProjectDepth;
#pragma unroll
  for (int32_t j = 0; j < kProjectColumns * kDepthChunks / kProjectThreads; ++j) {
    const int32_t index = static_cast<int32_t>(threadIdx.x) + j * kProjectThreads;
    const int32_t row = index / kDepthChunks;
    const int32_t chunk = index % kDepthChunks;
    copy_async(weights + swizzled(row, chunk, kDepthBytes),
               tile.weights + static_cast<int64_t>(row) * kLatents + depth + chunk * 8,
               true);
  }
}

/// The page and the rows of kv_b of this block; count 0 = none.
__device__ inline ProjectTile find_project_tile(const PromptParams& p) {
  const StepSchedule& schedule = p.rows.schedule;
  const int32_t packed = schedule.page_begin[p.rows.begin] + static_cast<int32_t>(blockIdx.y);
  if (packed >= schedule.page_begin[p.rows.end]) {
    return {nullptr, nullptr, 0};
  }
  const int32_t prompt = range_of(schedule.page_begin, p.step.num_prompt_rows, packed);
  const int64_t row = schedule.prompt_rows[prompt];
  const int32_t page_index = packed - schedule.page_begin[prompt];
  const int64_t page = p.step.page_table[row * p.step.table_stride + page_index];
  const int64_t head = p.first_head + static_cast<int32_t>(blockIdx.x) / 2;
  const int32_t half = static_cast<int32_t>(blockIdx.x) % 2;
  const int32_t left = row_length(p.step, static_cast<int32_t>(row)) - page_index * kKvPageTokens;
  return {p.step.pages + page * p.step.page_bytes,
          p.kv_b + (head * kSlab + half * kNope) * kLatents,
          left < kKvPageTokens ? left : kKvPageTokens};
}

/// One stage: the warp adds to its 32 tokens (from `tokens`) x 32 columns (from `columns`).
__device__ inline void project_stage(
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
  const ProjectTile tile = find_project_tile(p);
  if (tile.count == 0) {
    return;
  }
  constexpr int32_t kAhead = kProjectStages - 1;
#pragma unroll
  for (int32_t step = 0; step < kAhead; ++step) {
    if constexpr (kFp8) {
      store_latents(fetch_latents(tile, step), step, s);
    } else {
      load_latents(tile, step, s);
    }
    load_weights(tile, step, s);
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
      if constexpr (kFp8) {
        store_latents(codes, step + kAhead, s);
      } else {
        load_latents(tile, step + kAhead, s);
      }
      load_weights(tile, step + kAhead, s);
    }
    commit_copies();
    if constexpr (kFp8) {
      if (step + kAhead + 1 < kProjectSteps) {
        codes = fetch_latents(tile, step + kAhead + 1);
      }
    }
    project_stage(shared_address(s.latents[step % kProjectStages]),
                  shared_address(s.weights[step % kProjectStages]),
                  tokens,
                  columns,
                  c);
  }
  const int64_t page = static_cast<int64_t>(blockIdx.y) * p.num_heads + blockIdx.x / 2;
  uint16_t* out = p.kv + page * kKvPageTokens * kSlab + blockIdx.x % 2 * kNope;
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
constexpr int32_t kKeys = kKvPageTokens;
constexpr int32_t kKeyBytes = kHeadDim * 2;     // 384: three lines
constexpr int32_t kKeyChunks = kKeyBytes / 16;  // 24, the last 8 are rope
constexpr int32_t kNopeChunks = kNope * 2 / 16;
constexpr int32_t kValueBytes = kValue * 2;
constexpr int32_t kValueChunks = kValueBytes / 16;

struct AttendShared {
  alignas(128) std::byte queries[kQueryTile * kKeyBytes];
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

/// A head's 128 values are one quantisation group, and four lanes hold a query's.
__device__ inline void store_queries(const PromptParams& p,
                                     const float (&out)[16][4],
                                     const Running& running,
                                     int64_t token,
                                     int32_t num_queries,
                                     int64_t head) {
  const int32_t lane = threadIdx.x % 32;
  const int32_t i = lane % 4;
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    const int32_t query = static_cast<int32_t>(threadIdx.x) / 32 * 16 + lane / 4 + 8 * h;
    float values[16][2];
    float amax = 0.0F;
#pragma unroll
    for (int32_t n = 0; n < 16; ++n) {
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        values[n][e] = out[n][2 * h + e] / running.total[h];
        amax = fmaxf(amax, fabsf(values[n][e]));
      }
    }
    amax = fmaxf(amax, __shfl_xor_sync(kFullMask, amax, 1));
    amax = fmaxf(amax, __shfl_xor_sync(kFullMask, amax, 2));
    if (query >= num_queries) {
      continue;
    }
    const float scale = p.out.format == ActFormat::e4m3 ? scale_of_amax(amax) : 1.0F;
    if (p.out.format == ActFormat::e4m3 && i == 0) {
      store_scale(p.out, token + query, head, scale);
    }
#pragma unroll
    for (int32_t n = 0; n < 16; ++n) {
      const int64_t at = head * kValue + 8 * n + 2 * i;
      store_act(p.out, token + query, at, values[n][0], scale);
      store_act(p.out, token + query, at + 1, values[n][1], scale);
    }
  }
}

/// The 64 queries of a block, fewer at a row's end.
struct QueryTile {
  int32_t token;     ///< of the step: the first query
  int32_t position;  ///< of it
  int32_t count;     ///< 0 = none
  KeySource source;
};

/// The last tiles, which see most, come first.
__device__ inline QueryTile find_query_tile(const PromptParams& p) {
  const StepSchedule& schedule = p.rows.schedule;
  QueryTile result{};
  const int32_t index = schedule.tile_begin[p.rows.end] - 1 - static_cast<int32_t>(blockIdx.x);
  if (index < schedule.tile_begin[p.rows.begin]) {
    return result;
  }
  const int32_t prompt = range_of(schedule.tile_begin, p.step.num_prompt_rows, index);
  const int64_t row = schedule.prompt_rows[prompt];
  result.token = p.step.row_offsets[row] + (index - schedule.tile_begin[prompt]) * kQueryTile;
  result.position = p.step.positions[result.token];
  const int32_t left = p.step.row_offsets[row + 1] - result.token;
  result.count = left < kQueryTile ? left : kQueryTile;
  const int64_t page = schedule.page_begin[prompt] - schedule.page_begin[p.rows.begin];
  constexpr int64_t kTileSize = static_cast<int64_t>(kKeys) * kSlab;
  result.source = {p.kv + (page * p.num_heads + blockIdx.y) * kTileSize,
                   p.num_heads * kTileSize,
                   p.step.page_table + row * p.step.table_stride,
                   p.step.pages + p.step.rope_at,
                   p.step.page_bytes,
                   p.step.record_bytes,
                   result.position + result.count};
  return result;
}

__device__ inline void load_query_tile(const PromptParams& p,
                                       const QueryTile& tile,
                                       int64_t head,
                                       uint32_t queries) {
#pragma unroll
  for (int32_t j = 0; j < kQueryTile * kKeyChunks / kThreads; ++j) {
    const int32_t index = static_cast<int32_t>(threadIdx.x) + j * kThreads;
    const int32_t query = index / kKeyChunks;
    const int32_t chunk = index % kKeyChunks;
    const bool valid = query < tile.count;
    const int64_t at = (static_cast<int64_t>(tile.token) + (valid ? query : 0)) * p.heads + head;
    copy_async(queries + swizzled(query, chunk, kKeyBytes), p.q + at * kHeadDim + chunk * 8, valid);
  }
}

/// Grid (query tiles, heads of the group).
__global__ void __launch_bounds__(kThreads) attend_kernel(PromptParams p) {
  extern __shared__ __align__(128) std::byte memory[];
  auto& s = *reinterpret_cast<AttendShared*>(memory);
  const QueryTile work = find_query_tile(p);
  if (work.count == 0) {
    return;
  }
  const int64_t head = p.first_head + static_cast<int32_t>(blockIdx.y);
  const int32_t num_tiles = pages_of(work.source.length);
  const uint32_t queries = shared_address(s.queries);
  load_query_tile(p, work, head, queries);
  load_keys(work.source, 0, s);
  commit_copies();
  if (num_tiles > 1) {
    load_keys(work.source, 1, s);
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
      load_keys(work.source, tile + 2, s);
    }
    commit_copies();
  }
  store_queries(p, out, running, work.token, work.count, head);
}

template <bool kFp8>
void launch_project(const PromptParams& p, cudaStream_t stream) {
  constexpr auto kBytes = static_cast<int32_t>(sizeof(ProjectShared));
  // Idempotent, and no work of the stream: legal while a graph is captured.
  (void)cudaFuncSetAttribute(
      project_kernel<kFp8>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  const dim3 grid(2 * static_cast<uint32_t>(p.num_heads), static_cast<uint32_t>(p.rows.most_pages));
  project_kernel<kFp8><<<grid, kProjectThreads, static_cast<size_t>(kBytes), stream>>>(p);
}

}  // namespace

void launch_prompt(const PromptParams& p, cudaStream_t stream) {
  p.step.kv_type == DType::f8_e4m3 ? launch_project<true>(p, stream)
                                   : launch_project<false>(p, stream);
  constexpr auto kAttendBytes = static_cast<int32_t>(sizeof(AttendShared));
  (void)cudaFuncSetAttribute(
      attend_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kAttendBytes);
  const dim3 attend_grid(static_cast<uint32_t>(p.rows.most_tiles),
                         static_cast<uint32_t>(p.num_heads));
  attend_kernel<<<attend_grid, kThreads, static_cast<size_t>(kAttendBytes), stream>>>(p);
}

}  // namespace hadal::cuda
