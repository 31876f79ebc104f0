// Padded rows (hadal/ops/geometry.h) among real ones: the real rows' bits are those of a step
// without padding, the cache is touched by nobody else, and what is written for padding is finite.
#include <algorithm>
#include <cmath>

#include "catch.h"
#include "op_test.h"
#include "step_fixture.h"

namespace hadal::test {

namespace {

constexpr RowSpec kPadding{0, -1, 1, kFormGenerated};

/// Real rows with padding between and after them, so that tiles of 16 tokens hold both and one
/// holds padding alone.
struct PaddedRows {
  std::vector<int32_t> sequences{70, 1, 300, 64};
  std::vector<RowSpec> real{{0, 69, 1}, {1, 0, 1}, {2, 299, 1}, {3, 63, 1}};
  std::vector<RowSpec> padded;
  std::vector<int64_t> places;  ///< of the real rows among the padded ones

  PaddedRows() {
    for (size_t r = 0; r < real.size(); ++r) {
      padded.push_back(kPadding);
      places.push_back(static_cast<int64_t>(padded.size()));
      padded.push_back(real[r]);
    }
    padded.resize(35, kPadding);
  }

  bool is_real(int64_t row) const {
    return std::find(places.begin(), places.end(), row) != places.end();
  }

  /// The values of the real rows in their places, others random.
  Matrix spread(Random& random, const Matrix& values) const {
    Matrix all = random_matrix(random, static_cast<int64_t>(padded.size()), values.columns);
    for (size_t r = 0; r < places.size(); ++r) {
      std::copy_n(&values.values[r * static_cast<size_t>(values.columns)],
                  values.columns,
                  &all.at(places[r], 0));
    }
    return all;
  }
};

/// Requires that the real rows are the same and that every other element is `other`.
void require_rows(const PaddedRows& rows, const Matrix& found, const Matrix& alone, double other) {
  for (int64_t m = 0; m < found.rows; ++m) {
    for (int64_t k = 0; k < found.columns && !rows.is_real(m); ++k) {
      REQUIRE(found.at(m, k) == other);
    }
  }
  for (size_t r = 0; r < rows.places.size(); ++r) {
    for (int64_t k = 0; k < found.columns; ++k) {
      REQUIRE(found.at(rows.places[r], k) == alone.at(static_cast<int64_t>(r), k));
    }
  }
}

struct AttentionSizes {
  int64_t heads;
  int64_t nope;
  int64_t rope;
  int64_t value;
  int64_t latents;
};

Matrix run_attention(TestBackend& backend,
                     const AttentionSizes& sizes,
                     const Weight& kv_b,
                     const PaddedRows& setup,
                     const std::vector<RowSpec>& rows,
                     const std::vector<Matrix>& latents,
                     const Matrix& q_values,
                     ActFormat format,
                     DType kv_type) {
  Random pages(61);
  const StepFixture step(pages, setup.sequences, rows);
  const CacheFixture cache(step, latents, kv_type, sizes.latents);
  const Operand q = make_operand(q_values, DType::bf16);
  const ActOperand out = make_output(format, step.num_tokens(), sizes.heads * sizes.value);
  AttentionArgs args;
  args.geometry = &step.geometry();
  args.q = q.view();
  args.q.shape = Shape{step.num_tokens(), sizes.heads, sizes.nope + sizes.rope};
  args.q.strides = dense_strides(args.q.shape);
  args.kv_pages = cache.layer();
  args.kv_b = &kv_b;
  args.softmax_scale = 0.05F;
  args.out = out.view();
  backend.ops().begin_step(step.geometry(), *backend.stream);
  backend.ops().attention_generated(args, *backend.stream);
  CHECK(out.guards_are_whole());
  return out.read();
}

void check_attention(const AttentionSizes& sizes, DType kv_type) {
  const PaddedRows rows;
  for (TestBackend& backend : backends()) {
    for (const ActFormat format : kAllFormats) {
      Random random(62);
      const RawOperand raw =
          make_raw(random, DType::f8_e4m3, sizes.heads * (sizes.nope + sizes.value), sizes.latents);
      const auto kv_b = prepare(backend,
                                WeightRole::kv_b,
                                {&raw},
                                static_cast<int32_t>(sizes.heads),
                                static_cast<int32_t>(sizes.nope),
                                static_cast<int32_t>(sizes.value));
      std::vector<Matrix> latents;
      for (const int32_t tokens : rows.sequences) {
        latents.push_back(random_matrix(random, tokens, sizes.latents + sizes.rope));
      }
      const Matrix q = random_matrix(
          random, static_cast<int64_t>(rows.real.size()), sizes.heads * (sizes.nope + sizes.rope));
      const Matrix alone =
          run_attention(backend, sizes, *kv_b, rows, rows.real, latents, q, format, kv_type);
      const Matrix all_q = rows.spread(random, q);
      const Matrix among =
          run_attention(backend, sizes, *kv_b, rows, rows.padded, latents, all_q, format, kv_type);
      require_rows(rows, among, alone, 0.0);
    }
  }
}

void check_latent_write(DType kv_type) {
  const PaddedRows rows;
  const int64_t q_rank = 136;
  const int64_t latents = 40;
  const int64_t rope = 6;
  const int64_t heads = 3;
  const int64_t head_dim = 14;
  for (TestBackend& backend : backends()) {
    Random random(63);
    const auto num_real = static_cast<int64_t>(rows.real.size());
    const Matrix fused_values = random_matrix(random, num_real, q_rank + latents + rope);
    const Matrix q_values = random_matrix(random, num_real, heads * head_dim);
    const Matrix all_fused = rows.spread(random, fused_values);
    const Matrix all_q = rows.spread(random, q_values);
    const Operand q_weight = make_operand(random_matrix(random, 1, q_rank), DType::bf16, true);
    const Operand kv_weight = make_operand(random_matrix(random, 1, latents), DType::f32, true);
    const Operand table = make_operand(random_matrix(random, 300, rope), DType::f32);

    struct Outcome {
      Matrix q_latent;
      Matrix q;
      std::vector<std::byte> pool;
    };

    const auto run = [&](const std::vector<RowSpec>& specs, const Matrix& x, const Matrix& q) {
      Random pages(64);
      const StepFixture step(pages, rows.sequences, specs);
      const std::vector<Matrix> empty(rows.sequences.size(), Matrix(0, latents + rope));
      const CacheFixture cache(step, empty, kv_type, latents);
      const Operand fused = make_operand(x, DType::f32);
      const Operand query = make_operand(q, DType::f32);
      const ActOperand out_q = make_output(ActFormat::e4m3, step.num_tokens(), q_rank);
      LatentWriteArgs args;
      args.geometry = &step.geometry();
      args.q_latent = fused.view().columns(0, q_rank);
      args.q_norm_weight = q_weight.view();
      args.kv_latent = fused.view().columns(q_rank, latents + rope);
      args.kv_norm_weight = kv_weight.view();
      args.rope_table = table.view();
      args.out_q = out_q.view();
      args.kv_pages = cache.layer();
      backend.ops().latent_write(args, *backend.stream);
      TensorView view = query.view();
      view.shape = Shape{step.num_tokens(), heads, head_dim};
      view.strides = dense_strides(view.shape);
      backend.ops().rope_query(
          {.geometry = &step.geometry(), .q = view, .rope_table = table.view()}, *backend.stream);
      CHECK(cache.pool.guards_are_whole());
      const TensorView& pool = cache.pool.view();
      const int64_t pool_bytes = pool.shape.numel() * size_of(kv_type);
      return Outcome{out_q.read(), read_matrix(query.view()), {pool.data, pool.data + pool_bytes}};
    };
    const Outcome alone = run(rows.real, fused_values, q_values);
    const Outcome among = run(rows.padded, all_fused, all_q);
    CHECK(among.pool == alone.pool);
    const Matrix given = make_operand(all_q, DType::f32).exact;
    for (int64_t m = 0; m < among.q.rows; ++m) {
      for (int64_t k = 0; k < among.q.columns && !rows.is_real(m); ++k) {
        REQUIRE(among.q.at(m, k) == given.at(m, k));
      }
      for (int64_t k = 0; k < q_rank; ++k) {
        REQUIRE(std::isfinite(among.q_latent.at(m, k)));
      }
    }
    for (size_t r = 0; r < rows.places.size(); ++r) {
      for (int64_t k = 0; k < among.q.columns; ++k) {
        REQUIRE(among.q.at(rows.places[r], k) == alone.q.at(static_cast<int64_t>(r), k));
      }
      for (int64_t k = 0; k < q_rank; ++k) {
        REQUIRE(among.q_latent.at(rows.places[r], k) ==
                alone.q_latent.at(static_cast<int64_t>(r), k));
      }
    }
  }
}

}  // namespace

TEST_CASE("padded rows: attention gives zeros for them", "[ops]") {
  check_attention({3, 16, 8, 16, 32}, DType::bf16);
  check_attention({3, 16, 8, 16, 32}, DType::f8_e4m3);
}

TEST_CASE("padded rows: attention at the sizes of DeepSeek-V3", "[ops]") {
  check_attention({2, 128, 64, 128, 512}, DType::bf16);
  check_attention({2, 128, 64, 128, 512}, DType::f8_e4m3);
}

TEST_CASE("padded rows: latent_write leaves the cache alone, rope_query the query", "[ops]") {
  check_latent_write(DType::bf16);
  check_latent_write(DType::f8_e4m3);
}

TEST_CASE("padded rows: they choose no expert and get zeros from the mixture", "[ops]") {
  const PaddedRows rows;
  const auto num_rows = static_cast<int64_t>(rows.padded.size());
  const int64_t hidden = 128;
  const int64_t inner_size = 128;
  const int64_t top_k = 3;
  std::vector<int32_t> positions;
  for (const RowSpec& row : rows.padded) {
    positions.push_back(row.begin);
  }
  for (TestBackend& backend : backends()) {
    const GuardedTensor all_positions = make_ints(positions, Shape{num_rows});
    Random random(65);
    const RawOperand router = make_raw(random, DType::bf16, 8, hidden);
    const auto router_weight = prepare(backend, WeightRole::router, {&router});
    std::vector<RawOperand> gates;
    std::vector<RawOperand> downs;
    for (int32_t e = 0; e < 8; ++e) {
      gates.push_back(make_raw(random, DType::f8_e4m3, inner_size, hidden));
      gates.push_back(make_raw(random, DType::f8_e4m3, inner_size, hidden));
      downs.push_back(make_raw(random, DType::f8_e4m3, hidden, inner_size));
    }
    std::vector<const RawOperand*> gate_parts;
    std::vector<const RawOperand*> down_parts;
    for (size_t e = 0; e < downs.size(); ++e) {
      gate_parts.push_back(&gates[2 * e]);
      gate_parts.push_back(&gates[2 * e + 1]);
      down_parts.push_back(&downs[e]);
    }
    const auto gate_up = prepare(backend, WeightRole::gate_up, gate_parts);
    const auto down = prepare(backend, WeightRole::down, down_parts);
    const Matrix values = random_matrix(random, static_cast<int64_t>(rows.real.size()), hidden);
    const Matrix all_values = rows.spread(random, values);

    struct Outcome {
      Matrix ids;
      Matrix weights;
      Matrix out;
    };

    const auto run = [&](const Matrix& x_values, ConstTensorView row_positions) {
      const Operand plain = make_operand(x_values, DType::bf16);
      const ActOperand x = make_activation(x_values, ActFormat::bf16);
      const int64_t count = x_values.rows;
      const GuardedTensor ids(DType::i32, Shape{count, top_k});
      const GuardedTensor weights(DType::f32, Shape{count, top_k});
      backend.ops().router({.x = plain.view(),
                            .positions = row_positions,
                            .weight = router_weight.get(),
                            .top_k = top_k,
                            .norm_top_k = true,
                            .out_ids = ids.view(),
                            .out_weights = weights.view()},
                           *backend.stream);
      const ActOperand inner = make_output(ActFormat::bf16, count * top_k, inner_size);
      backend.ops().moe_gate_up({.x = x.view(),
                                 .expert_ids = ids.view(),
                                 .experts = gate_up.get(),
                                 .inner = inner.view()},
                                *backend.stream);
      const GuardedTensor out(DType::f32, Shape{count, hidden});
      backend.ops().moe_down({.inner = inner.view(),
                              .expert_ids = ids.view(),
                              .expert_weights = weights.view(),
                              .experts = down.get(),
                              .out = out.view()},
                             *backend.stream);
      Matrix id_values(count, top_k);
      for (int64_t i = 0; i < count * top_k; ++i) {
        id_values.values[static_cast<size_t>(i)] = ids.view().as<int32_t>()[i];
      }
      return Outcome{id_values, read_matrix(weights.view()), read_matrix(out.view())};
    };
    const Outcome alone = run(values, {});
    const Outcome among = run(all_values, all_positions.view());
    require_rows(rows, among.ids, alone.ids, -1.0);
    require_rows(rows, among.weights, alone.weights, 0.0);
    require_rows(rows, among.out, alone.out, 0.0);
  }
}

}  // namespace hadal::test
