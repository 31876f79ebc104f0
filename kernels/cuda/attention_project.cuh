// What the two forms of the kernel that projects cached pages to keys and values share: [64 tokens,
// 512] x [128 rows of kv_b, 512]^T, in steps of 64 features whose operands lie in swizzled shared
// tiles of 128-byte lines.
#pragma once

#include "attention.h"
#include "attention_prompt.cuh"
#include "kv_latents.cuh"
#include "mma.cuh"

namespace hadal::cuda {

inline constexpr int32_t kProjectThreads = 256;
inline constexpr int32_t kProjectDepth = 64;  ///< features of a step
inline constexpr int32_t kProjectStages = 3;
inline constexpr int32_t kProjectSteps = kLatents / kProjectDepth;
inline constexpr int32_t kProjectColumns = 128;
inline constexpr int32_t kDepthBytes = kProjectDepth * 2;  // one 128-byte line
inline constexpr int32_t kDepthChunks = kDepthBytes / 16;
inline constexpr int32_t kPageLatentBytes = kKvPageTokens * kDepthBytes;  ///< of a step

/// A page of the cache and a half of a head's rows of kv_b.
struct ProjectTile {
  const std::byte* records;  ///< of the page's first token
  const uint16_t* weights;   ///< [128][512]
  uint16_t* out;             ///< PromptParams::kv of the page and head
  int32_t count;             ///< tokens of the page that hold something
};

/// Page `index` of those of the rows; half 0 projects keys, half 1 values of head `head` of the
/// launch. Count 0 = no such page.
__device__ inline ProjectTile find_project_tile(const PromptParams& p,
                                                int32_t index,
                                                int32_t head,
                                                int32_t half) {
  const StepSchedule& schedule = p.rows.schedule;
  const int32_t packed = schedule.page_begin[p.rows.begin] + index;
  const int64_t weight_row = static_cast<int64_t>(p.first_head + head) * kSlab + half * kNope;
  ProjectTile tile{p.step.pages, p.kv_b + weight_row * kLatents, nullptr, 0};
  if (packed >= schedule.page_begin[p.rows.end]) {
    return tile;
  }
  const int32_t prompt = range_of(schedule.page_begin, p.step.num_prompt_rows, packed);
  const int64_t row = schedule.prompt_rows[prompt];
  const int32_t page_index = packed - schedule.page_begin[prompt];
  const int64_t page = p.step.page_table[row * p.step.table_stride + page_index];
  const int32_t left = row_length(p.step, static_cast<int32_t>(row)) - page_index * kKvPageTokens;
  const int64_t size = p.has_images ? kImageSize : kKvPageTokens * kSlab;
  tile.records = p.step.pages + page * p.step.page_bytes;
  tile.out = p.kv + (static_cast<int64_t>(index) * p.num_heads + head) * size;
  tile.count = left < kKvPageTokens ? left : kKvPageTokens;
  return tile;
}

/// BF16 latents of a step; zeros past the last token.
__device__ inline void load_latents(const ProjectTile& tile, int32_t step, uint32_t to) {
#pragma unroll
  for (int32_t j = 0; j < kKvPageTokens * kDepthChunks / kProjectThreads; ++j) {
    const int32_t index = static_cast<int32_t>(threadIdx.x) + j * kProjectThreads;
    const int32_t row = index / kDepthChunks;
    const int32_t chunk = index % kDepthChunks;
    copy_async(to + swizzled(row, chunk, kDepthBytes),
               tile.records + row * kWidth * 2 + step * kDepthBytes + chunk * 16,
               row < tile.count);
  }
}

/// Sixteen FP8 codes of a step, thread t of token t / 4: a step is of 64 tokens x 64 codes.
__device__ inline CodeChunk fetch_latents(const ProjectTile& tile, int32_t step) {
  static_assert(kKvPageTokens * kProjectDepth / 16 == kProjectThreads);
  const int32_t row = static_cast<int32_t>(threadIdx.x) / 4;
  const int32_t chunk = step * (kProjectDepth / 16) + static_cast<int32_t>(threadIdx.x) % 4;
  return load_codes(tile.records + row * kFp8RecordBytes, chunk, row < tile.count);
}

__device__ inline void store_latents(const CodeChunk& codes, std::byte* to) {
  const int32_t row = static_cast<int32_t>(threadIdx.x) / 4;
  const int32_t chunk = static_cast<int32_t>(threadIdx.x) % 4 * 2;
  store_codes(codes, to, row, chunk, kDepthBytes, false);
}

__device__ inline void load_weights(const ProjectTile& tile, int32_t step, uint32_t to) {
  const int32_t depth = step * kProjectDepth;
#pragma unroll
  for (int32_t j = 0; j < kProjectColumns * kDepthChunks / kProjectThreads; ++j) {
    const int32_t index = static_cast<int32_t>(threadIdx.x) + j * kProjectThreads;
    const int32_t row = index / kDepthChunks;
    const int32_t chunk = index % kDepthChunks;
    copy_async(to + swizzled(row, chunk, kDepthBytes),
               tile.weights + static_cast<int64_t>(row) * kLatents + depth + chunk * 8,
               true);
  }
}

}  // namespace hadal::cuda
