// The ops of the CUDA backend. Each op lives in a file of its group: it checks its arguments, picks
// kernels and grids from host-known shapes alone, and launches. So every op can be captured into a
// graph: none allocates, synchronises or looks at device data.
//
// Kernels keep two rules: tasks never share an output element (but for counters), and an element is
// summed in an order that depends on its own row alone, so neither the batch nor the grid changes a
// bit of a row.
#pragma once

#include <cstdint>
#include <string>

#include <hadal/ops/ops.h>

#include "cuda_stream.h"
#include "cuda_weight.h"
#include "moe_down.h"
#include "product.h"
#include "workspace.h"

namespace hadal::cuda {

struct DeviceInfo {
  int32_t index = 0;
  int32_t num_multiprocessors = 0;
  int32_t max_shared_bytes = 0;    ///< of one block, after opting in
  int32_t compute_capability = 0;  ///< 90 for 9.0
  KernelFamily kernel_family = KernelFamily::sm80;
};

struct StepSchedule;
struct TokenRange;

class CudaOps final : public Ops {
 public:
  CudaOps(const DeviceInfo& device, bool sync_every_op)
      : device_(device), sync_every_op_(sync_every_op) {}

  /// Makes the workspace; resource_exhausted when it does not fit.
  Status reserve(Backend& backend, const OpsLimits& limits);
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
  /// Every op begins with it: aborts on a breach of the contract, selects the device and clears the
  /// workspace.
  cudaStream_t begin(const char* op, const Status& status, Stream& stream);
  /// Every op ends with it: aborts when a launch failed, and waits when sync_every_op is set.
  void end(const char* op, cudaStream_t stream);

  struct ChosenExperts {
    ConstTensorView expert_ids;
    int32_t first_expert;
    bool has_shared;
    int32_t token_begin;
    int32_t num_tokens;
  };

  /// One weight, rows in order or gathered.
  void run_product(const ProductArgs& args, bool is_pair, cudaStream_t stream);
  /// The same on sm_90a, where that has a kernel for it; false when it was left to others.
  bool run_hopper_product(ProductArgs args, ProductMode mode, bool is_pair, cudaStream_t stream);
  bool run_hopper_experts(ProductArgs args,
                          ProductMode mode,
                          bool is_pair,
                          const ChosenExperts& chosen,
                          cudaStream_t stream);
  void launch_product(ProductArgs args,
                      ProductMode mode,
                      bool is_pair,
                      const ProductGrid& grid,
                      int64_t num_out_rows,
                      cudaStream_t stream);
  /// Lists the chosen experts of some tokens and computes their products.
  void run_expert_product(ProductArgs args,
                          bool is_pair,
                          const ChosenExperts& chosen,
                          cudaStream_t stream);

  /// moe_down of some tokens, `stripe` columns at a time.
  void run_down_stripes(ProductArgs product,
                        ProductMode mode,
                        const SlotArgs& all,
                        const ChosenExperts& chosen,
                        int32_t stripe,
                        cudaStream_t stream);

  /// Makes the memory of schedule().
  Status reserve_schedule(Backend& backend, const OpsLimits& limits);
  StepSchedule schedule() const;
  /// Aborts when begin_step was not given this step.
  void require_schedule(const BatchGeometry& geometry) const;
  /// Generated tokens that the workspace holds at once.
  int32_t tokens_at_once(const TokenRange& all, int64_t bytes_per_token) const;
  void standard_generated(const AttentionArgs& args, const TokenRange& all, cudaStream_t stream);
  void generic_generated(const AttentionArgs& args, const TokenRange& all, cudaStream_t stream);
  void standard_prompt(const AttentionArgs& args, cudaStream_t stream);
  void generic_prompt(const AttentionArgs& args, cudaStream_t stream);

  /// What tells the step of begin_step from others.
  struct ScheduledStep {
    const std::byte* row_offsets = nullptr;
    int32_t num_tokens = 0;
    int32_t num_prompt_rows = 0;
  };

  const DeviceInfo device_;
  const bool sync_every_op_;
  Workspace workspace_;
  Buffer schedule_memory_;
  int32_t schedule_tokens_ = 0;
  int32_t schedule_rows_ = 0;
  ScheduledStep scheduled_;
};

}  // namespace hadal::cuda
