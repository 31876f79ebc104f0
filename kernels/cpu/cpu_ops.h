// The ops of the CPU backend: splits each op into tasks over the thread pool and calls the kernels.
//
// Tasks never share an output element, and every element is summed in the kernels' fixed order, so
// neither the number of threads nor the batch changes a bit of a row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include <hadal/ops/ops.h>

#include "aligned.h"
#include "cpu_weight.h"
#include "kernel_table.h"
#include "thread_pool.h"

namespace hadal::cpu {

/// Scratch of one thread of the pool.
struct ThreadScratch {
  Scratch<float> weights;  ///< a converted tile of weights
  Scratch<float> tile;     ///< a tile of results
  Scratch<float> row;
  Scratch<float> slots;
  Scratch<int32_t> indices;
  Scratch<const float*> pointers;
  Scratch<const void*> keys;
};

/// Which tokens chose which local expert; entry = token * slots + slot.
struct ExpertLists {
  std::vector<int32_t> offsets;  ///< [experts + 1] into entries; the shared expert comes last
  std::vector<int32_t> entries;  ///< ascending within an expert
};

class CpuOps final : public Ops {
 public:
  CpuOps(const KernelTable& kernels, int32_t num_threads, bool e4m3_latents);

  /// Sizes the scratch of attention; throws std::bad_alloc.
  void reserve(const OpsLimits& limits);
  /// Bytes that reserve allocates.
  static int64_t reserve_bytes(const OpsLimits& limits);

  void begin_step(const BatchGeometry& geometry, Stream& stream) override;
  void copy_pages(const PageCopyArgs& args, Stream& stream) override;
  void embed(const EmbedArgs& args, Stream& stream) override;
  void add_norm(const AddNormArgs& args, Stream& stream) override;
  void linear(const LinearArgs& args, Stream& stream) override;
  void latent_write(const LatentWriteArgs& args, Stream& stream) override;
  void rope_query(const RopeQueryArgs& args, Stream& stream) override;
  void attention_prompt(const AttentionArgs& args, Stream& stream) override;
  void attention_generated(const AttentionArgs& args, Stream& stream) override;
  void gate_up(const GateUpArgs& args, Stream& stream) override;
  void router(const RouterArgs& args, Stream& stream) override;
  void moe_gate_up(const MoeGateUpArgs& args, Stream& stream) override;
  void moe_down(const MoeDownArgs& args, Stream& stream) override;
  void lm_head(const LmHeadArgs& args, Stream& stream) override;
  void reset_slots(const ResetSlotsArgs& args, Stream& stream) override;
  void sample(const SampleArgs& args, Stream& stream) override;

 private:
  struct PromptRow;
  struct GeneratedBatch;

  /// Float32 rows of x: x itself when it is float32, else a converted copy in `memory`.
  const float* const* rows_of(const ConstActivationView& x,
                              Scratch<float>& memory,
                              Scratch<const float*>& pointers);
  /// Calls body(row, thread) for all rows, on several threads when there are enough.
  template <class Body>
  void for_rows(int64_t num_rows, int64_t work_per_row, const Body& body);
  /// tile = rows * panels^T in this thread's scratch, [num_rows][panel_count * 16].
  const float* gemm_tile(const PanelMatrix& matrix,
                         int64_t panel_begin,
                         int64_t panel_count,
                         const float* const* rows,
                         int64_t num_rows,
                         int32_t thread);
  /// out = rows * matrix^T for an f32 or bf16 matrix out.
  void matmul(const PanelMatrix& matrix,
              const float* const* rows,
              int64_t num_rows,
              const TensorView& out);
  /// Columns [column, column + count) of silu(rows * gate^T) * (rows * up^T).
  void gate_up_columns(const PanelMatrix& matrix,
                       const float* const* rows,
                       const int32_t* out_rows,
                       int64_t num_rows,
                       int64_t column,
                       int64_t count,
                       const ActivationView& out,
                       int32_t thread);

  ThreadScratch& scratch(int32_t thread) { return scratch_[static_cast<size_t>(thread)]; }

  const float* const* query_rows(const AttentionArgs& args);
  void prompt_row(const AttentionArgs& args, const PromptRow& row);
  void prompt_keys(const AttentionArgs& args, const PromptRow& row, int64_t task, int32_t thread);
  void prompt_queries(const AttentionArgs& args,
                      const PromptRow& row,
                      int64_t task,
                      int32_t thread);
  void generated_batch(const AttentionArgs& args, GeneratedBatch& batch);
  void absorb_queries(const AttentionArgs& args, const GeneratedBatch& batch);
  void generated_chunk(const AttentionArgs& args,
                       const GeneratedBatch& batch,
                       int64_t task,
                       int32_t thread);
  void merge_and_project(const AttentionArgs& args, const GeneratedBatch& batch);

  void list_experts(const ConstTensorView& expert_ids,
                    int32_t first_expert,
                    int32_t num_experts,
                    bool has_shared);
  void down_block(const MoeDownArgs& args,
                  const float* const* inner,
                  int64_t token_begin,
                  int64_t panel_begin,
                  int32_t thread);
  void sample_entry(const SampleArgs& args, const float* logits, int64_t entry, int32_t thread);

  const KernelTable& kernels_;
  const bool e4m3_latents_;
  ThreadPool pool_;
  std::vector<ThreadScratch> scratch_;
  Scratch<float> inputs_;
  Scratch<const float*> pointers_;
  Scratch<float> queries_;
  Scratch<float> absorbed_;
  Scratch<float> partials_;
  Scratch<float> keys_;
  Scratch<float> heads_out_;
  Scratch<const float*> query_pointers_;
  Scratch<float> gathered_;
  Scratch<float> row_logits_;
  Scratch<float> router_logits_;
  ExpertLists experts_;
};

template <class Body>
void CpuOps::for_rows(int64_t num_rows, int64_t work_per_row, const Body& body) {
  constexpr int64_t kWorkWorthATask = 8192;
  const int64_t rows_per_task = kWorkWorthATask / std::max(work_per_row, int64_t{1}) + 1;
  const int64_t tasks = (num_rows + rows_per_task - 1) / rows_per_task;
  pool_.run(tasks, [&](int64_t task, int32_t thread) {
    const int64_t begin = task * rows_per_task;
    const int64_t end = begin + rows_per_task < num_rows ? begin + rows_per_task : num_rows;
    for (int64_t row = begin; row < end; ++row) {
      body(row, thread);
    }
  });
}

/// Most floats that projected keys and values, or partial sums, take at once (more only when a
/// single head or a single query needs it).
inline constexpr int64_t kWorkspaceFloats = int64_t{1} << 24;
inline constexpr int64_t kGeneratedQueries = 256;  ///< of the absorbed form at once

inline const CpuWeight& cpu_weight(const Weight* weight) {
  return static_cast<const CpuWeight&>(*weight);
}

/// Aborts with the op's name when its arguments do not fit.
void require(const char* op, const Status& status);

}  // namespace hadal::cpu
