// Attention for any sizes in float32 on the plain cores, the step's schedule, and the copies of
// kv_b. A block serves one (token, head): warps take keys in turn, lanes the features.
#include "attention.h"
#include "device_math.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 128;
constexpr int32_t kWarps = kThreads / 32;
constexpr int32_t kKeys = kKvPageTokens;  ///< of a tile
constexpr int32_t kScheduleThreads = 256;

__device__ float weight_at(const DeviceMatrix& w, int64_t n, int64_t k) {
  const std::byte* row = w.data + n * w.row_bytes;
  switch (w.dtype) {
    case DType::f8_e4m3: {
      const int64_t group = (k + w.column_offset) / 128;
      const float scale = w.scales[static_cast<int64_t>(w.scale_rows[n]) * w.num_groups + group];
      return e4m3_to_f32_device(reinterpret_cast<const uint8_t*>(row)[k]) * scale;
    }
    case DType::bf16:
      return bf16_bits_to_f32(reinterpret_cast<const uint16_t*>(row)[k]);
    case DType::f16:
      return __half2float(reinterpret_cast<const __half*>(row)[k]);
    default:
      return reinterpret_cast<const float*>(row)[k];
  }
}

__device__ int32_t token_of(const TokenRange& tokens, int32_t index) {
  const int32_t at = tokens.first + index;
  return tokens.generated == nullptr ? at : tokens.generated[at];
}

/// Latents, then rope features, of a position of a row of the step.
struct CacheRow {
  const StepView& step;
  int64_t row;
  int32_t latents;

  __device__ float at(int32_t position, int32_t feature) const {
    const int64_t page = step.page_table[row * step.table_stride + position / kKvPageTokens];
    const std::byte* record =
        step.pages + page * step.page_bytes + position % kKvPageTokens * step.record_bytes;
    switch (step.kv_type) {
      case DType::bf16:
        return bf16_bits_to_f32(reinterpret_cast<const uint16_t*>(record)[feature]);
      case DType::f8_e4m3:
        break;
      default:
        return reinterpret_cast<const float*>(record)[feature];
    }
    if (feature >= latents) {
      const auto* rope = reinterpret_cast<const uint16_t*>(record + step.rope_at);
      return bf16_bits_to_f32(rope[feature - latents]);
    }
    const auto* scales = reinterpret_cast<const float*>(record + step.scales_at);
    return e4m3_to_f32_device(static_cast<uint32_t>(record[feature])) *
           scales[feature / static_cast<int32_t>(kQuantGroup)];
  }
};

struct AbsorbedKeys {
  CacheRow cache;

  __device__ float key(int32_t position, int32_t i) const { return cache.at(position, i); }

  __device__ float value(int32_t position, int32_t j) const { return cache.at(position, j); }
};

struct ProjectedKeys {
  CacheRow cache;
  const float* kv;  ///< of page 0 of the row and this head
  int64_t page_stride;
  int32_t nope;
  int32_t slab;
  int32_t latents;

  __device__ const float* row(int32_t position) const {
    return kv + position / kKvPageTokens * page_stride + position % kKvPageTokens * slab;
  }

  __device__ float key(int32_t position, int32_t i) const {
    return i < nope ? row(position)[i] : cache.at(position, latents + i - nope);
  }

  __device__ float value(int32_t position, int32_t j) const { return row(position)[nope + j]; }
};

