// Dense products: linear, gate_up, lm_head, over all weight dtypes, block offsets and formats.
#include <cmath>

#include "catch.h"
#include "op_test.h"

namespace hadal::test {

namespace {

struct LinearCase {
  std::vector<int64_t> part_rows;
  std::vector<int64_t> row_offsets;
  int64_t columns;
  int64_t column_offset;
  int64_t tokens;
};

/// x * w^T and the bound of each element.
void reference(const Matrix& x, const Matrix& w, Matrix& y, Matrix& bounds) {
  y = Matrix(x.rows, w.rows);
  bounds = y;
  for (int64_t m = 0; m < x.rows; ++m) {
    for (int64_t n = 0; n < w.rows; ++n) {
      double magnitude = 0.0;
      for (int64_t k = 0; k < w.columns; ++k) {
        y.at(m, n) += x.at(m, k) * w.at(n, k);
        magnitude += std::fabs(x.at(m, k) * w.at(n, k));
      }
      bounds.at(m, n) = dot_bound(w.columns, magnitude);
    }
  }
}

Matrix stack(const std::vector<RawOperand>& parts) {
  Matrix all(0, parts.front().exact.columns);
  for (const RawOperand& part : parts) {
    all.rows += part.exact.rows;
    all.values.insert(all.values.end(), part.exact.values.begin(), part.exact.values.end());
  }
  return all;
}

const std::vector<LinearCase> kCases = {
    {{1}, {0}, 1, 0, 1},
    {{64, 24}, {0, 0}, 128, 0, 3},   // q_a + kv_a: a second part with its own blocks
    {{130, 70}, {0, 0}, 300, 0, 5},  // partial trailing blocks in both directions
    {{192}, {64}, 256, 0, 7},        // heads of 192 straddle blocks
    {{48}, {120}, 200, 96, 17},      // a slice that begins inside a block both ways
    {{33}, {0}, 77, 0, 2},
    {{80}, {0}, 129, 1, 300},   // more rows than one task takes
    {{144}, {0}, 272, 0, 290},  // the same in whole 16-byte chunks: wide tiles of a GPU
};

}  // namespace

TEST_CASE("linear: agrees with double arithmetic in every format", "[ops]") {
  for (TestBackend& backend : backends()) {
    for (const DType dtype : kWeightTypes) {
      for (const ActFormat format : kAllFormats) {
        Random random(1);
        ErrorReport report("linear " + backend.name + " " + std::string(to_string(dtype)) + " " +
                           name_of(format));
        for (const LinearCase& c : kCases) {
          std::vector<RawOperand> parts;
          std::vector<const RawOperand*> pointers;
          for (size_t i = 0; i < c.part_rows.size(); ++i) {
            parts.push_back(make_raw(
                random, dtype, c.part_rows[i], c.columns, c.row_offsets[i], c.column_offset));
          }
          for (const RawOperand& part : parts) {
            pointers.push_back(&part);
          }
          const auto weight = prepare(backend, WeightRole::linear, pointers);
          const ActOperand x = make_activation(random_matrix(random, c.tokens, c.columns), format);
          Matrix y;
          Matrix bounds;
          reference(x.exact, stack(parts), y, bounds);
          for (const DType out_dtype : {DType::f32, DType::bf16}) {
            const GuardedTensor out(out_dtype, Shape{c.tokens, y.columns});
            backend.ops().linear({.x = x.view(), .weight = weight.get(), .out = out.view()},
                                 *backend.stream);
            compare(report, out, y, bounds);
          }
        }
        INFO(report.describe());
        CHECK(report.is_within());
      }
    }
  }
}

TEST_CASE("gate_up: SwiGLU of two products in every format", "[ops]") {
  for (TestBackend& backend : backends()) {
    for (const DType dtype : {DType::f8_e4m3, DType::bf16}) {
      for (const ActFormat format : kAllFormats) {
        Random random(2);
        ErrorReport report("gate_up " + backend.name + " " + std::string(to_string(dtype)) + " " +
                           name_of(format));
        for (const int64_t intermediate : {8, 128, 200, 320}) {
          for (const int64_t tokens : {1, 6}) {
            const int64_t hidden = tokens == 1 ? 140 : 144;
            const RawOperand gate = make_raw(random, dtype, intermediate, hidden, 64, 0);
            const RawOperand up = make_raw(random, dtype, intermediate, hidden, 0, 0);
            const auto weight = prepare(backend, WeightRole::gate_up, {&gate, &up});
            const ActOperand x = make_activation(random_matrix(random, tokens, hidden), format);
            const ActOperand out = make_output(format, tokens, intermediate);
            backend.ops().gate_up({.x = x.view(), .weight = weight.get(), .out = out.view()},
                                  *backend.stream);
            Matrix g;
            Matrix g_bounds;
            Matrix u;
            Matrix u_bounds;
            reference(x.exact, gate.exact, g, g_bounds);
            reference(x.exact, up.exact, u, u_bounds);
            Matrix y = g;
            Matrix bounds = g;
            for (size_t i = 0; i < y.values.size(); ++i) {
              const double gv = g.values[i];
              const double silu = gv / (1.0 + std::exp(-gv));
              y.values[i] = silu * u.values[i];
              // |silu'| <= 1.1; the exponential and three operations round.
              bounds.values[i] =
                  1.1 * g_bounds.values[i] * (std::fabs(u.values[i]) + u_bounds.values[i]) +
                  std::fabs(silu) * u_bounds.values[i] +
                  8.0 * kUnit * (1.0 + std::fabs(gv)) * std::fabs(y.values[i]);
            }
            compare(report, out, y, bounds);
          }
        }
        INFO(report.describe());
        CHECK(report.is_within());
      }
    }
  }
}

TEST_CASE("lm_head: only the wanted rows, in their order", "[ops]") {
  for (TestBackend& backend : backends()) {
    Random random(3);
    ErrorReport report("lm_head " + backend.name);
    const RawOperand raw = make_raw(random, DType::bf16, 70, 96);
    const auto weight = prepare(backend, WeightRole::lm_head, {&raw});
    for (const ActFormat format : {ActFormat::f32, ActFormat::bf16}) {
      const ActOperand x = make_activation(random_matrix(random, 5, 96), format);
      const GuardedTensor rows = make_ints({4, 0, 4}, Shape{3});
      const GuardedTensor out(DType::f32, Shape{3, 70});
      backend.ops().lm_head(
          {.x = x.view(), .rows = rows.view(), .weight = weight.get(), .out = out.view()},
          *backend.stream);
      Matrix all;
      Matrix all_bounds;
      reference(x.exact, raw.exact, all, all_bounds);
      Matrix y(3, 70);
      Matrix bounds(3, 70);
      for (int64_t i = 0; i < 3; ++i) {
        for (int64_t n = 0; n < 70; ++n) {
          y.at(i, n) = all.at(i == 1 ? 0 : 4, n);
          bounds.at(i, n) = all_bounds.at(i == 1 ? 0 : 4, n);
        }
      }
      compare(report, out, y, bounds);
    }
    CHECK(report.is_within());
  }
}

TEST_CASE("prepare_weight: names what does not fit", "[ops]") {
  Random random(4);
  TestBackend& backend = backends().front();
  const auto error_of = [&](WeightRole role, std::vector<RawMatrix> parts) {
    WeightSource source;
    source.role = role;
    source.parts = parts;
    const auto weight = backend.backend->prepare_weight(source);
    return weight ? std::string() : weight.error().message;
  };
  RawOperand fp8 = make_raw(random, DType::f8_e4m3, 130, 130);
  RawMatrix wrong = fp8.raw;
  wrong.scale_inv = wrong.scale_inv.rows(0, 1);
  CHECK(error_of(WeightRole::linear, {wrong}).find("[2, 2]") != std::string::npos);
  wrong = fp8.raw;
  wrong.row_offset = 128;
  CHECK(error_of(WeightRole::linear, {wrong}).find("0..127") != std::string::npos);
  CHECK(error_of(WeightRole::gate_up, {fp8.raw}).find("pairs") != std::string::npos);
  CHECK_FALSE(error_of(WeightRole::linear, {}).empty());
  CHECK_FALSE(error_of(WeightRole::kv_b, {fp8.raw}).empty());
  fp8.values.view().as<uint8_t>()[77] = 0xff;
  CHECK(error_of(WeightRole::linear, {fp8.raw}).find("NaN") != std::string::npos);
}

}  // namespace hadal::test
