// Checks of the sampling ops. Entries live on the device, so their values are the caller's promise.
#include <hadal/ops/sample.h>

#include "check_common.h"

namespace hadal {

using ops_check::tensor;
using ops_check::that;

namespace {

Status check_state(const SamplerState& state) {
  const int64_t slots = state.last_tokens.shape[0];
  const int64_t vocab = state.generated_counts.shape[1];
  HADAL_RETURN_IF_ERROR(
      tensor("generated_counts", state.generated_counts, {DType::i32}, Shape{slots, vocab}));
  HADAL_RETURN_IF_ERROR(tensor("prompt_seen", state.prompt_seen, {DType::u8}, Shape{slots, vocab}));
  return tensor("last_tokens", state.last_tokens, {DType::i32}, Shape{slots});
}

}  // namespace

Status check(const ResetSlotsArgs& args) {
  const int64_t count = args.slots.shape[0];
  HADAL_RETURN_IF_ERROR(tensor("slots", args.slots, {DType::i32}, Shape{count}));
  HADAL_RETURN_IF_ERROR(
      tensor("history_offsets", args.history_offsets, {DType::i32}, Shape{count + 1}));
  HADAL_RETURN_IF_ERROR(
      tensor("num_prompt_tokens", args.num_prompt_tokens, {DType::i32}, Shape{count}));
  HADAL_RETURN_IF_ERROR(ops_check::optional_tensor(
      "history", args.history, {DType::i32}, Shape{args.history.shape[0]}));
  return check_state(args.state);
}

Status check(const SampleArgs& args) {
  HADAL_RETURN_IF_ERROR(check_state(args.state));
  HADAL_RETURN_IF_ERROR(tensor(
      "logits", args.logits, {DType::f32}, Shape{args.logits.shape[0], args.logits.shape[1]}));
  HADAL_RETURN_IF_ERROR(that(args.vocab_size > 0, "vocab_size", "> 0"));
  HADAL_RETURN_IF_ERROR(that(args.comm != nullptr || args.logits.shape[1] >= args.vocab_size,
                             "logits",
                             "vocab_size columns"));
  HADAL_RETURN_IF_ERROR(that(args.state.generated_counts.shape[1] == args.vocab_size,
                             "generated_counts",
                             "vocab_size columns"));
  const int64_t count = args.num_entries;
  HADAL_RETURN_IF_ERROR(that(args.entries != nullptr || count == 0, "entries", "an array"));
  HADAL_RETURN_IF_ERROR(that(args.bias_tokens.shape == args.bias_values.shape,
                             "bias_tokens and bias_values",
                             "the same length"));
  HADAL_RETURN_IF_ERROR(ops_check::optional_tensor(
      "bias_tokens", args.bias_tokens, {DType::i32}, Shape{args.bias_tokens.shape[0]}));
  HADAL_RETURN_IF_ERROR(ops_check::optional_tensor(
      "bias_values", args.bias_values, {DType::f32}, Shape{args.bias_values.shape[0]}));
  HADAL_RETURN_IF_ERROR(tensor("out_tokens", args.out_tokens, {DType::i32}, Shape{count}));
  HADAL_RETURN_IF_ERROR(tensor("out_logprobs", args.out_logprobs, {DType::f32}, Shape{count}));
  HADAL_RETURN_IF_ERROR(tensor("out_has_nan", args.out_has_nan, {DType::u8}, Shape{count}));
  if (args.out_top_tokens.empty()) {
    return that(args.out_top_logprobs.empty(), "out_top_logprobs", "none without out_top_tokens");
  }
  const Shape top{count, args.out_top_tokens.shape[1]};
  HADAL_RETURN_IF_ERROR(tensor("out_top_tokens", args.out_top_tokens, {DType::i32}, top));
  return tensor("out_top_logprobs", args.out_top_logprobs, {DType::f32}, top);
}

}  // namespace hadal
