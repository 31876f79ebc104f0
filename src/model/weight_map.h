// Which tensors a layer has, under the checkpoint's names, and which rectangle of each is this
// rank's.
//
//   embedding, head          rows of the vocabulary
//   q_b (or q), kv_b         rows: heads                 o                      columns: heads
//   dense and shared MLP     gate, up rows; down columns of the intermediate size, over tp
//   routed experts           experts over moe_ep, rows and columns over moe_tp
//   q_a, kv_a, router, norms whole on every rank
//   MTP eh_proj              columns, so that its output is a partial sum like any other
//
// FP8 scale blocks are indexed by global row and column: a cut inside a 128-block is right on the
// host. The runner refuses it all the same (check_fp8_blocks).
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <hadal/model/config.h>
#include <hadal/model/parallel_layout.h>
#include <hadal/weights/weight_store.h>

namespace hadal {

/// What a tensor is for, as the memory plan counts it.
enum class WeightGroup : uint8_t {
  embedding_and_head,
  attention,
  dense_mlp,
  routed_experts,
  shared_experts,
  router_and_norms,
  mtp,
};

/// "attention", "routed experts", ...
const char* to_string(WeightGroup group);

/// One tensor and this rank's part of it.
struct TensorPart {
  WeightGroup group = WeightGroup::attention;
  WeightSpec values;
  WeightSlice slice;
  std::optional<WeightSpec> scale;  ///< FP8 weights only: whole, [ceil(out / 128), ceil(in / 128)]

  /// The scale blocks that the slice touches.
  WeightSlice scale_slice() const;
  /// Bytes to read, scales included, when stored in the type the configuration implies.
  int64_t size_bytes() const;
};

struct MlpParts {
  TensorPart gate;
  TensorPart up;
  TensorPart down;
};

struct AttentionParts {
  std::optional<TensorPart> q_a;       ///< with q_lora_rank
  std::optional<TensorPart> q_a_norm;  ///< likewise
  TensorPart q;                        ///< q_b_proj, or q_proj without q_lora_rank
  TensorPart kv_a;
  TensorPart kv_a_norm;
  TensorPart kv_b;
  TensorPart o;
};

struct LayerParts {
  TensorPart input_norm;
  TensorPart post_attention_norm;
  AttentionParts attention;
  std::optional<MlpParts> dense;
  std::optional<TensorPart> router;
  std::optional<TensorPart> correction_bias;
  std::vector<MlpParts> experts;  ///< this rank's, in order of id
  std::optional<MlpParts> shared;
};

struct TopParts {
  TensorPart embedding;
  TensorPart norm;
  TensorPart head;
};

/// Beside the layer itself.
struct MtpParts {
  TensorPart embed_norm;
  TensorPart hidden_norm;
  TensorPart eh_proj;
  TensorPart head_norm;
  TensorPart embedding;  ///< published checkpoints repeat the main model's
  TensorPart head;       ///< likewise
};

/// Names and slices for one rank. Cheap to copy nothing: it refers to the config it was made from.
class WeightMap {
 public:
  /// The config outlives the map. The layout has been checked against it.
  WeightMap(const DeepseekConfig& config, const ParallelLayout& layout);

  TopParts top() const;
  /// layer < num_hidden_layers, or an MTP layer's index from there on.
  LayerParts layer(int64_t layer) const;
  MtpParts mtp(int64_t layer) const;

  /// Rows of the vocabulary that every rank's table and head have room for.
  int64_t vocab_per_rank() const;
  int64_t vocab_begin() const;

  /// Every tensor that this rank reads; those of MTP layers only when asked for.
  void for_each(bool with_mtp, const std::function<void(const TensorPart&)>& visit) const;

 private:
  struct Cut {
    bool rows = false;     ///< the first dimension is cut
    bool columns = false;  ///< the last dimension is cut
    int64_t index = 0;
    int64_t ways = 1;
  };

  TensorPart matrix(
      WeightGroup group, const std::string& name, int64_t out, int64_t in, const Cut& cut) const;
  TensorPart plain(TensorPart part, StoredType type = StoredType::bf16) const;
  TensorPart vector(WeightGroup group, const std::string& name, int64_t size) const;
  TensorPart vocabulary(WeightGroup group, const std::string& name) const;
  MlpParts mlp(WeightGroup group,
               const std::string& prefix,
               int64_t intermediate,
               int64_t index,
               int64_t ways) const;
  AttentionParts attention(const std::string& prefix) const;

  const DeepseekConfig& config_;
  ParallelLayout layout_;
};

}  // namespace hadal
