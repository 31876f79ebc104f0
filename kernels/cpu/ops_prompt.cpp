// Attention of prompt rows, non-absorbed form: cached latents are projected up to keys and values,
// tile by tile of 64 positions, and each query runs over the tiles in order with a running softmax.
//
// Tiles lie at fixed positions and a query's sums do not depend on its neighbours, so how a prompt
// is cut into chunks changes nothing. Heads are taken in groups so that the projected keys and
// values stay within kWorkspaceFloats.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu_ops.h"
#include "row_io.h"

namespace hadal::cpu {

namespace {

int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

/// One prompt row and one group of heads.
struct CpuOps::PromptRow {
  int64_t row = 0;
  int64_t token_begin = 0;
  int64_t num_tokens = 0;
  int64_t kv_length = 0;  ///< keys that the row's last token sees
  int64_t head_begin = 0;
  int64_t num_heads = 0;
  int64_t heads = 0;  ///< of the whole op
  int64_t head_dim = 0;
  int64_t nope = 0;
  int64_t value_dim = 0;
  int64_t value_stride = 0;
  int64_t latents = 0;
  int64_t num_tiles = 0;
  const float* const* q = nullptr;  ///< by token of the step
  float* keys = nullptr;            ///< [num_heads][num_tiles]: keys^T, then values
  float* out = nullptr;             ///< [num_tokens][heads * value_dim]

  int64_t tile_floats() const { return kKeyTile * (head_dim + value_stride); }

