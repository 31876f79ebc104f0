// Embedding, the latent cache (norm, RoPE, write, page copies) and RoPE of queries.
//
// latent_write is one block a token: a warp takes 128 columns (one group of quantisation) of the
// query's latent or of the cached one, in registers between the sum of squares and the store.
#include <algorithm>

#include "cuda_ops.h"
#include "device_math.cuh"
#include "device_views.h"
#include "kv_latents.cuh"
#include "launch.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kLatentWarps = 16;  ///< of latent_write, at most

int32_t blocks_for(int64_t count, int64_t per_block) {
  return static_cast<int32_t>((count + per_block - 1) / per_block);
}

struct EmbedParams {
  const int32_t* tokens;
  const int32_t* token_slots;
  const int32_t* last_tokens;
  ConstPlainMatrix table;
  PlainMatrix out;
  int64_t vocab_begin;
  int64_t num_local;
  int64_t hidden;
};

__global__ void __launch_bounds__(kThreads) embed_kernel(EmbedParams p) {
  const int64_t m = blockIdx.x;
  int32_t token = p.tokens[m];
  if (token < 0) {
    token = p.last_tokens[p.token_slots[m]];
  }
  const int64_t row = static_cast<int64_t>(token) - p.vocab_begin;
  const bool is_local = row >= 0 && row < p.num_local;
  for (int64_t k = 4 * threadIdx.x; k < p.hidden; k += 4 * kThreads) {
    float values[4] = {};
    if (is_local) {
      load_quad(p.table, row, k, p.hidden, values);
    }
    store_quad(p.out, m, k, p.hidden, values);
  }
}

/// Every thread owns elements of the page and takes the copies in order, so a copy may read what
/// one before it wrote.
__global__ void __launch_bounds__(kThreads) copy_pages_kernel(const int32_t* copies,
                                                              int32_t num_copies,
                                                              uint16_t* pool,
                                                              int64_t page_stride,
                                                              int64_t layer_stride,
                                                              int64_t width,
                                                              int64_t num_pages) {
  uint16_t* layer = pool + blockIdx.x * layer_stride;
  const int64_t at = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (at >= kKvPageTokens * width) {
    return;
  }
  for (int32_t i = 0; i < num_copies; ++i) {
    const int64_t from = copies[3 * i];
    const int64_t to = copies[3 * i + 1];
    const bool fits = from >= 0 && from < num_pages && to >= 0 && to < num_pages;
    if (fits && at < copies[3 * i + 2] * width) {
      layer[to * page_stride + at] = layer[from * page_stride + at];
    }
  }
}

struct Geometry {
  const int32_t* token_rows;
  const int32_t* positions;
  const int32_t* page_table;
  int64_t table_stride;
};

Geometry geometry_of(const BatchGeometry& g) {
  return {g.token_rows.as<int32_t>(),
          g.positions.as<int32_t>(),
          g.page_table.as<int32_t>(),
          g.page_table.strides[0]};
}

struct LatentParams {
  Geometry geometry;
  ConstPlainMatrix q;
  ConstPlainMatrix q_weight;
  ConstPlainMatrix kv;
  ConstPlainMatrix kv_weight;
  const float* rope_table;
  int64_t rope_stride;
  ActMatrix out_q;
  std::byte* pages;
  int64_t page_bytes;
  int64_t num_pages;
  int64_t record_bytes;
  int64_t scales_at;
  int64_t rope_at;
  DType kv_type;  ///< f32, bf16 or f8_e4m3
  int64_t q_rank;
  int64_t latents;
  int64_t rope;
  float eps;
  int32_t num_groups;  ///< of 128 columns of both latents
  int32_t num_tokens;
};

/// A warp's 128 columns of one of the two latents; lane i has columns column + 4 i + j.
struct LatentGroup {
  bool is_query;
  int32_t column;
  int32_t columns;  ///< of the latent

