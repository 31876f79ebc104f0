// What the kernels of prompt rows share: which queries a block has, and how they are stored.
#pragma once

#include "attention.h"
#include "device_math.cuh"

namespace hadal::cuda {

/// Tokens that the row's last token sees.
__device__ inline int32_t row_length(const StepView& step, int32_t row) {
  return step.positions[step.row_offsets[row + 1] - 1] + 1;
}

/// Queries of a block: a whole tile, or a part of one.
struct QueryTile {
  int64_t row;       ///< of the step
  int64_t page;      ///< of the row's first in PromptParams::kv
  int32_t token;     ///< of the step: the first query
  int32_t position;  ///< of it
  int32_t count;     ///< fewer at a row's end; 0 = none
};

/// Tile `index` from the last, since the last tiles of a row see most; part `part` of kQueries.
template <int32_t kQueries>
__device__ inline QueryTile find_query_tile(const PromptParams& p, int32_t index, int32_t part) {
  const StepSchedule& schedule = p.rows.schedule;
  QueryTile result{};
  const int32_t tile = schedule.tile_begin[p.rows.end] - 1 - index;
  if (tile < schedule.tile_begin[p.rows.begin]) {
    return result;
  }
  const int32_t prompt = range_of(schedule.tile_begin, p.step.num_prompt_rows, tile);
  result.row = schedule.prompt_rows[prompt];
  result.page = schedule.page_begin[prompt] - schedule.page_begin[p.rows.begin];
  result.token = p.step.row_offsets[result.row] +
                 (tile - schedule.tile_begin[prompt]) * kQueryTile + part * kQueries;
  const int32_t left = p.step.row_offsets[result.row + 1] - result.token;
  if (left > 0) {
    result.count = left < kQueries ? left : kQueries;
    result.position = p.step.positions[result.token];
  }
  return result;
}

/// Stores a warp's sixteen queries from `first` on, those below `num_queries`: lane l has elements
/// n of queries l / 4 and l / 4 + 8 as mma's C. A head's 128 values are one quantisation group, and
/// four lanes hold a query's.
__device__ inline void store_queries(const PromptParams& p,
                                     const float (&out)[16][4],
                                     const float (&totals)[2],
                                     int64_t token,
                                     int32_t first,
                                     int32_t num_queries,
                                     int64_t head) {
  const int32_t lane = threadIdx.x % 32;
  const int32_t i = lane % 4;
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    const int32_t query = first + lane / 4 + 8 * h;
    float values[16][2];
    float amax = 0.0F;
#pragma unroll
    for (int32_t n = 0; n < 16; ++n) {
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        values[n][e] = out[n][2 * h + e] / totals[h];
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

}  // namespace hadal::cuda