/// Softmax over positions [begin, end), in tiles of 64. q holds key_dim floats, sums value_dim
/// (both shared); gives the maximum and the total.
template <class Keys>
__device__ float2 attend(const Keys& keys,
                         const float* q,
                         int32_t key_dim,
                         int32_t value_dim,
                         int32_t begin,
                         int32_t end,
                         float scale,
                         float* sums) {
  __shared__ float scores[kKeys];
  const int32_t lane = threadIdx.x % 32;
  const int32_t warp = threadIdx.x / 32;
  for (int32_t j = threadIdx.x; j < value_dim; j += kThreads) {
    sums[j] = 0.0F;
  }
  float max = -INFINITY;
  float total = 0.0F;
  for (int32_t first = begin; first < end; first += kKeys) {
    const int32_t count = min(kKeys, end - first);
    __syncthreads();
    for (int32_t t = warp; t < kKeys; t += kWarps) {
      float dot = 0.0F;
      if (t < count) {
        for (int32_t i = lane; i < key_dim; i += 32) {
          dot += q[i] * keys.key(first + t, i);
        }
      }
      dot = warp_sum(dot);
      if (lane == 0) {
        scores[t] = t < count ? dot * scale : -INFINITY;
      }
    }
    __syncthreads();
    const float low = scores[lane];
    const float high = scores[lane + 32];
    const float new_max = fmaxf(max, warp_max(fmaxf(low, high)));
    const float keep = expf(max - new_max);
    const float p_low = expf(low - new_max);
    const float p_high = expf(high - new_max);
    total = total * keep + warp_sum(p_low + p_high);
    max = new_max;
    __syncthreads();
    if (warp == 0) {
      scores[lane] = p_low;
      scores[lane + 32] = p_high;
    }
    __syncthreads();
    for (int32_t j = threadIdx.x; j < value_dim; j += kThreads) {
      float sum = sums[j] * keep;
      for (int32_t t = 0; t < count; ++t) {
        sum += scores[t] * keys.value(first + t, j);
      }
      sums[j] = sum;
    }
  }
  return make_float2(max, total);
}

/// Grid (tokens, heads).
__global__ void __launch_bounds__(kThreads) absorb_kernel(GenericDecodeParams p) {
  const AttentionShape& s = p.common.shape;
  const int32_t head = blockIdx.y;
  const int64_t row = static_cast<int64_t>(token_of(p.tokens, blockIdx.x)) * s.heads + head;
  const int32_t width = s.latents + s.rope;
  float* out = p.absorbed + (static_cast<int64_t>(blockIdx.x) * s.heads + head) * width;
  const int64_t slab = static_cast<int64_t>(head) * (s.nope + s.value);
  for (int32_t c = threadIdx.x; c < width; c += kThreads) {
    float sum = 0.0F;
    if (c < s.latents) {
      for (int32_t d = 0; d < s.nope; ++d) {
        sum += load_plain(p.common.q, row, d) * weight_at(p.common.kv_b, slab + d, c);
      }
    } else {
      sum = load_plain(p.common.q, row, s.nope + c - s.latents);
    }
    out[c] = sum;
  }
}

/// Grid (splits, heads, tokens).
__global__ void __launch_bounds__(kThreads) generic_split_kernel(GenericDecodeParams p) {
  extern __shared__ float memory[];
  const AttentionShape& s = p.common.shape;
  const int32_t split = blockIdx.x;
  const int32_t head = blockIdx.y;
  const int64_t index = blockIdx.z;
  const int32_t token = token_of(p.tokens, blockIdx.z);
  const int32_t length = p.common.step.positions[token] + 1;
  if (split >= splits_of(length)) {
    return;
  }
  const int32_t width = s.latents + s.rope;
  float* q = memory;
  float* sums = memory + width;
  const float* absorbed = p.absorbed + (index * s.heads + head) * width;
  for (int32_t i = threadIdx.x; i < width; i += kThreads) {
    q[i] = absorbed[i];
  }
  const AbsorbedKeys keys{{p.common.step, p.common.step.token_rows[token], s.latents}};
  const float2 stats = attend(keys,
                              q,
                              width,
                              s.latents,
                              split_begin(length, split),
                              split_begin(length, split + 1),
                              p.common.scale,
                              sums);
  float* out = p.partial + ((index * p.most_splits + split) * s.heads + head) * (s.latents + 2);
  for (int32_t j = threadIdx.x; j < s.latents; j += kThreads) {
    out[j] = sums[j];
  }
  if (threadIdx.x == 0) {
    out[s.latents] = stats.x;
    out[s.latents + 1] = stats.y;
  }
}

