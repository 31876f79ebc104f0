// The latent cache (norm, RoPE, write, page copies) and attention of generated rows, absorbed form.
//
// A query's cached tokens are cut into chunks of kKvChunk at fixed positions; each (query, chunk)
// is a task with its own softmax, and the partials are merged in order of position. So a long
// context uses all threads, and the result does not depend on how many there are.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu_ops.h"
#include "row_io.h"

namespace hadal::cpu {

namespace {

/// Rotates the pairs of x by the angles of one position.
void rope(float* x, const float* table_row, int64_t rope_dim) {
  const int64_t half = rope_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float cosine = table_row[i];
    const float sine = table_row[half + i];
    const float even = x[2 * i];
    const float odd = x[2 * i + 1];
    x[2 * i] = even * cosine - odd * sine;
    x[2 * i + 1] = even * sine + odd * cosine;
  }
}

int64_t page_of(const BatchGeometry& geometry, int64_t row, int64_t position) {
  return geometry.page_table.row<int32_t>(row)[position / kKvPageTokens];
}

std::byte* token_address(std::byte* pages,
                         const ConstTensorView& view,
                         int64_t page,
                         int64_t slot) {
  return pages + (page * view.strides[0] + slot * view.strides[1]) * size_of(view.dtype);
}

}  // namespace

void CpuOps::copy_pages(const PageCopyArgs& args, Stream& /*stream*/) {
  require("copy_pages", check(args));
  const TensorView& pool = args.kv_pool;
  const int64_t width_bytes = pool.shape[3] * size_of(pool.dtype);
  for (int64_t i = 0; i < args.copies.shape[0]; ++i) {
    const auto* copy = args.copies.row<int32_t>(i);
    HADAL_CHECK(copy[0] >= 0 && copy[0] < pool.shape[0] && copy[1] >= 0 &&
                    copy[1] < pool.shape[0] && copy[2] >= 0 && copy[2] <= kKvPageTokens,
                "copy_pages: a copy is out of bounds");
    for (int64_t layer = 0; layer < pool.shape[1]; ++layer) {
      const int64_t at = layer * pool.strides[1];
      const int64_t size = size_of(pool.dtype);
      std::memcpy(pool.data + (copy[1] * pool.strides[0] + at) * size,
                  pool.data + (copy[0] * pool.strides[0] + at) * size,
                  static_cast<size_t>(copy[2] * width_bytes));
    }
  }
}

void CpuOps::latent_write(const LatentWriteArgs& args, Stream& /*stream*/) {
  require("latent_write", check(args));
  const BatchGeometry& geometry = *args.geometry;
  const int64_t latents = args.kv_norm_weight.shape[0];
  const int64_t rope_dim = args.rope_table.shape[1];
  const int64_t width = latents + rope_dim;
  const KvRecord record{args.kv_pages.dtype, latents, rope_dim};
  const int64_t q_rank = args.q_latent.empty() ? 0 : args.q_latent.shape[1];
  float* weights = inputs_.at_least(latents + q_rank);
  float* q_weights = weights + latents;
  load_row(kernels_, args.kv_norm_weight, 0, 0, latents, weights);
  if (q_rank > 0) {
    load_row(kernels_, args.q_norm_weight, 0, 0, q_rank, q_weights);
  }
  const auto normalise = [&](float* x, const float* weight, int64_t count) {
    const float mean = kernels_.sum_of_squares(x, count) / static_cast<float>(count);
    const float factor = 1.0F / std::sqrt(mean + args.eps);
    for (int64_t i = 0; i < count; ++i) {
      x[i] = x[i] * factor * weight[i];
    }
  };
  for_rows(geometry.num_tokens, (width + q_rank) * 4, [&](int64_t m, int32_t thread) {
    float* x = scratch(thread).row.at_least(std::max(width, q_rank));
    if (q_rank > 0) {
      load_row(kernels_, args.q_latent, m, 0, q_rank, x);
      normalise(x, q_weights, q_rank);
      store_activation(kernels_, args.out_q, m, 0, q_rank, x);
    }
    load_row(kernels_, args.kv_latent, m, 0, width, x);
    normalise(x, weights, latents);
    const int64_t position = geometry.positions.as<int32_t>()[m];
    if (position < 0) {
      return;
    }
    rope(x + latents, args.rope_table.row<float>(position), rope_dim);
    const int64_t page = page_of(geometry, geometry.token_rows.as<int32_t>()[m], position);
    HADAL_CHECK(page >= 0 && page < args.kv_pages.shape[0], "latent_write: page out of bounds");
    write_kv_record(
        record,
        x,
        token_address(args.kv_pages.data, args.kv_pages, page, position % kKvPageTokens));
  });
}

