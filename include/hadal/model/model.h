// The DeepSeek V2 / V3 forward pass, written once over Ops: latent attention in both forms, dense
// and mixture-of-experts layers, and the multi-token-prediction layers of V3.
//
// A Model is one rank's shard. It owns prepared weights and nothing else: activations live in the
// caller's arena, KV in the caller's pool, and ranks meet through the communicator.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include <hadal/backend/backend.h>
#include <hadal/base/result.h>
#include <hadal/comm/communicator.h>
#include <hadal/model/config.h>
#include <hadal/model/parallel_layout.h>
#include <hadal/model/step_arena.h>
#include <hadal/ops/ops.h>
#include <hadal/weights/weight_store.h>

namespace hadal {

/// Sizes that the runtime plans with.
struct ModelShape {
  int64_t num_layers = 0;  ///< with a KV cache: main layers, then loaded MTP layers
  int64_t hidden_size = 0;
  int64_t vocab_size = 0;
  int64_t vocab_per_rank = 0;  ///< columns of this rank's logits; the last rank's tail is padding
  int64_t num_mtp_layers = 0;  ///< loaded ones
};

struct ModelLoadArgs {
  const DeepseekConfig& config;
  ParallelLayout layout;       ///< checked against the config by load
  const WeightStore& weights;  ///< needed only during load
  Backend& backend;            ///< outlives the model
  int64_t max_positions = 0;   ///< rows of the rotary table: the longest sequence
  bool with_mtp = false;       ///< loads the MTP layers, too
  LoadMeter* meter = nullptr;  ///< told of every byte read; may be null
};

/// One step's inputs, in device memory.
struct StepInputs {
  const BatchGeometry* geometry = nullptr;
  ConstTensorView tokens;       ///< [M] i32; -1 = last_tokens of the token's slot
  ConstTensorView token_slots;  ///< [M] i32; absent when no token is -1
  ConstTensorView last_tokens;  ///< [num_slots] i32; likewise
};

struct ForwardContext {
  Ops& ops;
  Communicator* comm = nullptr;  ///< null in a world of one
  StepArena& arena;              ///< reset by the caller before the step
  TensorView kv_pool;            ///< [num_pages, num_layers, 64, record] (ops/kv_record.h); dense
  Stream& stream;
};

/// What a forward pass leaves in the arena, and the head that reads it.
struct ForwardResult {
  ActivationView normed;         ///< [M, H] after the final norm, in the head's input format
  TensorView hidden;             ///< [M, H] plain, the same; only when MTP layers are loaded
  const Weight* head = nullptr;  ///< of the model, or of the MTP layer
};

/// Immutable after load; forward may be called by one thread at a time.
class Model {
 public:
  /// Reads this rank's slices and prepares them. Errors name tensor and file, or the size that the
  /// layout does not divide.
  static Result<std::unique_ptr<Model>> load(const ModelLoadArgs& args);

  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const ModelShape& shape() const;
  const DeepseekConfig& config() const;
  const ParallelLayout& layout() const;

  /// Device memory that the prepared weights and tables take.
  int64_t weight_bytes() const;

  /// All layers and the final norm for every token of the step. Writes the tokens' KV.
  ForwardResult forward(const StepInputs& inputs, const ForwardContext& context) const;

  /// One MTP layer (0 = the first) over the step's tokens: row i pairs `hidden` of position i
  /// (after model.norm, or of the MTP layer before) with the embedding of inputs.tokens[i], which
  /// is the token at position i + 1. The layer's KV is written at position i. `hidden`: [M, H]
  /// plain.
  ForwardResult forward_mtp(int64_t mtp_layer,
                            const StepInputs& inputs,
                            TensorView hidden,
                            const ForwardContext& context) const;

  /// logits: [L, vocab_per_rank] f32 of the given rows ([L] i32, indices into M) of forward's
  /// result.
  void logits(const ForwardResult& result,
              ConstTensorView rows,
              TensorView out,
              const ForwardContext& context) const;

  /// Arena bytes that a step of this many tokens needs (forward, then MTP if loaded).
  int64_t arena_bytes(int64_t num_tokens) const;

  /// Private to src/model.
  struct State;

 private:
  explicit Model(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Bytes of the weights that one rank reads, by group, as stored in the checkpoint.
struct WeightBytes {
  const char* group = "";
  int64_t bytes = 0;
};

std::vector<WeightBytes> count_weight_bytes(const DeepseekConfig& config,
                                            const ParallelLayout& layout,
                                            bool with_mtp);

/// Arena bytes of a step before anything is loaded (Model::arena_bytes says the same afterwards).
int64_t count_arena_bytes(const DeepseekConfig& config,
                          const ParallelLayout& layout,
                          const Numerics& numerics,
                          int64_t num_tokens,
                          bool with_mtp);

/// Called with what one rank reads: tensor, rectangle, and a number that grows with load order (0 =
/// embedding and head, then layers).
using WeightReadFn =
    std::function<void(const WeightSpec& spec, const WeightSlice& slice, int64_t order)>;

/// Every rectangle that a rank reads, scales included, in load order. All ranks of a layout read
/// equally many.
void visit_weight_reads(const DeepseekConfig& config,
                        const ParallelLayout& layout,
                        bool with_mtp,
                        const WeightReadFn& visit);

/// Checks presence, type and shape of every tensor that this rank reads, without reading one.
Status check_weights(const DeepseekConfig& config,
                     const ParallelLayout& layout,
                     const WeightStore& weights,
                     bool with_mtp);

}  // namespace hadal
