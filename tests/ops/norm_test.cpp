// Embedding and the add + norm op, alone and over the ranks of a communicator.
#include <cmath>
#include <functional>
#include <thread>

#include <hadal/comm/communicator.h>

#include "catch.h"
#include "op_test.h"

namespace hadal::test {

namespace {

/// residual + addend, and its norm.
void reference(const Matrix& residual,
               const Matrix& addend,
               const Matrix& weight,
               double eps,
               DType residual_dtype,
               Matrix& sum,
               Matrix& out,
               Matrix& out_bounds) {
  sum = residual;
  out = residual;
  out_bounds = residual;
  for (int64_t m = 0; m < residual.rows; ++m) {
    double squares = 0.0;
    for (int64_t i = 0; i < residual.columns; ++i) {
      sum.at(m, i) += addend.at(m, i);
      squares += sum.at(m, i) * sum.at(m, i);
    }
    const double factor = 1.0 / std::sqrt(squares / static_cast<double>(residual.columns) + eps);
    for (int64_t i = 0; i < residual.columns; ++i) {
      out.at(m, i) = sum.at(m, i) * factor * weight.at(0, i);
      // The residual is rounded before it is normalised; the root mean square moves by no more.
      const double input =
          half_step(residual_dtype, sum.at(m, i)) * factor * std::fabs(weight.at(0, i));
      const double relative = (residual_dtype == DType::bf16 ? 0x1p-8 : kUnit) + 40.0 * kUnit;
      out_bounds.at(m, i) = input + relative * std::fabs(out.at(m, i)) + 1e-30;
    }
  }
}

}  // namespace

TEST_CASE("embed: rows of the table, zeros for other ranks, last tokens by slot", "[ops]") {
  for (TestBackend& backend : backends()) {
    Random random(11);
    for (const DType dtype : {DType::bf16, DType::f32}) {
      const Operand table = make_operand(random_matrix(random, 10, 33), dtype);
      const GuardedTensor tokens = make_ints({20, -1, 29, 19, 30}, Shape{5});
      const GuardedTensor slots = make_ints({kAbsurdIndex, 2, kAbsurdIndex, 0, 0}, Shape{5});
      const GuardedTensor last = make_ints({kAbsurdIndex, kAbsurdIndex, 21}, Shape{3});
      const GuardedTensor out(dtype, Shape{5, 33});
      backend.ops().embed({.tokens = tokens.view(),
                           .token_slots = slots.view(),
                           .last_tokens = last.view(),
                           .table = table.view(),
                           .vocab_begin = 20,
                           .out = out.view()},
                          *backend.stream);
      const Matrix found = read_matrix(out.view());
      const int64_t expected[] = {0, 1, 9, -1, -1};
      for (int64_t m = 0; m < 5; ++m) {
        for (int64_t i = 0; i < 33; ++i) {
          const double want = expected[m] < 0 ? 0.0 : table.exact.at(expected[m], i);
          CHECK(found.at(m, i) == want);
        }
      }
      CHECK(out.guards_are_whole());
    }
  }
}

TEST_CASE("add_norm: agrees with double arithmetic in every format", "[ops]") {
  for (TestBackend& backend : backends()) {
    for (const ActFormat format : kAllFormats) {
      Random random(12);
      ErrorReport report("add_norm " + backend.name + " " + name_of(format));
      for (const DType dtype : {DType::f32, DType::bf16}) {
        for (const int64_t hidden : {7, 64, 200, 384}) {
          const int64_t rows = 9;
          const Operand residual = make_operand(random_matrix(random, rows, hidden, 3.0), dtype);
          const Operand addend = make_operand(random_matrix(random, rows, hidden), dtype);
          const Operand weight = make_operand(random_matrix(random, 1, hidden), DType::bf16, true);
          const ActOperand out = make_output(format, rows, hidden);
          const GuardedTensor plain(dtype, Shape{rows, hidden});
          Matrix sum;
          Matrix expected;
          Matrix bounds;
          reference(residual.exact, addend.exact, weight.exact, 1e-6, dtype, sum, expected, bounds);
          backend.ops().add_norm({.addend = addend.view(),
                                  .residual = residual.view(),
                                  .weight = weight.view(),
                                  .out = out.view(),
                                  .out_plain = plain.view()},
                                 *backend.stream);
          compare(report, residual.tensor, sum, Matrix(rows, hidden));
          compare(report, out, expected, bounds);
          compare(report, plain, expected, bounds);
        }
      }
      CHECK(report.is_within());
    }
  }
}

TEST_CASE("add_norm: without addend the residual stays; overwriting ignores it", "[ops]") {
  for (TestBackend& backend : backends()) {
    Random random(13);
    const Operand residual = make_operand(random_matrix(random, 2, 48), DType::f32);
    const Operand weight = make_operand(random_matrix(random, 1, 48), DType::f32, true);
    const ActOperand first = make_output(ActFormat::f32, 2, 48);
    const ActOperand second = make_output(ActFormat::f32, 2, 48);
    backend.ops().add_norm(
        {.residual = residual.view(), .weight = weight.view(), .out = first.view()},
        *backend.stream);
    CHECK(read_matrix(residual.view()).values == residual.exact.values);
    const GuardedTensor unset(DType::f32, Shape{2, 48});  // NaN: must not be read
    backend.ops().add_norm({.addend = residual.view(),
                            .residual = unset.view(),
                            .overwrite_residual = true,
                            .weight = weight.view(),
                            .out = second.view()},
                           *backend.stream);
    CHECK(read_matrix(unset.view()).values == residual.exact.values);
    CHECK(first.read().values == second.read().values);
  }
}

#ifndef HADAL_TEST_GPU  // ranks as threads sum in host memory, on the CPU backend

TEST_CASE("add_norm: sums partial addends over ranks, the same bits on each", "[ops]") {
  Random random(14);
  const int64_t hidden = 96;
  auto comms = make_thread_communicators(4);
  const Operand weight = make_operand(random_matrix(random, 1, hidden), DType::f32, true);
  std::vector<Operand> addends;
  std::vector<Operand> residuals;
  std::vector<ActOperand> outs;
  const Matrix start = random_matrix(random, 3, hidden);
  Matrix total(3, hidden);
  for (int32_t rank = 0; rank < 4; ++rank) {
    addends.push_back(make_operand(random_matrix(random, 3, hidden), DType::f32));
    residuals.push_back(make_operand(start, DType::f32));
    outs.push_back(make_output(ActFormat::f32, 3, hidden));
    for (size_t i = 0; i < total.values.size(); ++i) {
      total.values[i] += addends.back().exact.values[i];
    }
  }
  {
    std::vector<std::jthread> threads;
    for (size_t rank = 0; rank < 4; ++rank) {
      threads.emplace_back([&, rank] {
        const auto backend = make_cpu_backend({.num_threads = 1});
        const auto stream = backend->create_stream();
        backend->ops().add_norm({.addend = addends[rank].view(),
                                 .comm = comms[rank].get(),
                                 .residual = residuals[rank].view(),
                                 .weight = weight.view(),
                                 .out = outs[rank].view()},
                                *stream);
      });
    }
  }
  Matrix sum;
  Matrix expected;
  Matrix bounds;
  reference(residuals[0].exact, total, weight.exact, 1e-6, DType::f32, sum, expected, bounds);
  for (size_t i = 0; i < bounds.values.size(); ++i) {
    bounds.values[i] += 16.0 * kUnit * 10.0;  // four addends of magnitude under ten
  }
  ErrorReport report("add_norm over 4 ranks");
  compare(report, outs[0], expected, bounds);
  CHECK(report.is_within());
  for (size_t rank = 1; rank < 4; ++rank) {
    CHECK(outs[rank].read().values == outs[0].read().values);
  }
}

#endif

}  // namespace hadal::test
