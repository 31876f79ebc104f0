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

/// Adds what a slot of the cache says to the report; `bounds` is the error before its format.
void check_slot(ErrorReport& report,
                const KvRecord& record,
                const std::byte* slot,
                const double* want,
                const double* bounds) {
  std::vector<double> found(static_cast<size_t>(record.latents + record.rope));
  std::vector<double> steps(found.size());
  if (!record.is_fp8()) {
    const TensorView view =
        make_view(const_cast<std::byte*>(slot), record.dtype, Shape{1, record.elements()});
    found = read_matrix(view).values;
    for (size_t d = 0; d < found.size(); ++d) {
      steps[d] = half_step(record.dtype, std::fabs(want[d]) + bounds[d]);
    }
  }
  for (int64_t group = 0; group < record.num_groups(); ++group) {
    float stored = 0.0F;
    std::memcpy(&stored, slot + record.scales_at() + 4 * group, sizeof stored);
    const auto scale = static_cast<double>(stored);
    const int64_t begin = group * kQuantGroup;
    const int64_t end = std::min(record.latents, begin + kQuantGroup);
    double low = 0.0;
    double high = 0.0;
    for (int64_t d = begin; d < end; ++d) {
      low = std::max(low, std::fabs(want[d]) - bounds[d]);
      high = std::max(high, std::fabs(want[d]) + bounds[d]);
    }
    CHECK((scale == kv_scale(low) || scale == kv_scale(high)));
    for (int64_t d = begin; d < end; ++d) {
      const auto k = static_cast<size_t>(d);
      found[k] = static_cast<double>(e4m3_to_f32(static_cast<uint8_t>(slot[d]))) * scale;
      steps[k] = std::max((std::fabs(want[d]) + bounds[d]) * 0x1p-4, scale * 0x1p-10);
    }
  }
  for (int64_t i = 0; record.is_fp8() && i < record.rope; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, slot + record.rope_at() + 2 * i, sizeof bits);
    const auto k = static_cast<size_t>(record.latents + i);
    found[k] = static_cast<double>(bf16_to_f32(bits));
    steps[k] = half_step(DType::bf16, std::fabs(want[k]) + bounds[k]);
  }
  for (size_t d = 0; d < found.size(); ++d) {
    report.add(found[d], want[d], bounds[d] + steps[d]);
  }
}

void run_latent_write(TestBackend& backend, ActFormat format, DType kv_type) {
  const int64_t q_rank = 136;
  const int64_t latents = 136;  // a quantisation group and a part
  const int64_t rope = 6;
  const std::vector<RowSpec> rows{{0, 62, 8, kFormPrompt}, {1, 2, 1}};
  Random random(31);
  ErrorReport report("latent_write " + backend.name + " " + name_of(format) + " into " +
                     std::string(to_string(kv_type)));
  const StepFixture step(random, {70, 3}, rows);
  const CacheFixture cache(
      step, {Matrix(0, latents + rope), Matrix(0, latents + rope)}, kv_type, latents);
  const TensorView& pool = cache.pool.view();
  const std::vector<std::byte> before(pool.data, pool.data + pool.shape.numel() * size_of(kv_type));
  const GuardedTensor table = make_rope_table(80, rope);
  // One fused matrix, as the linear before it writes.
  const DType plain = kv_type == DType::f32 ? DType::f32 : DType::bf16;
  const Operand fused =
      make_operand(random_matrix(random, step.num_tokens(), q_rank + latents + rope), plain);
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
      double* kv = x.data() + q_rank;
      double* kv_bounds = bounds.data() + q_rank;
      normalise(x.data(), bounds.data(), q_weight.exact, q_rank);
      normalise(kv, kv_bounds, kv_weight.exact, latents);
      rotate(kv + latents, kv_bounds + latents, table, row.begin + i, rope);
      std::copy_n(x.begin(), q_rank, &q.at(token, 0));
      std::copy_n(bounds.begin(), q_rank, &q_bounds.at(token, 0));
      const TensorView layer = cache.layer();
      const int64_t at = step.page(row.sequence, row.begin + i) * layer.strides[0] +
                         (row.begin + i) % kKvPageTokens * layer.strides[1];
      std::byte* slot = layer.data + at * size_of(kv_type);
      check_slot(report, cache.record, slot, kv, kv_bounds);
      poison(make_view(slot, kv_type, Shape{cache.record.elements()}));
    }
  }
  compare(report, out_q, q, q_bounds);
  CHECK(report.is_within());
  // With the written slots poisoned again the pool is what it was.
  CHECK(std::memcmp(pool.data, before.data(), before.size()) == 0);
  CHECK(cache.pool.guards_are_whole());
}

}  // namespace

TEST_CASE("latent_write: norms, RoPE, and nothing but its own slots", "[ops]") {
  for (TestBackend& backend : backends()) {
    for (const ActFormat format : kAllFormats) {
      for (const DType kv_type : kKvTypes) {
        run_latent_write(backend, format, kv_type);
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
    for (const DType dtype : kKvTypes) {
      Random random(33);
      const Operand pool = make_operand(random_matrix(random, 4 * 2 * 64, 12), dtype);
      TensorView view = pool.view();
      view.shape = Shape{4, 2, 64, 12};
      view.strides = dense_strides(view.shape);
      const GuardedTensor copies = make_ints({0, 2, 64, 1, 3, 5, 3, 0, 0}, Shape{3, 3});
      backend.ops().copy_pages({.kv_pool = view, .copies = copies.view()}, *backend.stream);
      const Matrix found = read_matrix(pool.view());
      for (int64_t at = 0; at < 4 * 2 * 64; ++at) {
        const int64_t page = at / 128;
        const int64_t source = page == 2 ? 0 : page == 3 && at % 64 < 5 ? 1 : page;
        for (int64_t d = 0; d < 12; ++d) {
          CHECK(found.at(at, d) == pool.exact.at(source * 128 + at % 128, d));
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
    const auto run = [&](const std::vector<RowSpec>& rows, uint8_t form, DType kv_type) {
      Ops& ops = backend.ops();
      const StepFixture step(random, {length}, rows);
      const CacheFixture cache(step, {latent_values}, kv_type, latents);
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
    const auto check = [&](uint8_t form, DType kv_type) {
      const Matrix whole = run({{0, 0, length, form}}, form, kv_type);
      const Matrix parts =
          run({{0, 100, 63, form}, {0, 0, 1, form}, {0, 1, 99, form}, {0, 163, 137, form}},
              form,
              kv_type);
      const int64_t starts[][3] = {{0, 100, 63}, {63, 0, 1}, {64, 1, 99}, {163, 163, 137}};
      for (const auto& part : starts) {
        for (int64_t i = 0; i < part[2]; ++i) {
          for (int64_t k = 0; k < whole.columns; ++k) {
            REQUIRE(parts.at(part[0] + i, k) == whole.at(part[1] + i, k));
          }
        }
      }
    };
    for (const DType kv_type : kKvTypes) {
      check(kFormPrompt, kv_type);
      check(kFormGenerated, kv_type);
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
