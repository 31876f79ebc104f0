// Checks of the router and of the expert products.
#include <hadal/ops/moe.h>

#include "check_common.h"

namespace hadal {

using ops_check::activation;
using ops_check::tensor;
using ops_check::that;

namespace {

/// Experts, an optional shared expert of the same shape, and at least one of the two.
Status check_experts(const Weight* experts, const Weight* shared, WeightRole role) {
  HADAL_RETURN_IF_ERROR(that(experts != nullptr, "experts", "a weight"));
  HADAL_RETURN_IF_ERROR(ops_check::weight("experts", experts, role));
  if (shared == nullptr) {
    return ok_status();
  }
  HADAL_RETURN_IF_ERROR(ops_check::weight("shared", shared, role));
  return that(shared->num_experts() == 1 && shared->out_features() == experts->out_features() &&
                  shared->in_features() == experts->in_features() &&
                  shared->dtype() == experts->dtype(),
              "shared",
              "one expert of the routed experts' shape and dtype");
}

}  // namespace

Status check(const RouterArgs& args) {
  HADAL_RETURN_IF_ERROR(ops_check::weight("weight", args.weight, WeightRole::router));
  const int64_t rows = args.x.shape[0];
  const int64_t num_experts = args.weight->out_features();
  HADAL_RETURN_IF_ERROR(
      tensor("x", args.x, {DType::f32, DType::bf16}, Shape{rows, args.weight->in_features()}));
  HADAL_RETURN_IF_ERROR(
      ops_check::optional_tensor("positions", args.positions, {DType::i32}, Shape{rows}));
  if (args.method == RouterMethod::noaux_tc) {
    HADAL_RETURN_IF_ERROR(tensor("bias", args.bias, {DType::f32}, Shape{num_experts}));
  } else {
    HADAL_RETURN_IF_ERROR(that(args.bias.empty(), "bias", "none for this method"));
  }
  HADAL_RETURN_IF_ERROR(that(args.num_groups >= 1 && num_experts % args.num_groups == 0,
                             "num_groups",
                             "a divisor of the experts"));
  HADAL_RETURN_IF_ERROR(that(
      args.top_groups >= 1 && args.top_groups <= args.num_groups, "top_groups", "1..num_groups"));
  const int64_t eligible = args.method == RouterMethod::greedy
                               ? num_experts
                               : num_experts / args.num_groups * args.top_groups;
  HADAL_RETURN_IF_ERROR(
      that(args.top_k >= 1 && args.top_k <= eligible, "top_k", "1..experts in the chosen groups"));
  const Shape shape{rows, args.top_k};
  HADAL_RETURN_IF_ERROR(tensor("out_ids", args.out_ids, {DType::i32}, shape));
  return tensor("out_weights", args.out_weights, {DType::f32}, shape);
}

Status check(const MoeGateUpArgs& args) {
  HADAL_RETURN_IF_ERROR(check_experts(args.experts, args.shared, WeightRole::gate_up));
  const int64_t rows = args.x.values.shape[0];
  const int64_t top_k = args.expert_ids.shape[1];
  const int64_t slots = top_k + (args.shared != nullptr ? 1 : 0);
  HADAL_RETURN_IF_ERROR(activation("x", args.x, rows, args.experts->in_features()));
  HADAL_RETURN_IF_ERROR(tensor("expert_ids", args.expert_ids, {DType::i32}, Shape{rows, top_k}));
  return activation("inner", args.inner, rows * slots, args.experts->out_features());
}

Status check(const MoeDownArgs& args) {
  HADAL_RETURN_IF_ERROR(check_experts(args.experts, args.shared, WeightRole::down));
  const int64_t rows = args.out.shape[0];
  const int64_t top_k = args.expert_ids.shape[1];
  const int64_t slots = top_k + (args.shared != nullptr ? 1 : 0);
  HADAL_RETURN_IF_ERROR(activation("inner", args.inner, rows * slots, args.experts->in_features()));
  HADAL_RETURN_IF_ERROR(tensor("expert_ids", args.expert_ids, {DType::i32}, Shape{rows, top_k}));
  HADAL_RETURN_IF_ERROR(
      tensor("expert_weights", args.expert_weights, {DType::f32}, Shape{rows, top_k}));
  return tensor(
      "out", args.out, {DType::f32, DType::bf16}, Shape{rows, args.experts->out_features()});
}

}  // namespace hadal