  __device__ LatentGroup(const LatentParams& p, int32_t index) {
    const auto query_groups = static_cast<int32_t>((p.q_rank + kQuantGroup - 1) / kQuantGroup);
    is_query = index < query_groups;
    columns = static_cast<int32_t>(is_query ? p.q_rank : p.latents);
    column = (is_query ? index : index - query_groups) * static_cast<int32_t>(kQuantGroup);
  }

  __device__ int32_t mine() const { return column + static_cast<int32_t>(threadIdx.x) % 32 * 4; }

  __device__ void load_values(const LatentParams& p, int64_t m, float (&out)[4]) const {
    load_quad(is_query ? p.q : p.kv, m, mine(), columns, out);
  }

  __device__ void load_weights(const LatentParams& p, float (&out)[4]) const {
    load_quad(is_query ? p.q_weight : p.kv_weight, 0, mine(), columns, out);
  }
};

/// Token m's place in the cache; null when it has none.
__device__ std::byte* record_of(const LatentParams& p, int64_t m, int64_t position) {
  if (position < 0) {
    return nullptr;
  }
  const int64_t row = p.geometry.token_rows[m];
  const int64_t page =
      p.geometry.page_table[row * p.geometry.table_stride + position / kKvPageTokens];
  if (page < 0 || page >= p.num_pages) {
    return nullptr;
  }
  return p.pages + page * p.page_bytes + position % kKvPageTokens * p.record_bytes;
}

/// The rope part, by one warp.
__device__ void write_rope(const LatentParams& p, int64_t m, int64_t position, std::byte* record) {
  const PlainMatrix rope{record + p.rope_at, 0, p.kv_type != DType::f32};
  const float* angles = p.rope_table + position * p.rope_stride;
  for (int64_t i = threadIdx.x % 32; i < p.rope / 2; i += 32) {
    const float even = load_plain(p.kv, m, p.latents + 2 * i);
    const float odd = load_plain(p.kv, m, p.latents + 2 * i + 1);
    const float cosine = angles[i];
    const float sine = angles[p.rope / 2 + i];
    store_plain(rope, 0, 2 * i, even * cosine - odd * sine);
    store_plain(rope, 0, 2 * i + 1, even * sine + odd * cosine);
  }
}

/// 1 / sqrt(mean(x^2) + eps) from the warps' sums of squares, in ascending order.
__device__ float norm_factor(const LatentParams& p, const float* squares, int64_t count) {
  float total = 0.0F;
  for (uint32_t w = 0; w < blockDim.x / 32; ++w) {
    total += squares[w];
  }
  return __fdiv_rn(1.0F, __fsqrt_rn(__fdiv_rn(total, static_cast<float>(count)) + p.eps));
}

__device__ void store_latents(const LatentParams& p,
                              const LatentGroup& group,
                              int64_t m,
                              std::byte* record,
                              const float (&values)[4]) {
  if (group.is_query) {
    store_group_quads(p.out_q, m, group.column, group.columns, values);
  } else if (record == nullptr) {
    return;
  } else if (p.kv_type == DType::f8_e4m3) {
    store_latent_group(record, p.scales_at, group.column, group.columns, values);
  } else {
    const PlainMatrix out{record, 0, p.kv_type == DType::bf16};
    store_quad(out, 0, group.mine(), group.columns, values);
  }
}

/// A warp's sums of squares of token m, of the query's latent and the cached one; `kept` are the
/// values of its first group.
__device__ void sum_squares(const LatentParams& p,
                            int64_t m,
                            const float (&kept)[4],
                            float (&partial)[2][kLatentWarps]) {
  const int32_t warp = threadIdx.x / 32;
  const auto warps = static_cast<int32_t>(blockDim.x) / 32;
  float query = 0.0F;
  float cached = 0.0F;
  for (int32_t index = warp; index < p.num_groups; index += warps) {
    const LatentGroup group(p, index);
    float values[4] = {kept[0], kept[1], kept[2], kept[3]};
    if (index != warp) {
      values[0] = values[1] = values[2] = values[3] = 0.0F;
      group.load_values(p, m, values);
    }
    float sum = 0.0F;
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      sum = fmaf(values[j], values[j], sum);
    }
    query += group.is_query ? sum : 0.0F;
    cached += group.is_query ? 0.0F : sum;
  }
  query = warp_sum(query);
  cached = warp_sum(cached);
  if (threadIdx.x % 32 == 0) {
    partial[0][warp] = query;
    partial[1][warp] = cached;
  }
}