void CpuOps::rope_query(const RopeQueryArgs& args, Stream& /*stream*/) {
  require("rope_query", check(args));
  const int64_t heads = args.q.shape[1];
  const int64_t head_dim = args.q.shape[2];
  const int64_t rope_dim = args.rope_table.shape[1];
  TensorView q = args.q;
  q.shape = Shape{args.q.shape[0], heads * head_dim};
  q.strides = Shape{heads * head_dim, 1};
  for_rows(args.q.shape[0], heads * rope_dim, [&](int64_t m, int32_t thread) {
    float* x = scratch(thread).row.at_least(rope_dim);
    const int64_t position = args.geometry->positions.as<int32_t>()[m];
    if (position < 0) {
      return;
    }
    const float* angles = args.rope_table.row<float>(position);
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t column = (head + 1) * head_dim - rope_dim;
      load_row(kernels_, q, m, column, rope_dim, x);
      rope(x, angles, rope_dim);
      store_row(kernels_, q, m, column, rope_dim, x);
    }
  });
}

const float* const* CpuOps::query_rows(const AttentionArgs& args) {
  ConstActivationView q;
  q.format = args.q.dtype == DType::bf16 ? ActFormat::bf16 : ActFormat::f32;
  q.values = args.q;
  q.values.shape = Shape{args.q.shape[0], args.q.shape[1] * args.q.shape[2]};
  q.values.strides = Shape{q.values.shape[1], 1};
  return rows_of(q, queries_, query_pointers_);
}

/// Some queries of the absorbed form, with the chunks of the cache that each of them reads.
struct CpuOps::GeneratedBatch {
  struct Chunk {
    int32_t query = 0;  ///< index into tokens
    int32_t index = 0;  ///< of the chunk in its sequence
  };

  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t nope = 0;
  int64_t latents = 0;
  int64_t width = 0;                 ///< latents + rope
  const float* const* q = nullptr;   ///< by token of the step
  std::vector<int32_t> tokens;       ///< tokens of the step
  std::vector<int32_t> first_chunk;  ///< [queries + 1] into chunks
  std::vector<Chunk> chunks;
  float* absorbed = nullptr;  ///< [queries][heads][width]
  float* partial = nullptr;   ///< [chunks][heads][latents + 2]: sums, then maximum, then total

  int64_t num_queries() const { return static_cast<int64_t>(tokens.size()); }

  float* partial_of(int64_t chunk) const { return partial + chunk * heads * (latents + 2); }
};

void CpuOps::attention_generated(const AttentionArgs& args, Stream& /*stream*/) {
  require("attention_generated", check(args));
  const BatchGeometry& geometry = *args.geometry;
  GeneratedBatch batch;
  batch.heads = args.q.shape[1];
  batch.head_dim = args.q.shape[2];
  batch.latents = args.kv_b->in_features();
  batch.width = batch.latents + kv_record(args.kv_pages, batch.latents).rope;
  batch.nope = batch.head_dim - (batch.width - batch.latents);
  batch.q = query_rows(args);
  const auto flush = [&] {
    if (!batch.tokens.empty()) {
      batch.first_chunk.push_back(static_cast<int32_t>(batch.chunks.size()));
      generated_batch(args, batch);
    }
    batch.tokens.clear();
    batch.first_chunk.clear();
    batch.chunks.clear();
  };
  for (int32_t m = 0; m < geometry.num_tokens; ++m) {
    const int32_t row = geometry.token_rows.as<int32_t>()[m];
    if (geometry.forms.as<uint8_t>()[row] != kFormGenerated) {
      continue;
    }
    const int32_t length = geometry.positions.as<int32_t>()[m] + 1;
    if (length == 0) {
      const int64_t columns = args.out.values.shape[1];
      float* zeros = scratch(0).row.at_least(columns);
      std::fill_n(zeros, columns, 0.0F);
      store_activation(kernels_, args.out, m, 0, columns, zeros);
      continue;
    }
    const auto chunks = static_cast<int32_t>((length + kKvChunk - 1) / kKvChunk);
    const auto planned = static_cast<int64_t>(batch.chunks.size()) + chunks;
    if (planned * batch.heads * (batch.latents + 2) > kWorkspaceFloats ||
        batch.num_queries() == kGeneratedQueries) {
      flush();
    }
    batch.first_chunk.push_back(static_cast<int32_t>(batch.chunks.size()));
    for (int32_t chunk = 0; chunk < chunks; ++chunk) {
      batch.chunks.push_back(
          GeneratedBatch::Chunk{static_cast<int32_t>(batch.tokens.size()), chunk});
    }
    batch.tokens.push_back(m);
  }
  flush();
}