  float* tile(int64_t head, int64_t index) const {
    return keys + (head * num_tiles + index) * tile_floats();
  }
};

void CpuOps::attention_prompt(const AttentionArgs& args, Stream& /*stream*/) {
  require("attention_prompt", check(args));
  const BatchGeometry& geometry = *args.geometry;
  const CpuWeight& kv_b = cpu_weight(args.kv_b);
  PromptRow row;
  row.heads = args.q.shape[1];
  row.head_dim = args.q.shape[2];
  row.latents = args.kv_b->in_features();
  row.nope = row.head_dim - kv_record(args.kv_pages, row.latents).rope;
  row.value_dim = kv_b.v_head_dim;
  row.value_stride = round_up(row.value_dim, kLanes);
  row.q = query_rows(args);
  const int64_t columns = row.heads * row.value_dim;
  row.out = heads_out_.at_least(geometry.max_row_tokens * columns);
  const auto* offsets = geometry.row_offsets.as<int32_t>();
  for (int32_t r = 0; r < geometry.num_rows; ++r) {
    row.num_tokens = offsets[r + 1] - offsets[r];
    if (geometry.forms.as<uint8_t>()[r] != kFormPrompt || row.num_tokens == 0) {
      continue;
    }
    row.row = r;
    row.token_begin = offsets[r];
    row.kv_length = geometry.positions.as<int32_t>()[offsets[r + 1] - 1] + 1;
    row.num_tiles = (row.kv_length + kKeyTile - 1) / kKeyTile;
    const int64_t per_head = row.num_tiles * row.tile_floats();
    const int64_t group = std::clamp(kWorkspaceFloats / per_head, int64_t{1}, row.heads);
    row.keys = keys_.at_least(group * per_head);
    for (row.head_begin = 0; row.head_begin < row.heads; row.head_begin += group) {
      row.num_heads = std::min(group, row.heads - row.head_begin);
      prompt_row(args, row);
    }
    for_rows(row.num_tokens, columns, [&](int64_t i, int32_t /*thread*/) {
      store_activation(kernels_, args.out, row.token_begin + i, 0, columns, row.out + i * columns);
    });
  }
}

namespace {

/// Floats of attention's scratch.
struct AttentionScratch {
  int64_t keys = 0;
  int64_t heads_out = 0;
  int64_t absorbed = 0;
  int64_t partials = 0;
};

AttentionScratch scratch_for(const OpsLimits& limits) {
  const int64_t tokens = limits.max_step_tokens;
  const int64_t context = limits.max_context_tokens;
  const int64_t heads = limits.num_heads;
  const int64_t head_dim = limits.qk_nope_head_dim + limits.qk_rope_head_dim;
  const int64_t tile = kKeyTile * (head_dim + round_up(limits.v_head_dim, kLanes));
  const int64_t per_head = (context + kKeyTile - 1) / kKeyTile * tile;
  const int64_t group = std::clamp(
      kWorkspaceFloats / std::max(per_head, int64_t{1}), int64_t{1}, std::max(heads, int64_t{1}));
  AttentionScratch scratch;
  scratch.keys = group * per_head;
  scratch.heads_out = tokens * heads * limits.v_head_dim;
  const int64_t queries = std::min(tokens, kGeneratedQueries);
  scratch.absorbed = queries * heads * (limits.kv_lora_rank + limits.qk_rope_head_dim);
  const int64_t chunks = (context + kKvChunk - 1) / kKvChunk;
  const int64_t partial = heads * (limits.kv_lora_rank + 2);
  const int64_t most = std::max(kWorkspaceFloats, chunks * partial);
  scratch.partials = std::min(queries * chunks * partial, most);
  return scratch;
}

}  // namespace

int64_t CpuOps::reserve_bytes(const OpsLimits& limits) {
  const AttentionScratch scratch = scratch_for(limits);
  return 4 * (scratch.keys + scratch.heads_out + scratch.absorbed + scratch.partials);
}

void CpuOps::reserve(const OpsLimits& limits) {
  const AttentionScratch scratch = scratch_for(limits);
  keys_.at_least(scratch.keys);
  heads_out_.at_least(scratch.heads_out);
  absorbed_.at_least(scratch.absorbed);
  partials_.at_least(scratch.partials);
}

void CpuOps::prompt_row(const AttentionArgs& args, const PromptRow& row) {
  pool_.run(row.num_heads * row.num_tiles,
            [&](int64_t task, int32_t thread) { prompt_keys(args, row, task, thread); });
  const int64_t query_tiles = (row.num_tokens + kPromptQueries - 1) / kPromptQueries;
  pool_.run(row.num_heads * query_tiles,
            [&](int64_t task, int32_t thread) { prompt_queries(args, row, task, thread); });
}

/// Keys and values of one head and one tile of positions; positions past the row's end become zero.
void CpuOps::prompt_keys(const AttentionArgs& args,
                         const PromptRow& row,
                         int64_t task,
                         int32_t thread) {
  const CpuWeight& kv_b = cpu_weight(args.kv_b);
  const int64_t head = task / row.num_tiles;
  const int64_t index = task % row.num_tiles;
  const int64_t begin = index * kKeyTile;
  const int64_t count = std::min(kKeyTile, row.kv_length - begin);
  const KvRecord record = kv_record(args.kv_pages, row.latents);
  const int64_t width = record.latents + record.rope;
  ThreadScratch& s = scratch(thread);
  float* latents = s.row.at_least(kKeyTile * width);
  const float** rows = s.pointers.at_least(kKeyTile);
  const int32_t page = args.geometry->page_table.row<int32_t>(row.row)[begin / kKvPageTokens];
  const std::byte* tokens =
      args.kv_pages.data + page * args.kv_pages.strides[0] * size_of(args.kv_pages.dtype);
  const bool rounds = e4m3_latents_ && args.kv_b->dtype() == DType::f8_e4m3;
  for (int64_t t = 0; t < count; ++t) {
    rows[t] = latents + t * width;
    load_kv_record(kernels_, record, tokens + t * record.size_bytes(), latents + t * width);
    if (rounds) {
      round_to_e4m3(latents + t * width, row.latents);
    }
  }
  float* keys = row.tile(head, index);
  float* values = keys + row.head_dim * kKeyTile;
  std::fill(keys, keys + row.tile_floats(), 0.0F);
  const auto matrix_index = static_cast<size_t>(3 * (row.head_begin + head));
  const PanelMatrix& key_matrix = kv_b.matrices[matrix_index].matrix();
  for (int64_t panel = 0; panel < key_matrix.num_panels; panel += kMaxPanels) {
    const int64_t wide = std::min(kMaxPanels, key_matrix.num_panels - panel);
    const float* tile = gemm_tile(key_matrix, panel, wide, rows, count, thread);
    const int64_t columns = std::min(wide * kLanes, row.nope - panel * kLanes);
    for (int64_t d = 0; d < columns; ++d) {
      for (int64_t t = 0; t < count; ++t) {
        keys[(panel * kLanes + d) * kKeyTile + t] = tile[t * wide * kLanes + d];
      }
    }
  }
  for (int64_t d = row.nope; d < row.head_dim; ++d) {
    for (int64_t t = 0; t < count; ++t) {
      keys[d * kKeyTile + t] = rows[t][row.latents + d - row.nope];
    }
  }
  const PanelMatrix& value_matrix = kv_b.matrices[matrix_index + 1].matrix();
  for (int64_t panel = 0; panel < value_matrix.num_panels; panel += kMaxPanels) {
    const int64_t wide = std::min(kMaxPanels, value_matrix.num_panels - panel);
    const float* tile = gemm_tile(value_matrix, panel, wide, rows, count, thread);
    for (int64_t t = 0; t < count; ++t) {
      std::copy_n(
          tile + t * wide * kLanes, wide * kLanes, values + t * row.value_stride + panel * kLanes);
    }
  }
}

/// One tile of queries of one head over all tiles of keys that it sees.
void CpuOps::prompt_queries(const AttentionArgs& args,
                            const PromptRow& row,
                            int64_t task,
                            int32_t thread) {
  const int64_t head = task % row.num_heads;
  const int64_t query_begin = task / row.num_heads * kPromptQueries;
  const int64_t count = std::min(kPromptQueries, row.num_tokens - query_begin);
  const int64_t token = row.token_begin + query_begin;
  const int64_t global_head = row.head_begin + head;
  const auto* positions = args.geometry->positions.as<int32_t>() + token;
  ThreadScratch& s = scratch(thread);
  const float** q = s.pointers.at_least(count);
  int32_t* visible = s.indices.at_least(count);
  float* memory = s.tile.at_least(count * (kKeyTile + row.value_stride + 2));
  PromptTile tile;
  tile.scores = memory;
  tile.out = tile.scores + count * kKeyTile;
  tile.max = tile.out + count * row.value_stride;
  tile.sum = tile.max + count;
  for (int64_t i = 0; i < count; ++i) {
    q[i] = row.q[token + i] + global_head * row.head_dim;
    tile.max[i] = -std::numeric_limits<float>::infinity();
    tile.sum[i] = 0.0F;
  }
  std::fill(tile.out, tile.out + count * row.value_stride, 0.0F);
  tile.q = q;
  tile.num_queries = count;
  tile.key_dim = row.head_dim;
  tile.value_dim = row.value_dim;
  tile.value_stride = row.value_stride;
  tile.visible = visible;
  tile.scale = args.softmax_scale;
  const int64_t last = positions[count - 1];
  for (int64_t index = 0; index * kKeyTile <= last; ++index) {
    for (int64_t i = 0; i < count; ++i) {
      visible[i] = static_cast<int32_t>(
          std::clamp<int64_t>(positions[i] + 1 - index * kKeyTile, 0, kKeyTile));
    }
    tile.keys = row.tile(head, index);
    tile.values = tile.keys + row.head_dim * kKeyTile;
    kernels_.prompt_tile(tile);
  }
  const int64_t columns = row.heads * row.value_dim;
  for (int64_t i = 0; i < count; ++i) {
    float* out = tile.out + i * row.value_stride;
    for (int64_t d = 0; d < row.value_dim; ++d) {
      out[d] /= tile.sum[i];
    }
    float* target = row.out + (query_begin + i) * columns + global_head * row.value_dim;
    std::copy_n(out, row.value_dim, target);
  }
}

}  // namespace hadal::cpu