/// Blocks take tokens in turn and read the next one's first groups ahead. blockDim.x = 32 times the
/// groups of both latents, at most kLatentWarps; a warp's groups past its first are read twice.
__global__ void __launch_bounds__(kLatentWarps * 32, 2) latent_write_kernel(LatentParams p) {
  __shared__ float partial[2][2][kLatentWarps];  // of this token and the one before
  const int32_t warp = threadIdx.x / 32;
  const auto warps = static_cast<int32_t>(blockDim.x) / 32;
  const LatentGroup first(p, warp);
  float first_weights[4] = {};
  first.load_weights(p, first_weights);
  wait_for_previous();
  let_next_start();
  float kept[4] = {};
  first.load_values(p, blockIdx.x, kept);
  int64_t position = p.geometry.positions[blockIdx.x];
  int32_t turn = 0;
  for (int64_t m = blockIdx.x; m < p.num_tokens; m += gridDim.x, turn ^= 1) {
    const int64_t next = m + gridDim.x;
    float following[4] = {};
    int64_t next_position = -1;
    if (next < p.num_tokens) {
      first.load_values(p, next, following);
      next_position = p.geometry.positions[next];
    }
    std::byte* record = record_of(p, m, position);
    if (warp == warps - 1 && record != nullptr) {
      write_rope(p, m, position, record);
    }
    sum_squares(p, m, kept, partial[turn]);
    __syncthreads();
    for (int32_t index = warp; index < p.num_groups; index += warps) {
      const LatentGroup group(p, index);
      float values[4] = {kept[0], kept[1], kept[2], kept[3]};
      float weights[4] = {
          first_weights[0], first_weights[1], first_weights[2], first_weights[3]};
      if (index != warp) {
        group.load_values(p, m, values);
        group.load_weights(p, weights);
      }
      const float factor = norm_factor(p, partial[turn][group.is_query ? 0 : 1], group.columns);
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        values[j] = values[j] * factor * weights[j];
      }
      store_latents(p, group, m, record, values);
    }
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      kept[j] = following[j];
    }
    position = next_position;
  }
}

/// One thread a pair; q's row is (token, head).
__global__ void __launch_bounds__(kThreads) rope_query_kernel(PlainMatrix q,
                                                              const int32_t* positions,
                                                              const float* rope_table,
                                                              int64_t rope_stride,
                                                              int64_t num_pairs,
                                                              int64_t heads,
                                                              int64_t head_dim,
                                                              int64_t half) {
  wait_for_previous();
  let_next_start();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= num_pairs) {
    return;
  }
  const int64_t i = index % half;
  const int64_t row = index / half;
  const int64_t position = positions[row / heads];
  if (position < 0) {
    return;
  }
  const float* angles = rope_table + position * rope_stride;
  const int64_t column = head_dim - 2 * half + 2 * i;
  const ConstPlainMatrix source{q.data, q.stride, q.is_bf16};
  const float even = load_plain(source, row, column);
  const float odd = load_plain(source, row, column + 1);
  store_plain(q, row, column, even * angles[i] - odd * angles[half + i]);
  store_plain(q, row, column + 1, even * angles[half + i] + odd * angles[i]);
}

}  // namespace

void CudaOps::embed(const EmbedArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("embed", check(args), stream);
  const int64_t tokens = args.tokens.shape[0];
  if (tokens > 0) {
    const EmbedParams params{args.tokens.as<int32_t>(),
                             args.token_slots.as<int32_t>(),
                             args.last_tokens.as<int32_t>(),
                             plain_matrix(args.table),
                             plain_matrix(args.out),
                             args.vocab_begin,
                             args.table.shape[0],
                             args.table.shape[1]};
    embed_kernel<<<static_cast<uint32_t>(tokens), kThreads, 0, handle>>>(params);
  }
  end("embed", handle);
}

