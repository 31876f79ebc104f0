// The attention kernels' parameters and launches; ops_attention.cpp chooses among them.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "attention_plan.h"
#include "cuda_weight.h"
#include "device_views.h"

namespace hadal::cuda {

/// What the layers of a step share; device memory, filled by launch_schedule.
struct StepSchedule {
  int32_t* generated = nullptr;    ///< [generated tokens] token of the step, ascending
  int32_t* prompt_rows = nullptr;  ///< [prompt rows] row of the step, ascending
  int32_t* page_begin = nullptr;   ///< [prompt rows + 1] prefix sums of their pages
  int32_t* tile_begin = nullptr;   ///< [prompt rows + 1] prefix sums of their query tiles
};

struct ScheduleParams {
  const int32_t* row_offsets = nullptr;
  const int32_t* positions = nullptr;
  const uint8_t* forms = nullptr;
  int32_t num_rows = 0;
  StepSchedule schedule;
};

/// The step and a layer's cache, as kernels see them.
struct StepView {
  const int32_t* row_offsets = nullptr;
  const int32_t* token_rows = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* page_table = nullptr;
  const uint8_t* forms = nullptr;
  int64_t table_stride = 0;
  const std::byte* pages = nullptr;
  int64_t page_bytes = 0;  ///< from page to page
  int32_t num_tokens = 0;
  int32_t num_prompt_rows = 0;
  DType kv_type = DType::bf16;  ///< f32, bf16 or f8_e4m3: offsets as in ops/kv_record.h
  int32_t record_bytes = 0;
  int32_t scales_at = 0;
  int32_t rope_at = 0;
};

struct AttentionShape {
  int32_t heads = 0;
  int32_t nope = 0;
  int32_t rope = 0;
  int32_t value = 0;
  int32_t latents = 0;
};

/// Some generated tokens of the step: [first, first + count) of the schedule's list, which is null
/// when every token of the step is one.
struct TokenRange {
  const int32_t* generated = nullptr;
  int32_t first = 0;
  int32_t count = 0;
};

/// Some prompt rows: [begin, end) of the schedule's.
struct PromptRange {
  StepSchedule schedule;
  int32_t begin = 0;
  int32_t end = 0;
  int32_t most_pages = 0;  ///< no fewer than they have
  int32_t most_tiles = 0;
};

/// Workspace with which attention and sampling of steps within the limits run well.
int64_t attention_workspace_bytes(const OpsLimits& limits);
/// Of the schedule of the largest step.
int64_t schedule_bytes(int32_t tokens, int32_t rows);
int64_t sample_workspace_bytes(const OpsLimits& limits);

void launch_schedule(const ScheduleParams& params, cudaStream_t stream);

/// bf16 queries and kv_b, bf16 or FP8 pages, of the sizes in attention_plan.h.
struct DecodeParams {
  StepView step;
  TokenRange tokens;
  const uint16_t* q = nullptr;           ///< [M][heads][192]
  const uint16_t* key_weight = nullptr;  ///< [heads][512][128]
  const uint16_t* kv_b = nullptr;        ///< [heads][256][512]
  ActMatrix out;
  float scale = 0.0F;
  int32_t heads = 0;
  int32_t num_multiprocessors = 0;
  bool by_page = false;          ///< a part is a page of the cache, not a split
  int32_t most_parts = 0;        ///< of a token
  uint16_t* absorbed = nullptr;  ///< [count][heads][576]
  float* partial = nullptr;      ///< [count][most_parts][heads][512]
  float2* stats = nullptr;       ///< [count][most_parts][heads]: maximum (log2), sum
};

/// Heads that a block of the decode kernel serves.
int32_t decode_head_tile(int32_t heads);
int64_t decode_bytes_per_token(int32_t heads, int32_t most_parts);
void launch_decode(const DecodeParams& params, cudaStream_t stream);
/// The first and the last of its kernels.
void launch_absorb(const DecodeParams& params, cudaStream_t stream);
void launch_merge(const DecodeParams& params, cudaStream_t stream);

struct PromptParams {
  StepView step;
  PromptRange rows;
  const uint16_t* q = nullptr;
  const uint16_t* kv_b = nullptr;
  ActMatrix out;
  float scale = 0.0F;
  int32_t heads = 0;
  int32_t first_head = 0;  ///< the group of heads of this launch
  int32_t num_heads = 0;
  bool has_images = false;  ///< of kv, for the sm_90a kernel
  /// [pages of rows][num_heads][64][256]: keys without rope, values; or [..][..][kImageSize].
  uint16_t* kv = nullptr;
};

void launch_prompt(const PromptParams& params, cudaStream_t stream);
/// Its kernels on sm_90a.
void launch_hopper_project(const PromptParams& params, cudaStream_t stream);
void launch_hopper_attend(const PromptParams& params, cudaStream_t stream);

/// Any sizes and plain formats, float32 throughout.
struct GenericParams {
  StepView step;
  AttentionShape shape;
  DeviceMatrix kv_b;
  ConstPlainMatrix q;  ///< row = (token, head)
  ActMatrix out;
  float scale = 0.0F;
  float* heads_out = nullptr;  ///< generated: [count][heads * value]; prompt: [M][heads * value]
};

struct GenericDecodeParams {
  GenericParams common;
  TokenRange tokens;
  int32_t most_splits = 0;
  float* absorbed = nullptr;  ///< [count][heads][latents + rope]
  float* partial = nullptr;   ///< [count][most_splits][heads][latents + 2]: sums, maximum, total
};

struct GenericPromptParams {
  GenericParams common;
  PromptRange rows;
  int32_t first_head = 0;
  int32_t num_heads = 0;
  float* kv = nullptr;  ///< [pages of rows][num_heads][64][nope + value]
};

void launch_generic_decode(const GenericDecodeParams& params, cudaStream_t stream);
/// Fills heads_out; store_prompt follows when all heads are done.
void launch_generic_prompt(const GenericPromptParams& params, cudaStream_t stream);
void store_generic_prompt(const GenericParams& params, cudaStream_t stream);

/// bf16 copies of kv_b for the tensor core kernels.
void launch_kv_b(const DeviceMatrix& kv_b,
                 int32_t heads,
                 uint16_t* dense,
                 uint16_t* key_transposed,
                 cudaStream_t stream);

}  // namespace hadal::cuda