void CpuOps::generated_batch(const AttentionArgs& args, GeneratedBatch& batch) {
  const auto num_chunks = static_cast<int64_t>(batch.chunks.size());
  batch.absorbed = absorbed_.at_least(batch.num_queries() * batch.heads * batch.width);
  batch.partial = partials_.at_least(num_chunks * batch.heads * (batch.latents + 2));
  absorb_queries(args, batch);
  pool_.run(num_chunks,
            [&](int64_t task, int32_t thread) { generated_chunk(args, batch, task, thread); });
  merge_and_project(args, batch);
}

/// absorbed[query][head] = (W_UK^T q_nope, q_pe).
void CpuOps::absorb_queries(const AttentionArgs& args, const GeneratedBatch& batch) {
  const CpuWeight& kv_b = cpu_weight(args.kv_b);
  const int64_t panels = kv_b.matrices[2].matrix().num_panels;
  const int64_t groups = (panels + 4 * kMaxPanels - 1) / (4 * kMaxPanels);
  const int64_t blocks = (batch.num_queries() + kMaxGemmRows - 1) / kMaxGemmRows;
  pool_.run(batch.heads * groups * blocks, [&](int64_t task, int32_t thread) {
    const int64_t head = task % batch.heads;
    const int64_t group = task / batch.heads % groups;
    const int64_t query_begin = task / batch.heads / groups * kMaxGemmRows;
    const int64_t count = std::min(kMaxGemmRows, batch.num_queries() - query_begin);
    const PanelMatrix& matrix = kv_b.matrices[static_cast<size_t>(3 * head + 2)].matrix();
    const float** rows = scratch(thread).pointers.at_least(count);
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = batch.q[batch.tokens[static_cast<size_t>(query_begin + i)]] + head * batch.head_dim;
    }
    const int64_t panel_end = std::min(panels, (group + 1) * 4 * kMaxPanels);
    for (int64_t panel = group * 4 * kMaxPanels; panel < panel_end; panel += kMaxPanels) {
      const int64_t wide = std::min(kMaxPanels, panel_end - panel);
      const float* tile = gemm_tile(matrix, panel, wide, rows, count, thread);
      const int64_t columns = std::min(wide * kLanes, batch.latents - panel * kLanes);
      for (int64_t i = 0; i < count; ++i) {
        float* out = batch.absorbed + ((query_begin + i) * batch.heads + head) * batch.width;
        std::copy_n(tile + i * wide * kLanes, columns, out + panel * kLanes);
      }
    }
    if (group == 0) {
      for (int64_t i = 0; i < count; ++i) {
        float* out = batch.absorbed + ((query_begin + i) * batch.heads + head) * batch.width;
        std::copy_n(rows[i] + batch.nope, batch.width - batch.latents, out + batch.latents);
      }
    }
  });
}