/// Merges the splits in order and projects with W_UV. Grid (tokens, heads).
__global__ void __launch_bounds__(kThreads) generic_merge_kernel(GenericDecodeParams p) {
  extern __shared__ float memory[];
  const AttentionShape& s = p.common.shape;
  const int32_t head = blockIdx.y;
  const int64_t index = blockIdx.x;
  const int32_t token = token_of(p.tokens, blockIdx.x);
  const int32_t splits = splits_of(p.common.step.positions[token] + 1);
  const int64_t size = s.latents + 2;
  const float* partial = p.partial + (index * p.most_splits * s.heads + head) * size;
  const int64_t stride = s.heads * size;
  float max = -INFINITY;
  for (int32_t i = 0; i < splits; ++i) {
    max = fmaxf(max, partial[i * stride + s.latents]);
  }
  float total = 0.0F;
  for (int32_t i = 0; i < splits; ++i) {
    total += partial[i * stride + s.latents + 1] * expf(partial[i * stride + s.latents] - max);
  }
  for (int32_t c = threadIdx.x; c < s.latents; c += kThreads) {
    float sum = 0.0F;
    for (int32_t i = 0; i < splits; ++i) {
      sum += partial[i * stride + c] * expf(partial[i * stride + s.latents] - max);
    }
    memory[c] = splits > 0 ? sum / total : 0.0F;
  }
  __syncthreads();
  const int64_t slab = static_cast<int64_t>(head) * (s.nope + s.value) + s.nope;
  for (int32_t j = threadIdx.x; j < s.value; j += kThreads) {
    float sum = 0.0F;
    for (int32_t c = 0; c < s.latents; ++c) {
      sum += memory[c] * weight_at(p.common.kv_b, slab + j, c);
    }
    p.common.heads_out[(index * s.heads + head) * s.value + j] = sum;
  }
}

/// One warp a group of 128 columns. Grid (rows, groups / warps).
__global__ void __launch_bounds__(kThreads) store_generated_kernel(GenericDecodeParams p) {
  const int64_t columns = p.common.shape.heads * p.common.shape.value;
  const int64_t column =
      (static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.x / 32) * kQuantGroup;
  if (column >= columns) {
    return;
  }
  const float* in = p.common.heads_out + blockIdx.x * columns + column;
  float values[4] = {};
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    const int64_t k = 32 * j + threadIdx.x % 32;
    values[j] = column + k < columns ? in[k] : 0.0F;
  }
  store_group(p.common.out, token_of(p.tokens, blockIdx.x), column, columns, values);
}

__global__ void __launch_bounds__(kThreads) store_prompt_kernel(GenericParams p) {
  const int64_t columns = p.shape.heads * p.shape.value;
  const int64_t column =
      (static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.x / 32) * kQuantGroup;
  if (column >= columns || p.step.forms[p.step.token_rows[blockIdx.x]] != kFormPrompt) {
    return;
  }
  const float* in = p.heads_out + blockIdx.x * columns + column;
  float values[4] = {};
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    const int64_t k = 32 * j + threadIdx.x % 32;
    values[j] = column + k < columns ? in[k] : 0.0F;
  }
  store_group(p.out, blockIdx.x, column, columns, values);
}

/// Tokens that the row's last token sees.
__device__ int32_t row_length(const StepView& step, int32_t row) {
  return step.positions[step.row_offsets[row + 1] - 1] + 1;
}

/// Keys and values of a page and a head. Grid (pages, heads).
__global__ void __launch_bounds__(kThreads) generic_project_kernel(GenericPromptParams p) {
  const AttentionShape& s = p.common.shape;
  const StepSchedule& schedule = p.rows.schedule;
  const int32_t packed = schedule.page_begin[p.rows.begin] + static_cast<int32_t>(blockIdx.x);
  if (packed >= schedule.page_begin[p.rows.end]) {
    return;
  }
  const int32_t prompt = range_of(schedule.page_begin, p.common.step.num_prompt_rows, packed);
  const int32_t row = schedule.prompt_rows[prompt];
  const int32_t first = (packed - schedule.page_begin[prompt]) * kKvPageTokens;
  const int32_t count = min(kKvPageTokens, row_length(p.common.step, row) - first);
  const CacheRow cache{p.common.step, row, s.latents};
  const int32_t slab = s.nope + s.value;
  const int64_t head = p.first_head + blockIdx.y;
  float* out =
      p.kv + (static_cast<int64_t>(blockIdx.x) * p.num_heads + blockIdx.y) * kKvPageTokens * slab;
  for (int32_t i = threadIdx.x; i < kKvPageTokens * slab; i += kThreads) {
    const int32_t t = i / slab;
    float sum = 0.0F;
    if (t < count) {
      for (int32_t c = 0; c < s.latents; ++c) {
        sum += cache.at(first + t, c) * weight_at(p.common.kv_b, head * slab + i % slab, c);
      }
    }
    out[i] = sum;
  }
}

