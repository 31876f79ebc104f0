// What all op tests share: the built backends, random operands in every format with their exact
// values in double, and the accounting of errors against derived bounds.
//
// A case computes its reference in double from the operands' exact values, and beside it the sum of
// the magnitudes of all terms. The bound is (number of roundings) x 2^-24 x that sum, plus half a
// step of the output's format; the largest used fraction is printed.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <hadal/backend/backend.h>
#include <hadal/ops/ops.h>

#include "poison.h"

namespace hadal::test {

struct TestBackend {
  std::string name;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;
  bool rounds_latents = false;  ///< emulates E4M3 inputs of kv_b

  Ops& ops() { return backend->ops(); }
};

/// Every backend that this build and machine can run.
std::vector<TestBackend>& backends();

/// A row-major matrix of doubles.
struct Matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<double> values;

  Matrix() = default;

  Matrix(int64_t num_rows, int64_t num_columns)
      : rows(num_rows),
        columns(num_columns),
        values(static_cast<size_t>(num_rows * num_columns), 0.0) {}

  double& at(int64_t row, int64_t column) {
    return values[static_cast<size_t>(row * columns + column)];
  }

  double at(int64_t row, int64_t column) const {
    return values[static_cast<size_t>(row * columns + column)];
  }
};

using Random = std::mt19937_64;

/// Heavy-tailed values around zero.
Matrix random_matrix(Random& random, int64_t rows, int64_t columns, double scale = 1.0);

/// A tensor that was filled with values, and what the values became.
struct Operand {
  GuardedTensor tensor;
  Matrix exact;

  const TensorView& view() const { return tensor.view(); }
};

/// Rounds to f32 or bf16; shape [rows, columns], or a vector when rows is 1 and `is_vector`.
Operand make_operand(const Matrix& values, DType dtype, bool is_vector = false);

/// An activation in some format, its scales strided by token.
struct ActOperand {
  ActFormat format = ActFormat::f32;
  GuardedTensor values;
  GuardedTensor scales;
  Matrix exact;

  ActivationView view() const;
  /// Reads what an op wrote.
  Matrix read() const;

  bool guards_are_whole() const { return values.guards_are_whole() && scales.guards_are_whole(); }
};

/// Poisoned, to be written by an op.
ActOperand make_output(ActFormat format, int64_t rows, int64_t columns);
ActOperand make_activation(const Matrix& values, ActFormat format);

/// f32 or bf16 tensor as doubles.
Matrix read_matrix(const TensorView& view);
GuardedTensor make_ints(const std::vector<int32_t>& values, const Shape& shape);

/// A raw weight with its exact values.
struct RawOperand {
  GuardedTensor values;
  GuardedTensor scales;
  RawMatrix raw;
  Matrix exact;
};

/// Random weights; f8_e4m3 gets a different scale in every block and the given block offsets.
RawOperand make_raw(Random& random,
                    DType dtype,
                    int64_t rows,
                    int64_t columns,
                    int64_t row_offset = 0,
                    int64_t column_offset = 0);
std::unique_ptr<Weight> prepare(TestBackend& backend,
                                WeightRole role,
                                const std::vector<const RawOperand*>& parts,
                                int32_t num_heads = 0,
                                int32_t nope = 0,
                                int32_t value = 0);

/// Half a step of a plain dtype at this value.
double half_step(DType dtype, double value);
/// How far an activation of this format may be from the value written, for a group of this amax.
double half_step(ActFormat format, double value, double amax);

/// Largest error as a fraction of its bound, over a test case; printed at the end.
class ErrorReport {
 public:
  explicit ErrorReport(std::string name) : name_(std::move(name)) {}

  ~ErrorReport();
  void add(double found, double expected, double bound);

  bool is_within() const { return worst_ <= 1.0; }

  std::string describe() const;

 private:
  std::string name_;
  double worst_ = 0.0;
  double found_ = 0.0;
  double expected_ = 0.0;
  double bound_ = 0.0;
  int64_t count_ = 0;
};

/// Bound of a float32 dot product of `length` terms whose magnitudes sum to `magnitude`, summed in
/// groups of up to 128 with the groups' sums then added.
double dot_bound(int64_t length, double magnitude);

/// Adds every element of an activation to the report: `bounds` is the error before the format's
/// step.
void compare(ErrorReport& report,
             const ActOperand& found,
             const Matrix& expected,
             const Matrix& bounds);
void compare(ErrorReport& report,
             const GuardedTensor& found,
             const Matrix& expected,
             const Matrix& bounds);

inline constexpr double kUnit = 0x1p-24;  ///< half a step of float32 at 1
inline const ActFormat kAllFormats[] = {ActFormat::f32, ActFormat::bf16, ActFormat::e4m3};
inline const DType kWeightTypes[] = {DType::f8_e4m3, DType::bf16, DType::f16, DType::f32};
std::string name_of(ActFormat format);

}  // namespace hadal::test
