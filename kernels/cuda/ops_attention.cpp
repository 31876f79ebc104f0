// Attention: the step's schedule, the choice of kernels, and how much is done at once.
//
// The choice depends on sizes and formats alone, which a model fixes, so a row's bits are the same
// in every batch. What does not fit the workspace at once is done in parts: generated tokens in
// ranges, prompt rows in groups of heads, then row by row.
#include <algorithm>

#include <hadal/ops/kv_record.h>

#include "attention.h"
#include "cuda_ops.h"

namespace hadal::cuda {

namespace {

constexpr int64_t kAlignment = 256;  ///< of the workspace's parts

/// Whether rows of this many bytes begin where 16 can be copied at once.
bool is_aligned(const void* data, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row_bytes % 16 == 0;
}

AttentionShape shape_of(const AttentionArgs& args) {
  AttentionShape shape;
  shape.heads = static_cast<int32_t>(args.q.shape[1]);
  shape.latents = static_cast<int32_t>(args.kv_b->in_features());
  shape.rope = static_cast<int32_t>(kv_record(args.kv_pages, shape.latents).rope);
  shape.nope = static_cast<int32_t>(args.q.shape[2]) - shape.rope;
  shape.value = static_cast<int32_t>(args.kv_b->out_features()) / shape.heads - shape.nope;
  return shape;
}

/// Whether the tensor core kernels serve these sizes and formats.
bool is_standard(const AttentionArgs& args) {
  const ConstTensorView& pages = args.kv_pages;
  const KvRecord record{pages.dtype, kLatents, kRope};
  return cuda_weight(args.kv_b).transposed_keys() != nullptr && args.q.dtype == DType::bf16 &&
         pages.dtype != DType::f32 && args.q.shape[2] == kHeadDim &&
         pages.shape[2] == record.elements() && is_aligned(args.q.data, kHeadDim * 2) &&
         is_aligned(pages.data, pages.strides[0] * size_of(pages.dtype));
}

StepView step_view(const AttentionArgs& args) {
  const BatchGeometry& g = *args.geometry;
  StepView step;
  step.row_offsets = g.row_offsets.as<int32_t>();
  step.token_rows = g.token_rows.as<int32_t>();
  step.positions = g.positions.as<int32_t>();
  step.page_table = g.page_table.as<int32_t>();
  step.forms = g.forms.as<uint8_t>();
  step.table_stride = g.page_table.strides[0];
  step.pages = args.kv_pages.data;
  step.page_bytes = args.kv_pages.strides[0] * size_of(args.kv_pages.dtype);
  step.num_tokens = g.num_tokens;
  step.num_prompt_rows = g.num_prompt_rows;
  const KvRecord record = kv_record(args.kv_pages, args.kv_b->in_features());
  step.kv_type = record.dtype;
  step.record_bytes = static_cast<int32_t>(record.size_bytes());
  step.scales_at = static_cast<int32_t>(record.scales_at());
  step.rope_at = static_cast<int32_t>(record.rope_at());
  return step;
}

GenericParams generic_params(const AttentionArgs& args) {
  GenericParams params;
  params.step = step_view(args);
  params.shape = shape_of(args);
  params.kv_b = cuda_weight(args.kv_b).matrix;
  params.q = {args.q.data, args.q.shape[2], args.q.dtype == DType::bf16};
  params.out = act_matrix(args.out);
  params.scale = args.softmax_scale;
  return params;
}

int64_t generic_decode_floats(const AttentionShape& shape, int32_t most_splits) {
  const int64_t partial = static_cast<int64_t>(most_splits) * (shape.latents + 2);
  return shape.heads * (shape.latents + shape.rope + partial + shape.value);
}

/// Groups of heads and of rows such that `per_page_and_head` bytes for each page and head fit.
struct PromptParts {
  bool row_by_row = false;
  int32_t heads = 0;  ///< of a group
};

PromptParts split_prompt(const BatchGeometry& g,
                         int32_t heads,
                         int64_t free_bytes,
                         int64_t per_page_and_head) {
  const auto groups = [&](int64_t pages) {
    return static_cast<int32_t>(
        std::min<int64_t>(heads, free_bytes / std::max<int64_t>(1, pages * per_page_and_head)));
  };
  PromptParts parts;
  parts.heads = groups(g.num_prompt_pages);
  if (parts.heads == 0) {
    parts.row_by_row = true;
    parts.heads = groups(pages_of(g.max_kv_length));
  }
  HADAL_CHECK(parts.heads > 0,
              "attention_prompt: a head's keys and values of " + std::to_string(g.max_kv_length) +
                  " tokens do not fit the workspace: reserve() was given less");
  return parts;
}

/// Calls body(range) for all prompt rows at once or for each.
template <class Body>
void for_prompt_ranges(const BatchGeometry& g,
                       const PromptParts& parts,
                       const StepSchedule& schedule,
                       const Body& body) {
  const int32_t step = parts.row_by_row ? 1 : g.num_prompt_rows;
  for (int32_t begin = 0; begin < g.num_prompt_rows; begin += step) {
    PromptRange range;
    range.schedule = schedule;
    range.begin = begin;
    range.end = begin + step;
    range.most_pages = parts.row_by_row ? pages_of(g.max_kv_length) : g.num_prompt_pages;
    range.most_tiles = parts.row_by_row ? (g.max_row_tokens + kQueryTile - 1) / kQueryTile
                                        : g.num_prompt_tokens / kQueryTile + g.num_prompt_rows;
    body(range);
  }
}

}  // namespace

int64_t attention_workspace_bytes(const OpsLimits& limits) {
  // Room to run well; less would only mean more launches, down to one token or one head at a time.
  constexpr int64_t kEnoughDecode = int64_t{256} << 20;
  constexpr int64_t kEnoughPrompt = int64_t{512} << 20;
  const int32_t splits = most_splits_of(limits.max_context_tokens);
  AttentionShape shape;
  shape.heads = limits.num_heads;
  shape.nope = limits.qk_nope_head_dim;
  shape.rope = limits.qk_rope_head_dim;
  shape.value = limits.v_head_dim;
  shape.latents = limits.kv_lora_rank;
  const int64_t token = generic_decode_floats(shape, splits) * 4;
  const int64_t decode = std::max(token, std::min(token * limits.max_rows, kEnoughDecode));
  const int64_t slab = static_cast<int64_t>(shape.nope) + shape.value;
  const int64_t head =
      static_cast<int64_t>(pages_of(limits.max_context_tokens)) * kKvPageTokens * slab * 4;
  const int64_t heads_out =
      static_cast<int64_t>(limits.max_step_tokens) * shape.heads * shape.value * 4;
  const int64_t prompt = std::max(head, std::min(head * shape.heads, kEnoughPrompt)) + heads_out;
  return std::max(decode, prompt) + 16 * kAlignment;
}

int64_t sample_workspace_bytes(const OpsLimits& limits) {
  // Gathered logits of all rows, padded slices included, some adjusted rows and their scans.
  constexpr int64_t kAdjusted = 64;
  constexpr int64_t kPadding = 4096;
  const int64_t vocab = static_cast<int64_t>(limits.vocab_size) + kPadding;
  const int64_t scans = kAdjusted * (vocab / 8192 + 1) * 12;
  return (limits.max_rows + kAdjusted) * vocab * 4 + scans + 5 * kAlignment;
}

int64_t schedule_bytes(int32_t tokens, int32_t rows) {
  return (tokens + 3 * (int64_t{rows} + 1)) * 4;
}

Status CudaOps::reserve_schedule(Backend& backend, const OpsLimits& limits) {
  const int32_t tokens = std::max(schedule_tokens_, limits.max_step_tokens);
  const int32_t rows = std::max(schedule_rows_, limits.max_rows);
  auto memory = backend.allocate(schedule_bytes(tokens, rows), MemoryKind::device);
  if (!memory) {
    return memory.error();
  }
  schedule_memory_ = std::move(memory).value();
  schedule_tokens_ = tokens;
  schedule_rows_ = rows;
  return ok_status();
}

StepSchedule CudaOps::schedule() const {
  StepSchedule result;
  result.generated = reinterpret_cast<int32_t*>(schedule_memory_.data());
  result.prompt_rows = result.generated + schedule_tokens_;
  result.page_begin = result.prompt_rows + schedule_rows_ + 1;
  result.tile_begin = result.page_begin + schedule_rows_ + 1;
  return result;
}

void CudaOps::begin_step(const BatchGeometry& geometry, Stream& stream) {
  const cudaStream_t handle = begin("begin_step", ok_status(), stream);
  // A step of generated tokens alone needs no schedule.
  if (geometry.num_prompt_rows > 0) {
    HADAL_CHECK(geometry.num_tokens <= schedule_tokens_ && geometry.num_rows <= schedule_rows_,
                "begin_step: a step of " + std::to_string(geometry.num_tokens) + " tokens in " +
                    std::to_string(geometry.num_rows) + " rows; reserve() was given " +
                    std::to_string(schedule_tokens_) + " and " + std::to_string(schedule_rows_));
    ScheduleParams params;
    params.row_offsets = geometry.row_offsets.as<int32_t>();
    params.positions = geometry.positions.as<int32_t>();
    params.forms = geometry.forms.as<uint8_t>();
    params.num_rows = geometry.num_rows;
    params.schedule = schedule();
    launch_schedule(params, handle);
  }
  scheduled_ = {geometry.row_offsets.data, geometry.num_tokens, geometry.num_prompt_rows};
  end("begin_step", handle);
}

void CudaOps::require_schedule(const BatchGeometry& geometry) const {
  HADAL_CHECK(
      geometry.num_prompt_rows == 0 || (scheduled_.row_offsets == geometry.row_offsets.data &&
                                        scheduled_.num_tokens == geometry.num_tokens &&
                                        scheduled_.num_prompt_rows == geometry.num_prompt_rows),
      "attention: begin_step was not called for this step");
}

void CudaOps::attention_generated(const AttentionArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("attention_generated", check(args), stream);
  const BatchGeometry& g = *args.geometry;
  require_schedule(g);
  const int32_t num_generated = g.num_tokens - g.num_prompt_tokens;
  TokenRange all;
  all.generated = g.num_prompt_tokens > 0 ? schedule().generated : nullptr;
  all.count = num_generated;
  if (num_generated > 0) {
    is_standard(args) ? standard_generated(args, all, handle)
                      : generic_generated(args, all, handle);
  }
  end("attention_generated", handle);
}

int32_t CudaOps::tokens_at_once(const TokenRange& all, int64_t bytes_per_token) const {
  const int64_t fit = (workspace_.free_bytes() - 4 * kAlignment) / bytes_per_token;
  HADAL_CHECK(
      fit > 0,
      "attention_generated: one token does not fit the workspace: reserve() was given less");
  constexpr int64_t kMostTokens = 32768;  // of a grid's second dimension
  return static_cast<int32_t>(std::min({fit, kMostTokens, int64_t{all.count}}));
}

void CudaOps::standard_generated(const AttentionArgs& args,
                                 const TokenRange& all,
                                 cudaStream_t stream) {
  const CudaWeight& kv_b = cuda_weight(args.kv_b);
  const int32_t most_tokens = args.geometry->max_kv_length;
  DecodeParams params;
  params.step = step_view(args);
  params.q = args.q.as<uint16_t>();
  params.key_weight = kv_b.transposed_keys();
  params.kv_b = kv_b.dense_kv_b();
  params.out = act_matrix(args.out);
  params.scale = args.softmax_scale;
  params.heads = shape_of(args).heads;
  params.num_multiprocessors = device_.num_multiprocessors;
  const int32_t tile = decode_head_tile(params.heads);
  const int64_t head_groups = (params.heads + tile - 1) / tile;
  params.by_page =
      is_cut_by_page(all.count * head_groups, most_tokens, device_.num_multiprocessors);
  params.most_parts = params.by_page ? pages_of(most_tokens) : most_splits_of(most_tokens);
  const int32_t at_once =
      tokens_at_once(all, decode_bytes_per_token(params.heads, params.most_parts));
  const int64_t rows = int64_t{at_once} * params.most_parts * params.heads;
  params.absorbed = workspace_.take<uint16_t>(int64_t{at_once} * params.heads * kWidth);
  params.partial = workspace_.take<float>(rows * kLatents);
  params.stats = workspace_.take<float2>(rows);
  params.tokens = all;
  for (int32_t first = 0; first < all.count; first += at_once) {
    params.tokens.first = first;
    params.tokens.count = std::min(at_once, all.count - first);
    launch_decode(params, stream);
  }
}

void CudaOps::generic_generated(const AttentionArgs& args,
                                const TokenRange& all,
                                cudaStream_t stream) {
  GenericDecodeParams params;
  params.common = generic_params(args);
  const AttentionShape& shape = params.common.shape;
  params.most_splits = most_splits_of(args.geometry->max_kv_length);
  const int32_t at_once = tokens_at_once(all, generic_decode_floats(shape, params.most_splits) * 4);
  const int64_t rows = int64_t{at_once} * shape.heads;
  params.absorbed = workspace_.take<float>(rows * (shape.latents + shape.rope));
  params.partial = workspace_.take<float>(rows * params.most_splits * (shape.latents + 2));
  params.common.heads_out = workspace_.take<float>(rows * shape.value);
  params.tokens = all;
  for (int32_t first = 0; first < all.count; first += at_once) {
    params.tokens.first = first;
    params.tokens.count = std::min(at_once, all.count - first);
    launch_generic_decode(params, stream);
  }
}

void CudaOps::attention_prompt(const AttentionArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("attention_prompt", check(args), stream);
  const BatchGeometry& g = *args.geometry;
  require_schedule(g);
  if (g.num_prompt_rows > 0 && g.num_prompt_tokens > 0) {
    if (is_standard(args)) {
      standard_prompt(args, handle);
    } else {
      generic_prompt(args, handle);
    }
  }
  end("attention_prompt", handle);
}

void CudaOps::standard_prompt(const AttentionArgs& args, cudaStream_t stream) {
  const BatchGeometry& g = *args.geometry;
  const int32_t heads = shape_of(args).heads;
  PromptParams params;
  params.has_images = device_.kernel_family == KernelFamily::sm90a;
  const int64_t page_size = params.has_images ? kImageSize : kKvPageTokens * kSlab;
  const PromptParts parts =
      split_prompt(g, heads, workspace_.free_bytes() - 4 * kAlignment, page_size * 2);
  params.step = step_view(args);
  params.q = args.q.as<uint16_t>();
  params.kv_b = cuda_weight(args.kv_b).dense_kv_b();
  params.out = act_matrix(args.out);
  params.scale = args.softmax_scale;
  params.heads = heads;
  const int64_t pages = parts.row_by_row ? pages_of(g.max_kv_length) : g.num_prompt_pages;
  params.kv = workspace_.take<uint16_t>(pages * parts.heads * page_size);
  for_prompt_ranges(g, parts, schedule(), [&](const PromptRange& range) {
    params.rows = range;
    for (params.first_head = 0; params.first_head < heads; params.first_head += parts.heads) {
      params.num_heads = std::min(parts.heads, heads - params.first_head);
      launch_prompt(params, stream);
    }
  });
}

void CudaOps::generic_prompt(const AttentionArgs& args, cudaStream_t stream) {
  const BatchGeometry& g = *args.geometry;
  GenericPromptParams params;
  params.common = generic_params(args);
  const AttentionShape& shape = params.common.shape;
  params.common.heads_out =
      workspace_.take<float>(int64_t{g.num_tokens} * shape.heads * shape.value);
  const int64_t page = int64_t{kKvPageTokens} * (shape.nope + shape.value);
  const PromptParts parts =
      split_prompt(g, shape.heads, workspace_.free_bytes() - 4 * kAlignment, page * 4);
  const int64_t pages = parts.row_by_row ? pages_of(g.max_kv_length) : g.num_prompt_pages;
  params.kv = workspace_.take<float>(pages * parts.heads * page);
  for_prompt_ranges(g, parts, schedule(), [&](const PromptRange& range) {
    params.rows = range;
    for (params.first_head = 0; params.first_head < shape.heads; params.first_head += parts.heads) {
      params.num_heads = std::min(parts.heads, shape.heads - params.first_head);
      launch_generic_prompt(params, stream);
    }
  });
  store_generic_prompt(params.common, stream);
}

}  // namespace hadal::cuda