void CpuOps::generated_chunk(const AttentionArgs& args,
                             const GeneratedBatch& batch,
                             int64_t task,
                             int32_t thread) {
  const BatchGeometry& geometry = *args.geometry;
  const GeneratedBatch::Chunk& chunk = batch.chunks[static_cast<size_t>(task)];
  const int32_t token = batch.tokens[static_cast<size_t>(chunk.query)];
  const int64_t row = geometry.token_rows.as<int32_t>()[token];
  const int64_t length = geometry.positions.as<int32_t>()[token] + 1;
  const int64_t begin = chunk.index * kKvChunk;
  ThreadScratch& s = scratch(thread);
  const void** keys = s.keys.at_least(kKvChunk);
  AbsorbedChunk work;
  work.num_tokens = std::min(kKvChunk, length - begin);
  work.keys_are_bf16 = args.kv_pages.dtype == DType::bf16;
  const auto* pages = args.kv_pages.data;
  for (int64_t t = 0; t < work.num_tokens; ++t) {
    const int64_t page = page_of(geometry, row, begin + t);
    keys[t] = pages + (page * args.kv_pages.strides[0] +
                       (begin + t) % kKvPageTokens * args.kv_pages.strides[1]) *
                          size_of(args.kv_pages.dtype);
  }
  const KvRecord record = kv_record(args.kv_pages, batch.latents);
  const bool rounds = e4m3_latents_ && args.kv_b->dtype() == DType::f8_e4m3;
  if (rounds || record.is_fp8()) {
    float* plain = s.row.at_least(kKvChunk * batch.width);
    for (int64_t t = 0; t < work.num_tokens; ++t) {
      float* key = plain + t * batch.width;
      load_kv_record(kernels_, record, static_cast<const std::byte*>(keys[t]), key);
      if (rounds) {
        round_to_e4m3(key, batch.latents);
      }
      keys[t] = key;
    }
    work.keys_are_bf16 = false;
  }
  work.q = batch.absorbed + chunk.query * batch.heads * batch.width;
  work.heads = batch.heads;
  work.width = batch.width;
  work.latents = batch.latents;
  work.keys = keys;
  work.scale = args.softmax_scale;
  work.scores = s.tile.at_least(batch.heads * kKvChunk);
  work.out = batch.partial_of(task);
  work.max_out = work.out + batch.heads * batch.latents;
  work.sum_out = work.max_out + batch.heads;
  kernels_.absorbed_chunk(work);
}

/// Merges the chunks of every (query, head) in order, then projects with W_UV.
void CpuOps::merge_and_project(const AttentionArgs& args, const GeneratedBatch& batch) {
  const CpuWeight& kv_b = cpu_weight(args.kv_b);
  const int64_t v_dim = kv_b.v_head_dim;
  const int64_t queries = batch.num_queries();
  float* heads_out = heads_out_.at_least(queries * batch.heads * v_dim);
  pool_.run(batch.heads, [&](int64_t head, int32_t thread) {
    ThreadScratch& s = scratch(thread);
    const float** rows = s.pointers.at_least(queries);
    for (int64_t query = 0; query < queries; ++query) {
      const int64_t first = batch.first_chunk[static_cast<size_t>(query)];
      const int64_t last = batch.first_chunk[static_cast<size_t>(query) + 1];
      float* sums = batch.partial_of(first) + head * batch.latents;
      const float* stats = batch.partial_of(first) + batch.heads * batch.latents + head;
      float max = stats[0];
      float total = stats[batch.heads];
      for (int64_t chunk = first + 1; chunk < last; ++chunk) {
        const float* more = batch.partial_of(chunk) + head * batch.latents;
        const float* more_stats = batch.partial_of(chunk) + batch.heads * batch.latents + head;
        const float new_max = std::max(max, more_stats[0]);
        const float keep = std::exp(max - new_max);
        const float take = std::exp(more_stats[0] - new_max);
        for (int64_t d = 0; d < batch.latents; ++d) {
          sums[d] = sums[d] * keep + more[d] * take;
        }
        total = total * keep + more_stats[batch.heads] * take;
        max = new_max;
      }
      for (int64_t d = 0; d < batch.latents; ++d) {
        sums[d] /= total;
      }
      rows[query] = sums;
    }
    const PanelMatrix& matrix = kv_b.matrices[static_cast<size_t>(3 * head + 1)].matrix();
    for (int64_t begin = 0; begin < queries; begin += kMaxGemmRows) {
      const int64_t count = std::min(kMaxGemmRows, queries - begin);
      for (int64_t panel = 0; panel < matrix.num_panels; panel += kMaxPanels) {
        const int64_t wide = std::min(kMaxPanels, matrix.num_panels - panel);
        const float* tile = gemm_tile(matrix, panel, wide, rows + begin, count, thread);
        const int64_t columns = std::min(wide * kLanes, v_dim - panel * kLanes);
        for (int64_t i = 0; i < count; ++i) {
          std::copy_n(tile + i * wide * kLanes,
                      columns,
                      heads_out + ((begin + i) * batch.heads + head) * v_dim + panel * kLanes);
        }
      }
    }
  });
  for_rows(queries, batch.heads * v_dim, [&](int64_t query, int32_t /*thread*/) {
    store_activation(kernels_,
                     args.out,
                     batch.tokens[static_cast<size_t>(query)],
                     0,
                     batch.heads * v_dim,
                     heads_out + query * batch.heads * v_dim);
  });
}

}  // namespace hadal::cpu