/// Grid (tokens of the step, heads).
__global__ void __launch_bounds__(kThreads) generic_prompt_kernel(GenericPromptParams p) {
  extern __shared__ float memory[];
  const AttentionShape& s = p.common.shape;
  const StepView& step = p.common.step;
  const StepSchedule& schedule = p.rows.schedule;
  const int32_t token = blockIdx.x;
  const int32_t row = step.token_rows[token];
  if (step.forms[row] != kFormPrompt) {
    return;
  }
  const int32_t prompt = range_of(schedule.prompt_rows, step.num_prompt_rows, row);
  if (prompt < p.rows.begin || prompt >= p.rows.end) {
    return;
  }
  const int32_t head = p.first_head + static_cast<int32_t>(blockIdx.y);
  const int32_t head_dim = s.nope + s.rope;
  const int32_t slab = s.nope + s.value;
  float* q = memory;
  float* sums = memory + head_dim;
  for (int32_t i = threadIdx.x; i < head_dim; i += kThreads) {
    q[i] = load_plain(p.common.q, static_cast<int64_t>(token) * s.heads + head, i);
  }
  const int64_t page = schedule.page_begin[prompt] - schedule.page_begin[p.rows.begin];
  const int64_t tile = static_cast<int64_t>(kKvPageTokens) * slab;
  const ProjectedKeys keys{{step, row, s.latents},
                           p.kv + (page * p.num_heads + blockIdx.y) * tile,
                           p.num_heads * tile,
                           s.nope,
                           slab,
                           s.latents};
  const float2 stats =
      attend(keys, q, head_dim, s.value, 0, step.positions[token] + 1, p.common.scale, sums);
  __syncthreads();
  float* out = p.common.heads_out + (static_cast<int64_t>(token) * s.heads + head) * s.value;
  for (int32_t j = threadIdx.x; j < s.value; j += kThreads) {
    out[j] = sums[j] / stats.y;
  }
}

struct Counts {
  int32_t generated;
  int32_t rows;
  int32_t pages;
  int32_t tiles;
};

__device__ Counts operator+(const Counts& a, const Counts& b) {
  return {a.generated + b.generated, a.rows + b.rows, a.pages + b.pages, a.tiles + b.tiles};
}

/// One block; rows in chunks, each with a scan over the block.
__global__ void __launch_bounds__(kScheduleThreads) schedule_kernel(ScheduleParams p) {
  __shared__ Counts sums[kScheduleThreads];
  const StepSchedule& out = p.schedule;
  const int32_t thread = threadIdx.x;
  Counts before{0, 0, 0, 0};
  for (int32_t first = 0; first < p.num_rows; first += kScheduleThreads) {
    const int32_t row = first + thread;
    Counts mine{0, 0, 0, 0};
    int32_t begin = 0;
    int32_t tokens = 0;
    if (row < p.num_rows) {
      begin = p.row_offsets[row];
      tokens = p.row_offsets[row + 1] - begin;
      if (p.forms[row] != kFormPrompt) {
        mine.generated = tokens;
      } else if (tokens > 0) {
        mine = {0,
                1,
                pages_of(p.positions[begin + tokens - 1] + 1),
                (tokens + kQueryTile - 1) / kQueryTile};
      } else {
        mine.rows = 1;
      }
    }
    sums[thread] = mine;
    __syncthreads();
    for (int32_t step = 1; step < kScheduleThreads; step *= 2) {
      const Counts left = thread >= step ? sums[thread - step] : Counts{0, 0, 0, 0};
      __syncthreads();
      sums[thread] = sums[thread] + left;
      __syncthreads();
    }
    const Counts end = before + sums[thread];
    if (mine.rows > 0) {
      out.prompt_rows[end.rows - 1] = row;
      out.page_begin[end.rows] = end.pages;
      out.tile_begin[end.rows] = end.tiles;
    }
    for (int32_t i = 0; i < mine.generated; ++i) {
      out.generated[end.generated - mine.generated + i] = begin + i;
    }
    before = before + sums[kScheduleThreads - 1];
    __syncthreads();
  }
  if (thread == 0) {
    out.page_begin[0] = 0;
    out.tile_begin[0] = 0;
  }
}

