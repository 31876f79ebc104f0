// Checks of the attention ops and of the step geometry.
#include <hadal/ops/attention.h>
#include <hadal/ops/kv_record.h>

#include "check_common.h"

namespace hadal {

using ops_check::activation;
using ops_check::optional_tensor;
using ops_check::tensor;
using ops_check::that;

namespace {

Status check_geometry(const BatchGeometry* geometry) {
  HADAL_RETURN_IF_ERROR(that(geometry != nullptr, "geometry", "a step"));
  const BatchGeometry& g = *geometry;
  const int64_t rows = g.num_rows;
  const int64_t tokens = g.num_tokens;
  HADAL_RETURN_IF_ERROR(tensor("row_offsets", g.row_offsets, {DType::i32}, Shape{rows + 1}));
  HADAL_RETURN_IF_ERROR(tensor("token_rows", g.token_rows, {DType::i32}, Shape{tokens}));
  HADAL_RETURN_IF_ERROR(tensor("positions", g.positions, {DType::i32}, Shape{tokens}));
  HADAL_RETURN_IF_ERROR(tensor("kv_lengths", g.kv_lengths, {DType::i32}, Shape{rows}));
  HADAL_RETURN_IF_ERROR(tensor("forms", g.forms, {DType::u8}, Shape{rows}));
  HADAL_RETURN_IF_ERROR(
      tensor("page_table", g.page_table, {DType::i32}, Shape{rows, g.page_table.shape[1]}));
  return that(g.max_kv_length <= g.page_table.shape[1] * kKvPageTokens,
              "page_table",
              "pages for max_kv_length tokens");
}

constexpr auto kKvTypes = {DType::f32, DType::bf16, DType::f8_e4m3};

Status check_pages(const ConstTensorView& pages, const KvRecord& record) {
  HADAL_RETURN_IF_ERROR(
      tensor("kv_pages", pages, kKvTypes, Shape{pages.shape[0], kKvPageTokens, record.elements()}));
  return that(!record.is_fp8() || (reinterpret_cast<uintptr_t>(pages.data) % 4 == 0 &&
                                   record.size_bytes() % 4 == 0 && pages.strides[0] % 4 == 0),
              "kv_pages",
              "FP8 records on multiples of 4 bytes");
}

Status check_rope(const ConstTensorView& table) {
  HADAL_RETURN_IF_ERROR(
      tensor("rope_table", table, {DType::f32}, Shape{table.shape[0], table.shape[1]}));
  return that(table.shape[1] > 0 && table.shape[1] % 2 == 0, "rope_table", "an even dimension");
}

}  // namespace

Status check(const LatentWriteArgs& args) {
  HADAL_RETURN_IF_ERROR(check_geometry(args.geometry));
  HADAL_RETURN_IF_ERROR(check_rope(args.rope_table));
  const auto plain = {DType::f32, DType::bf16};
  const int64_t tokens = args.geometry->num_tokens;
  const int64_t latents = args.kv_norm_weight.shape[0];
  const int64_t width = latents + args.rope_table.shape[1];
  HADAL_RETURN_IF_ERROR(tensor("kv_latent", args.kv_latent, plain, Shape{tokens, width}));
  HADAL_RETURN_IF_ERROR(tensor("kv_norm_weight", args.kv_norm_weight, plain, Shape{latents}));
  HADAL_RETURN_IF_ERROR(
      check_pages(args.kv_pages,
                  {args.kv_pages.dtype, latents, static_cast<int64_t>(args.rope_table.shape[1])}));
  HADAL_RETURN_IF_ERROR(that(args.eps > 0.0F, "eps", "> 0"));
  if (args.q_latent.empty()) {
    return that(args.out_q.empty() && args.q_norm_weight.empty(),
                "out_q and q_norm_weight",
                "none without q_latent");
  }
  const int64_t q_rank = args.q_latent.shape[1];
  HADAL_RETURN_IF_ERROR(tensor("q_latent", args.q_latent, plain, Shape{tokens, q_rank}));
  HADAL_RETURN_IF_ERROR(tensor("q_norm_weight", args.q_norm_weight, plain, Shape{q_rank}));
  return activation("out_q", args.out_q, tokens, q_rank);
}

Status check(const RopeQueryArgs& args) {
  HADAL_RETURN_IF_ERROR(check_geometry(args.geometry));
  HADAL_RETURN_IF_ERROR(check_rope(args.rope_table));
  const Shape shape{args.geometry->num_tokens, args.q.shape[1], args.q.shape[2]};
  HADAL_RETURN_IF_ERROR(tensor("q", args.q, {DType::f32, DType::bf16}, shape));
  return that(shape[2] >= args.rope_table.shape[1], "q", "heads no narrower than the rope part");
}

Status check(const AttentionArgs& args) {
  HADAL_RETURN_IF_ERROR(check_geometry(args.geometry));
  HADAL_RETURN_IF_ERROR(ops_check::weight("kv_b", args.kv_b, WeightRole::kv_b));
  const int64_t tokens = args.geometry->num_tokens;
  const int64_t heads = args.q.shape[1];
  const KvRecord record = kv_record(args.kv_pages, args.kv_b->in_features());
  const int64_t rope = record.rope;
  const int64_t nope = args.q.shape[2] - rope;
  HADAL_RETURN_IF_ERROR(check_pages(args.kv_pages, record));
  HADAL_RETURN_IF_ERROR(
      tensor("q", args.q, {DType::f32, DType::bf16}, Shape{tokens, heads, args.q.shape[2]}));
  HADAL_RETURN_IF_ERROR(that(rope >= 0 && nope > 0, "q", "room for the rope part of kv_pages"));
  HADAL_RETURN_IF_ERROR(
      that(heads > 0 && args.kv_b->out_features() % heads == 0, "q", "the heads of kv_b"));
  const int64_t v_head_dim = args.kv_b->out_features() / heads - nope;
  HADAL_RETURN_IF_ERROR(that(v_head_dim > 0, "kv_b", "rows for keys and values"));
  return activation("out", args.out, tokens, heads * v_head_dim);
}

Status check(const PageCopyArgs& args) {
  const Shape& pool = args.kv_pool.shape;
  HADAL_RETURN_IF_ERROR(
      tensor("kv_pool", args.kv_pool, kKvTypes, Shape{pool[0], pool[1], kKvPageTokens, pool[3]}));
  HADAL_RETURN_IF_ERROR(that(args.kv_pool.dtype != DType::f8_e4m3 || pool[3] % 4 == 0,
                             "kv_pool",
                             "FP8 records on multiples of 4 bytes"));
  return tensor("copies", args.copies, {DType::i32}, Shape{args.copies.shape[0], 3});
}

}  // namespace hadal