void CudaOps::copy_pages(const PageCopyArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("copy_pages", check(args), stream);
  const TensorView& pool = args.kv_pool;
  const auto copies = static_cast<int32_t>(args.copies.shape[0]);
  if (copies > 0 && pool.shape.numel() > 0) {
    // Any record is moved as 16-bit words.
    const auto words = [&](int64_t elements) { return elements * size_of(pool.dtype) / 2; };
    const int64_t width = words(pool.shape[3]);
    const dim3 grid(static_cast<uint32_t>(pool.shape[1]),
                    static_cast<uint32_t>(blocks_for(kKvPageTokens * width, kThreads)));
    copy_pages_kernel<<<grid, kThreads, 0, handle>>>(args.copies.as<int32_t>(),
                                                     copies,
                                                     pool.as<uint16_t>(),
                                                     words(pool.strides[0]),
                                                     words(pool.strides[1]),
                                                     width,
                                                     pool.shape[0]);
  }
  end("copy_pages", handle);
}

void CudaOps::latent_write(const LatentWriteArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("latent_write", check(args), stream);
  const int32_t tokens = args.geometry->num_tokens;
  if (tokens > 0) {
    LatentParams p{};
    p.geometry = geometry_of(*args.geometry);
    if (!args.q_latent.empty()) {
      p.q = plain_matrix(args.q_latent);
      p.q_weight = plain_matrix(args.q_norm_weight);
      p.out_q = act_matrix(args.out_q);
      p.q_rank = args.q_latent.shape[1];
    }
    p.kv = plain_matrix(args.kv_latent);
    p.kv_weight = plain_matrix(args.kv_norm_weight);
    p.rope_table = args.rope_table.as<float>();
    p.rope_stride = args.rope_table.strides[0];
    p.latents = args.kv_norm_weight.shape[0];
    p.rope = args.rope_table.shape[1];
    const KvRecord record{args.kv_pages.dtype, p.latents, p.rope};
    p.pages = args.kv_pages.data;
    p.page_bytes = args.kv_pages.strides[0] * size_of(record.dtype);
    p.num_pages = args.kv_pages.shape[0];
    p.record_bytes = record.size_bytes();
    p.scales_at = record.scales_at();
    p.rope_at = record.rope_at();
    p.kv_type = record.dtype;
    p.eps = args.eps;
    p.num_groups = blocks_for(p.q_rank, kQuantGroup) + blocks_for(p.latents, kQuantGroup);
    p.num_tokens = tokens;
    const int32_t warps = std::min(p.num_groups, kLatentWarps);
    constexpr int32_t kBlocksEach = 2;  // that a multiprocessor holds
    launch_early(
        latent_write_kernel,
        dim3(static_cast<uint32_t>(std::min(tokens, kBlocksEach * device_.num_multiprocessors))),
        dim3(static_cast<uint32_t>(warps * 32)),
        0,
        handle,
        p);
  }
  end("latent_write", handle);
}

void CudaOps::rope_query(const RopeQueryArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("rope_query", check(args), stream);
  const int64_t heads = args.q.shape[1];
  const int64_t head_dim = args.q.shape[2];
  const int64_t half = args.rope_table.shape[1] / 2;
  const int64_t pairs = args.q.shape[0] * heads * half;
  if (pairs > 0) {
    const PlainMatrix q{args.q.data, head_dim, args.q.dtype == DType::bf16};
    launch_early(rope_query_kernel,
                 dim3(static_cast<uint32_t>(blocks_for(pairs, kThreads))),
                 dim3(kThreads),
                 0,
                 handle,
                 q,
                 args.geometry->positions.as<int32_t>(),
                 args.rope_table.as<float>(),
                 args.rope_table.strides[0],
                 pairs,
                 heads,
                 head_dim,
                 half);
  }
  end("rope_query", handle);
}

}  // namespace hadal::cuda