/// Grid (rows of kv_b), one thread a column at a time.
__global__ void __launch_bounds__(kThreads)
    kv_b_kernel(DeviceMatrix kv_b, uint16_t* dense, uint16_t* key_transposed) {
  const int64_t n = blockIdx.x;
  const int64_t head = n / kSlab;
  const int64_t d = n % kSlab;
  for (int64_t c = threadIdx.x; c < kLatents; c += kThreads) {
    const uint16_t bits = f32_to_bf16_bits(weight_at(kv_b, n, c));
    if (dense != nullptr) {
      dense[n * kLatents + c] = bits;
    }
    if (d < kNope) {
      key_transposed[(head * kLatents + c) * kNope + d] = bits;
    }
  }
}

uint32_t store_blocks(const AttentionShape& s) {
  const int64_t groups = (static_cast<int64_t>(s.heads) * s.value + kQuantGroup - 1) / kQuantGroup;
  return static_cast<uint32_t>((groups + kWarps - 1) / kWarps);
}

uint32_t unsigned_of(int32_t value) {
  return static_cast<uint32_t>(value);
}

}  // namespace

void launch_schedule(const ScheduleParams& params, cudaStream_t stream) {
  schedule_kernel<<<1, kScheduleThreads, 0, stream>>>(params);
}

void launch_kv_b(const DeviceMatrix& kv_b,
                 int32_t heads,
                 uint16_t* dense,
                 uint16_t* key_transposed,
                 cudaStream_t stream) {
  kv_b_kernel<<<unsigned_of(heads * kSlab), kThreads, 0, stream>>>(kv_b, dense, key_transposed);
}

void launch_generic_decode(const GenericDecodeParams& params, cudaStream_t stream) {
  const AttentionShape& s = params.common.shape;
  const uint32_t tokens = unsigned_of(params.tokens.count);
  const uint32_t heads = unsigned_of(s.heads);
  const dim3 grid(tokens, heads);
  absorb_kernel<<<grid, kThreads, 0, stream>>>(params);
  const size_t split_bytes = static_cast<size_t>(2 * s.latents + s.rope) * sizeof(float);
  generic_split_kernel<<<dim3(unsigned_of(params.most_splits), heads, tokens),
                         kThreads,
                         split_bytes,
                         stream>>>(params);
  const size_t merge_bytes = static_cast<size_t>(s.latents) * sizeof(float);
  generic_merge_kernel<<<grid, kThreads, merge_bytes, stream>>>(params);
  store_generated_kernel<<<dim3(tokens, store_blocks(s)), kThreads, 0, stream>>>(params);
}

void launch_generic_prompt(const GenericPromptParams& params, cudaStream_t stream) {
  const AttentionShape& s = params.common.shape;
  const uint32_t heads = unsigned_of(params.num_heads);
  generic_project_kernel<<<dim3(unsigned_of(params.rows.most_pages), heads), kThreads, 0, stream>>>(
      params);
  const size_t bytes = static_cast<size_t>(s.nope + s.rope + s.value) * sizeof(float);
  generic_prompt_kernel<<<dim3(unsigned_of(params.common.step.num_tokens), heads),
                          kThreads,
                          bytes,
                          stream>>>(params);
}

void store_generic_prompt(const GenericParams& params, cudaStream_t stream) {
  store_prompt_kernel<<<dim3(unsigned_of(params.step.num_tokens), store_blocks(params.shape)),
                        kThreads,
                        0,
                        stream>>>(params);
}

}  // namespace hadal::cuda
