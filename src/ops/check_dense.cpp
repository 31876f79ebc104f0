// Checks of the ops around dense products: embed, add_norm, linear, gate_up, lm_head.
#include <hadal/ops/embed.h>
#include <hadal/ops/linear.h>
#include <hadal/ops/norm.h>

#include "check_common.h"

namespace hadal {

using ops_check::activation;
using ops_check::optional_tensor;
using ops_check::tensor;
using ops_check::that;

Status check(const EmbedArgs& args) {
  const int64_t tokens = args.tokens.shape[0];
  const int64_t hidden = args.table.shape[1];
  HADAL_RETURN_IF_ERROR(tensor("tokens", args.tokens, {DType::i32}, Shape{tokens}));
  HADAL_RETURN_IF_ERROR(optional_tensor("token_slots", args.token_slots, {DType::i32}, {tokens}));
  HADAL_RETURN_IF_ERROR(optional_tensor(
      "last_tokens", args.last_tokens, {DType::i32}, Shape{args.last_tokens.shape[0]}));
  HADAL_RETURN_IF_ERROR(that(args.token_slots.empty() == args.last_tokens.empty(),
                             "token_slots and last_tokens",
                             "both or neither"));
  HADAL_RETURN_IF_ERROR(
      tensor("table", args.table, {DType::bf16, DType::f32}, Shape{args.table.shape[0], hidden}));
  HADAL_RETURN_IF_ERROR(that(args.vocab_begin >= 0, "vocab_begin", ">= 0"));
  return tensor("out", args.out, {DType::f32, DType::bf16}, Shape{tokens, hidden});
}

Status check(const AddNormArgs& args) {
  const Shape shape{args.residual.shape[0], args.residual.shape[1]};
  const auto plain = {DType::f32, DType::bf16};
  HADAL_RETURN_IF_ERROR(tensor("residual", args.residual, plain, shape));
  HADAL_RETURN_IF_ERROR(optional_tensor("addend", args.addend, plain, shape));
  HADAL_RETURN_IF_ERROR(that(
      args.comm == nullptr || !args.addend.empty(), "addend", "a tensor, because comm sums it"));
  HADAL_RETURN_IF_ERROR(that(!args.overwrite_residual || !args.addend.empty(),
                             "addend",
                             "a tensor, because overwrite_residual is set"));
  HADAL_RETURN_IF_ERROR(tensor("weight", args.weight, plain, Shape{shape[1]}));
  HADAL_RETURN_IF_ERROR(that(args.eps > 0.0F, "eps", "> 0"));
  HADAL_RETURN_IF_ERROR(optional_tensor("out_plain", args.out_plain, plain, shape));
  return activation("out", args.out, shape[0], shape[1]);
}

Status check(const LinearArgs& args) {
  if (args.weight == nullptr || args.weight->role() != WeightRole::down) {
    HADAL_RETURN_IF_ERROR(ops_check::weight("weight", args.weight, WeightRole::linear));
  }
  HADAL_RETURN_IF_ERROR(that(args.weight->num_experts() == 1, "weight", "a single matrix"));
  const int64_t rows = args.x.values.shape[0];
  HADAL_RETURN_IF_ERROR(activation("x", args.x, rows, args.weight->in_features()));
  return tensor(
      "out", args.out, {DType::f32, DType::bf16}, Shape{rows, args.weight->out_features()});
}

Status check(const GateUpArgs& args) {
  HADAL_RETURN_IF_ERROR(ops_check::weight("weight", args.weight, WeightRole::gate_up));
  HADAL_RETURN_IF_ERROR(that(args.weight->num_experts() == 1, "weight", "a single pair"));
  const int64_t rows = args.x.values.shape[0];
  HADAL_RETURN_IF_ERROR(activation("x", args.x, rows, args.weight->in_features()));
  return activation("out", args.out, rows, args.weight->out_features());
}

Status check(const LmHeadArgs& args) {
  HADAL_RETURN_IF_ERROR(ops_check::weight("weight", args.weight, WeightRole::lm_head));
  const int64_t wanted = args.rows.shape[0];
  HADAL_RETURN_IF_ERROR(tensor("rows", args.rows, {DType::i32}, Shape{wanted}));
  HADAL_RETURN_IF_ERROR(
      activation("x", args.x, args.x.values.shape[0], args.weight->in_features()));
  return tensor("out", args.out, {DType::f32}, Shape{wanted, args.weight->out_features()});
}

}  // namespace hadal
