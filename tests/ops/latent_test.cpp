// Writing the latent cache, RoPE of queries, page copies, and bit-for-bit independence of attention
// and products from batch, chunks, pages and threads.
#include <cmath>
#include <cstring>

#include "catch.h"
#include "op_test.h"
#include "step_fixture.h"

namespace hadal::test {

namespace {

/// cos and sin of an angle that differs by position and pair.
GuardedTensor make_rope_table(int64_t positions, int64_t rope) {
  GuardedTensor table(DType::f32, Shape{positions, rope});
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < rope / 2; ++i) {
      const double angle = 0.37 * static_cast<double>(p) / static_cast<double>(i + 1);
      table.view().row<float>(p)[i] = static_cast<float>(std::cos(angle));
      table.view().row<float>(p)[rope / 2 + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

/// Rotates the last `rope` of `x`, and gives the bound of each.
void rotate(double* x, double* bounds, const GuardedTensor& table, int64_t position, int64_t rope) {
  const float* row = table.view().row<float>(position);
  for (int64_t i = 0; i < rope / 2; ++i) {
    const auto c = static_cast<double>(row[i]);
    const auto s = static_cast<double>(row[rope / 2 + i]);
    const double even = x[2 * i];
    const double odd = x[2 * i + 1];
    x[2 * i] = even * c - odd * s;
    x[2 * i + 1] = even * s + odd * c;
    bounds[2 * i] = bounds[2 * i + 1] = 3.0 * kUnit * (std::fabs(even) + std::fabs(odd));
  }
}

void normalise(double* x, double* bounds, const Matrix& weight, int64_t count) {
  double squares = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    squares += x[i] * x[i];
  }
  const double factor = 1.0 / std::sqrt(squares / static_cast<double>(count) + 1e-6);
  for (int64_t i = 0; i < count; ++i) {
    x[i] *= factor * weight.at(0, i);
    bounds[i] = 40.0 * kUnit * std::fabs(x[i]);
  }
}

}  // namespace

TEST_CASE("latent_write: norms, RoPE, and nothing but its own slots", "[ops]") {
  const int64_t q_rank = 136;
  const int64_t latents = 40;
  const int64_t rope = 6;
  const std::vector<int32_t> sequences{70, 3};
  const std::vector<RowSpec> rows{{0, 62, 8, kFormPrompt}, {1, 2, 1}};
  for (TestBackend& backend : backends()) {
    for (const ActFormat format : kAllFormats) {
      for (const DType kv_type : {DType::f32, DType::bf16}) {
        Random random(31);
        ErrorReport report("latent_write " + backend.name + " " + name_of(format));
        const StepFixture step(random, sequences, rows);
        const CacheFixture cache(
            step, {Matrix(0, latents + rope), Matrix(0, latents + rope)}, kv_type);
        const TensorView& pool = cache.pool.view();
        const std::vector<std::byte> before(pool.data,
                                            pool.data + pool.shape.numel() * size_of(kv_type));
        const GuardedTensor table = make_rope_table(80, rope);
        // One fused matrix, as the linear before it writes.
        const Operand fused = make_operand(
            random_matrix(random, step.num_tokens(), q_rank + latents + rope), kv_type);
        const Operand q_weight = make_operand(random_matrix(random, 1, q_rank), DType::bf16, true);
        const Operand kv_weight = make_operand(random_matrix(random, 1, latents), DType::f32, true);
        const ActOperand out_q = make_output(format, step.num_tokens(), q_rank);
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

        Matrix q(step.num_tokens(), q_rank);
        Matrix q_bounds = q;
        int64_t token = 0;
        for (const RowSpec& row : rows) {
          for (int32_t i = 0; i < row.count; ++i, ++token) {
            std::vector<double> x(fused.exact.values.begin() + token * fused.exact.columns,
                                  fused.exact.values.begin() + (token + 1) * fused.exact.columns);
            std::vector<double> bounds(x.size());
            normalise(x.data(), bounds.data(), q_weight.exact, q_rank);
            normalise(x.data() + q_rank, bounds.data() + q_rank, kv_weight.exact, latents);
            rotate(x.data() + q_rank + latents,
                   bounds.data() + q_rank + latents,
                   table,
                   row.begin + i,
                   rope);
            std::copy_n(x.begin(), q_rank, &q.at(token, 0));
            std::copy_n(bounds.begin(), q_rank, &q_bounds.at(token, 0));
            const int64_t page = step.page(row.sequence, row.begin + i);
            const TensorView layer = cache.layer();
            const int64_t at =
                page * layer.strides[0] + (row.begin + i) % kKvPageTokens * layer.strides[1];
            TensorView slot =
                make_view(layer.data + at * size_of(kv_type), kv_type, Shape{1, latents + rope});
            const Matrix found = read_matrix(slot);
            for (int64_t d = 0; d < latents + rope; ++d) {
              const auto k = static_cast<size_t>(q_rank + d);
              report.add(found.at(0, d),
                         x[k],
                         bounds[k] + half_step(kv_type, std::fabs(x[k]) + bounds[k]));
            }
            poison(slot);
          }
        }
        compare(report, out_q, q, q_bounds);
        CHECK(report.is_within());
        // With the written slots poisoned again the pool is what it was.
        CHECK(std::memcmp(pool.data, before.data(), before.size()) == 0);
        CHECK(cache.pool.guards_are_whole());
      }
    }
  }
}

TEST_CASE("rope_query: rotates the last features of every head", "[ops]") {
  const int64_t heads = 3;
  const int64_t head_dim = 14;
  const int64_t rope = 6;
  for (TestBackend& backend : backends()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Random random(32);
      ErrorReport report("rope_query " + backend.name);
      const StepFixture step(random, {9, 80}, {{1, 70, 4, kFormPrompt}, {0, 8, 1}});
      const GuardedTensor table = make_rope_table(80, rope);
      const Operand q = make_operand(random_matrix(random, 5, heads * head_dim), dtype);
      TensorView view = q.view();
      view.shape = Shape{5, heads, head_dim};
      view.strides = dense_strides(view.shape);
      backend.ops().rope_query(
          {.geometry = &step.geometry(), .q = view, .rope_table = table.view()}, *backend.stream);
      Matrix want = q.exact;
      Matrix bounds(5, heads * head_dim);
      for (int64_t m = 0; m < 5; ++m) {
        for (int64_t h = 0; h < heads; ++h) {
          const int64_t column = (h + 1) * head_dim - rope;
          rotate(&want.at(m, column), &bounds.at(m, column), table, m < 4 ? 70 + m : 8, rope);
        }
      }
      compare(report, q.tensor, want, bounds);
      CHECK(report.is_within());
    }
  }
}

TEST_CASE("copy_pages: the first tokens of all layers, in order", "[ops]") {
  for (TestBackend& backend : backends()) {
    Random random(33);
    const Operand pool = make_operand(random_matrix(random, 4 * 2 * 64, 6), DType::bf16);
    TensorView view = pool.view();
    view.shape = Shape{4, 2, 64, 6};
    view.strides = dense_strides(view.shape);
    const GuardedTensor copies = make_ints({0, 2, 64, 1, 3, 5, 3, 0, 0}, Shape{3, 3});
    backend.ops().copy_pages({.kv_pool = view, .copies = copies.view()}, *backend.stream);
    const Matrix found = read_matrix(pool.view());
    for (int64_t page = 0; page < 4; ++page) {
      for (int64_t layer = 0; layer < 2; ++layer) {
        for (int64_t token = 0; token < 64; ++token) {
          const int64_t source = page == 2 ? 0 : page == 3 && token < 5 ? 1 : page;
          const int64_t row = (page * 2 + layer) * 64 + token;
          CHECK(found.at(row, 3) == pool.exact.at((source * 2 + layer) * 64 + token, 3));
        }
      }
    }
  }
}

TEST_CASE("attention: bits do not depend on batch, chunks, pages or threads", "[ops]") {
  const int64_t heads = 3;
  const int64_t nope = 32;
  const int64_t rope = 16;
  const int64_t value = 32;
  const int64_t latents = 64;
  const int32_t length = 300;
  for (TestBackend& backend : backends()) {
    Random random(34);
    const RawOperand raw = make_raw(random, DType::f8_e4m3, heads * (nope + value), latents);
    const auto kv_b = prepare(backend, WeightRole::kv_b, {&raw}, 3, 32, 32);
    const Matrix latent_values = random_matrix(random, length, latents + rope);
    const Matrix q_values = random_matrix(random, length, heads * (nope + rope));
    const auto run = [&](const std::vector<RowSpec>& rows, uint8_t form, Ops& ops) {
      const StepFixture step(random, {length}, rows);
      const CacheFixture cache(step, {latent_values}, DType::bf16);
      Matrix q(step.num_tokens(), q_values.columns);
      for (int64_t m = 0; m < q.rows; ++m) {
        const int64_t position = step.geometry().positions.as<int32_t>()[m];
        std::copy_n(
            &q_values.values[static_cast<size_t>(position * q.columns)], q.columns, &q.at(m, 0));
      }
      const Operand q_operand = make_operand(q, DType::f32);
      const ActOperand out = make_output(ActFormat::f32, q.rows, heads * value);
      AttentionArgs args;
      args.geometry = &step.geometry();
      args.q = q_operand.view();
      args.q.shape = Shape{q.rows, heads, nope + rope};
      args.q.strides = dense_strides(args.q.shape);
      args.kv_pages = cache.layer();
      args.kv_b = kv_b.get();
      args.softmax_scale = 0.2F;
      args.out = out.view();
      ops.begin_step(step.geometry(), *backend.stream);
      if (form == kFormPrompt) {
        ops.attention_prompt(args, *backend.stream);
      } else {
        ops.attention_generated(args, *backend.stream);
      }
      return out.read();
    };
    for (const uint8_t form : {kFormPrompt, kFormGenerated}) {
      const Matrix whole = run({{0, 0, length, form}}, form, backend.ops());
      const Matrix parts =
          run({{0, 100, 63, form}, {0, 0, 1, form}, {0, 1, 99, form}, {0, 163, 137, form}},
              form,
              backend.ops());
      const int64_t starts[][3] = {{0, 100, 63}, {63, 0, 1}, {64, 1, 99}, {163, 163, 137}};
      for (const auto& part : starts) {
        for (int64_t i = 0; i < part[2]; ++i) {
          for (int64_t k = 0; k < whole.columns; ++k) {
            REQUIRE(parts.at(part[0] + i, k) == whole.at(part[1] + i, k));
          }
        }
      }
    }
  }
}

TEST_CASE("reserve: room for a small server is made, for an impossible one refused", "[ops]") {
  OpsLimits limits;
  limits.max_step_tokens = 64;
  limits.max_rows = 4;
  limits.max_context_tokens = 1000;
  limits.num_heads = 3;
  limits.qk_nope_head_dim = 32;
  limits.qk_rope_head_dim = 16;
  limits.v_head_dim = 32;
  limits.kv_lora_rank = 64;
  CHECK(backends().front().backend->reserve(limits));
#ifndef HADAL_SANITIZED
  limits.max_context_tokens = 0x7fffffff;
  limits.num_heads = 1 << 16;
  limits.kv_lora_rank = 1 << 16;
  limits.v_head_dim = 1 << 16;
  const Status refused = make_cpu_backend({.num_threads = 1})->reserve(limits);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::resource_exhausted);
#endif
}

TEST_CASE("linear: bits of a row do not depend on the other rows", "[ops]") {
  for (TestBackend& backend : backends()) {
    for (const DType dtype : {DType::f8_e4m3, DType::bf16}) {
      Random random(35);
      const RawOperand raw = make_raw(random, dtype, 100, 260, 0, 32);
      const auto weight = prepare(backend, WeightRole::linear, {&raw});
      const ActOperand x = make_activation(random_matrix(random, 300, 260), ActFormat::f32);
      const GuardedTensor all(DType::f32, Shape{300, 100});
      backend.ops().linear({.x = x.view(), .weight = weight.get(), .out = all.view()},
                           *backend.stream);
      for (const int64_t count : {1, 2, 3, 4, 5, 7, 9, 31}) {
        const GuardedTensor some(DType::f32, Shape{count, 100});
        const int64_t begin = 293 - count;
        backend.ops().linear(
            {.x = x.view().rows(begin, count), .weight = weight.get(), .out = some.view()},
            *backend.stream);
        CHECK(std::memcmp(some.view().data,
                          all.view().row<float>(begin),
                          static_cast<size_t>(count) * 100 * sizeof(float)) == 0);
      }
    }
  }
}

}  // namespace hadal::test
