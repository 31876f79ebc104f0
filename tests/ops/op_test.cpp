// See op_test.h.
#include "op_test.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "catch.h"

namespace hadal::test {

namespace {

constexpr double kE4m3Max = 448.0;

#ifdef HADAL_TEST_GPU

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE

Backend* gpu_backend = nullptr;

/// Pinned host memory: the test fills and reads it, kernels reach it by the same address.
TestMemory allocate_pinned(size_t size_bytes) {
  auto made = gpu_backend->allocate(static_cast<int64_t>(size_bytes), MemoryKind::pinned_host);
  REQUIRE(static_cast<bool>(made));
  auto buffer = std::make_shared<Buffer>(std::move(made).value());
  return TestMemory(buffer, buffer->data());
}

/// The GPU of this machine; without one the program ends here, as skipped.
std::vector<TestBackend> make_backends() {
  // Ops wait for their kernels, so a case reads results as soon as an op returns.
  auto made = make_cuda_backend({.sync_every_op = true});
  if (!made) {
    std::printf("skipped: %s\n", made.error().message.c_str());
    std::fflush(stdout);
    std::_Exit(kSkipped);
  }
  OpsLimits limits;
  limits.max_step_tokens = 512;
  limits.max_rows = 64;
  limits.max_context_tokens = 8192;
  limits.num_heads = 16;
  limits.qk_nope_head_dim = 128;
  limits.qk_rope_head_dim = 64;
  limits.v_head_dim = 128;
  limits.kv_lora_rank = 512;
  limits.vocab_size = 4096;
  std::vector<TestBackend> list(1);
  list[0].name = "cuda";
  list[0].backend = std::move(made).value();
  list[0].stream = list[0].backend->create_stream();
  const Status reserved = list[0].backend->reserve(limits);
  if (!reserved) {
    HADAL_CHECK(false, reserved.error().message);
  }
  gpu_backend = list[0].backend.get();
  allocate_test_memory = allocate_pinned;
  return list;
}

/// Fixtures may be built before a case first asks for the backends.
TestMemory allocate_first(size_t size_bytes) {
  (void)backends();
  return allocate_test_memory(size_bytes);
}

[[maybe_unused]] const bool is_installed = [] {
  allocate_test_memory = allocate_first;
  return true;
}();

#else

TestBackend make_test_backend(const std::string& name, const CpuBackendConfig& config) {
  TestBackend result;
  result.name = name;
  result.backend = make_cpu_backend(config);
  result.stream = result.backend->create_stream();
  result.rounds_latents = config.e4m3_activations;
  return result;
}

std::vector<TestBackend> make_backends() {
  std::vector<TestBackend> list;
  list.push_back(make_test_backend("cpu exact", {.mode = CpuMode::exact, .num_threads = 2}));
  list.push_back(make_test_backend(
      "cpu exact e4m3", {.mode = CpuMode::exact, .num_threads = 1, .e4m3_activations = true}));
  list.push_back(make_test_backend("cpu avx2", {.max_isa = CpuIsa::avx2, .num_threads = 2}));
  list.push_back(make_test_backend("cpu fast", {.num_threads = 3}));
  list.push_back(make_test_backend("cpu fast e4m3", {.num_threads = 2, .e4m3_activations = true}));
  return list;
}

#endif

double read_element(const TensorView& view, int64_t i) {
  switch (view.dtype) {
    case DType::f32:
      return static_cast<double>(view.as<float>()[i]);
    case DType::bf16:
      return static_cast<double>(bf16_to_f32(view.as<uint16_t>()[i]));
    case DType::f16:
      return static_cast<double>(f16_to_f32(view.as<uint16_t>()[i]));
    case DType::f8_e4m3:
      return static_cast<double>(e4m3_to_f32(view.as<uint8_t>()[i]));
    default:
      return 0.0;
  }
}

void write_element(const TensorView& view, int64_t i, double value) {
  const auto single = static_cast<float>(value);
  switch (view.dtype) {
    case DType::f32:
      view.as<float>()[i] = single;
      return;
    case DType::bf16:
      view.as<uint16_t>()[i] = f32_to_bf16(single);
      return;
    case DType::f16:
      view.as<uint16_t>()[i] = f32_to_f16(single);
      return;
    default:
      view.as<uint8_t>()[i] = f32_to_e4m3(single);
  }
}

}  // namespace

std::vector<TestBackend>& backends() {
  static std::vector<TestBackend> all = make_backends();
  return all;
}

Matrix random_matrix(Random& random, int64_t rows, int64_t columns, double scale) {
  std::student_t_distribution<double> tailed(5.0);
  Matrix result(rows, columns);
  for (double& value : result.values) {
    value = scale * tailed(random);
  }
  return result;
}

Operand make_operand(const Matrix& values, DType dtype, bool is_vector) {
  Operand result;
  const Shape shape = is_vector ? Shape{values.columns} : Shape{values.rows, values.columns};
  result.tensor = GuardedTensor(dtype, shape);
  result.exact = Matrix(values.rows, values.columns);
  for (size_t i = 0; i < values.values.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    write_element(result.view(), at, values.values[i]);
    result.exact.values[i] = read_element(result.view(), at);
  }
  return result;
}

ActivationView ActOperand::view() const {
  ActivationView result;
  result.format = format;
  result.values = values.view();
  if (format == ActFormat::e4m3) {
    // Stored [groups][rows]: contiguous over tokens.
    result.scales = scales.view();
    result.scales.shape = Shape{scales.view().shape[1], scales.view().shape[0]};
    result.scales.strides = Shape{1, scales.view().shape[1]};
  }
  return result;
}

ActOperand make_output(ActFormat format, int64_t rows, int64_t columns) {
  ActOperand result;
  result.format = format;
  result.values = GuardedTensor(value_dtype(format), Shape{rows, columns});
  const int64_t groups = (columns + kQuantGroup - 1) / kQuantGroup;
  result.scales = GuardedTensor(DType::f32, Shape{groups, rows});
  return result;
}

Matrix ActOperand::read() const {
  const Shape& shape = values.view().shape;
  Matrix result(shape[0], shape[1]);
  for (int64_t m = 0; m < shape[0]; ++m) {
    for (int64_t k = 0; k < shape[1]; ++k) {
      const double value = read_element(values.view(), m * shape[1] + k);
      const double scale = format == ActFormat::e4m3
                               ? static_cast<double>(scales.view().row<float>(k / kQuantGroup)[m])
                               : 1.0;
      result.at(m, k) = value * scale;
    }
  }
  return result;
}

ActOperand make_activation(const Matrix& values, ActFormat format) {
  ActOperand result = make_output(format, values.rows, values.columns);
  for (int64_t m = 0; m < values.rows; ++m) {
    for (int64_t begin = 0; begin < values.columns; begin += kQuantGroup) {
      const int64_t end = std::min(values.columns, begin + kQuantGroup);
      double scale = 1.0;
      if (format == ActFormat::e4m3) {
        double amax = 1e-4;
        for (int64_t k = begin; k < end; ++k) {
          amax = std::max(amax, std::fabs(values.at(m, k)));
        }
        const auto stored = static_cast<float>(amax / kE4m3Max);
        result.scales.view().row<float>(begin / kQuantGroup)[m] = stored;
        scale = static_cast<double>(stored);
      }
      for (int64_t k = begin; k < end; ++k) {
        write_element(result.values.view(), m * values.columns + k, values.at(m, k) / scale);
      }
    }
  }
  result.exact = result.read();
  return result;
}

Matrix read_matrix(const TensorView& view) {
  const int64_t rows = view.shape[0];
  Matrix result(rows, rows == 0 ? 0 : view.shape.numel() / rows);
  for (size_t i = 0; i < result.values.size(); ++i) {
    result.values[i] = read_element(view, static_cast<int64_t>(i));
  }
  return result;
}

GuardedTensor make_ints(const std::vector<int32_t>& values, const Shape& shape) {
  GuardedTensor result(DType::i32, shape);
  std::copy(values.begin(), values.end(), result.view().as<int32_t>());
  return result;
}

RawOperand make_raw(Random& random,
                    DType dtype,
                    int64_t rows,
                    int64_t columns,
                    int64_t row_offset,
                    int64_t column_offset) {
  RawOperand result;
  const bool is_fp8 = dtype == DType::f8_e4m3;
  std::uniform_real_distribution<double> spread(-1.0, 1.0);
  result.values = GuardedTensor(dtype, Shape{rows, columns});
  result.exact = Matrix(rows, columns);
  result.raw.values = result.values.view();
  if (is_fp8) {
    const Shape shape{(row_offset + rows + 127) / 128, (column_offset + columns + 127) / 128};
    result.scales = GuardedTensor(DType::f32, shape);
    for (int64_t i = 0; i < shape.numel(); ++i) {
      const double scale = 1e-3 * std::exp2(2.0 * spread(random));
      result.scales.view().as<float>()[i] = static_cast<float>(scale);
    }
    result.raw.scale_inv = result.scales.view();
    result.raw.row_offset = row_offset;
    result.raw.column_offset = column_offset;
  }
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < columns; ++k) {
      const int64_t at = n * columns + k;
      // A third of the FP8 codes are small, subnormals among them.
      const double reach = is_fp8 ? (random() % 3 == 0 ? 0.05 : 448.0) : 0.2;
      write_element(result.values.view(), at, reach * spread(random));
      double value = read_element(result.values.view(), at);
      if (is_fp8) {
        value *= static_cast<double>(
            result.scales.view().row<float>((row_offset + n) / 128)[(column_offset + k) / 128]);
      }
      result.exact.at(n, k) = value;
    }
  }
  return result;
}

std::unique_ptr<Weight> prepare(TestBackend& backend,
                                WeightRole role,
                                const std::vector<const RawOperand*>& parts,
                                int32_t num_heads,
                                int32_t nope,
                                int32_t value) {
  std::vector<RawMatrix> raw;
  raw.reserve(parts.size());
  for (const RawOperand* part : parts) {
    raw.push_back(part->raw);
  }
  WeightSource source;
  source.role = role;
  source.parts = raw;
  source.num_heads = num_heads;
  source.qk_nope_head_dim = nope;
  source.v_head_dim = value;
  auto weight = backend.backend->prepare_weight(source);
  INFO((weight ? std::string() : weight.error().message));
  REQUIRE(static_cast<bool>(weight));
  return std::move(weight).value();
}

double half_step(DType dtype, double value) {
  return std::fabs(value) * (dtype == DType::bf16 ? 0x1p-8 : kUnit) + 1e-38;
}

double half_step(ActFormat format, double value, double amax) {
  if (format != ActFormat::e4m3) {
    return half_step(value_dtype(format), value);
  }
  const double scale = std::max(amax, 1e-4) / kE4m3Max;
  return std::max(std::fabs(value) * 0x1p-4, scale * 0x1p-10) * 1.0001;
}

double dot_bound(int64_t length, double magnitude) {
  const int64_t roundings = std::min<int64_t>(length, 128) + (length + 127) / 128 + 2;
  return static_cast<double>(roundings) * kUnit * magnitude;
}

ErrorReport::~ErrorReport() {
  std::printf("%s\n", describe().c_str());
}

std::string ErrorReport::describe() const {
  char text[256];
  std::snprintf(text,
                sizeof(text),
                "%-44s %8lld values, worst uses %.3f of its bound (%.6g for %.6g, bound %.3g)",
                name_.c_str(),
                static_cast<long long>(count_),
                worst_,
                found_,
                expected_,
                bound_);
  return text;
}

void ErrorReport::add(double found, double expected, double bound) {
  ++count_;
  const double error = std::fabs(found - expected);
  const double used = std::isfinite(error) ? (error == 0.0 ? 0.0 : error / bound) : 1e30;
  if (used > worst_) {
    worst_ = used;
    found_ = found;
    expected_ = expected;
    bound_ = bound;
  }
}

void compare(ErrorReport& report,
             const ActOperand& found,
             const Matrix& expected,
             const Matrix& bounds) {
  const Matrix values = found.read();
  for (int64_t m = 0; m < expected.rows; ++m) {
    for (int64_t begin = 0; begin < expected.columns; begin += kQuantGroup) {
      const int64_t end = std::min(expected.columns, begin + kQuantGroup);
      double amax = 0.0;
      for (int64_t k = begin; k < end; ++k) {
        amax = std::max(amax, std::fabs(expected.at(m, k)) + bounds.at(m, k));
      }
      for (int64_t k = begin; k < end; ++k) {
        const double want = expected.at(m, k);
        const double step = half_step(found.format, std::fabs(want) + bounds.at(m, k), amax);
        report.add(values.at(m, k), want, bounds.at(m, k) + step);
      }
    }
  }
  CHECK(found.guards_are_whole());
}

void compare(ErrorReport& report,
             const GuardedTensor& found,
             const Matrix& expected,
             const Matrix& bounds) {
  const Matrix values = read_matrix(found.view());
  REQUIRE(values.values.size() == expected.values.size());
  for (size_t i = 0; i < expected.values.size(); ++i) {
    const double want = expected.values[i];
    const double step = half_step(found.view().dtype, std::fabs(want) + bounds.values[i]);
    report.add(values.values[i], want, bounds.values[i] + step);
  }
  CHECK(found.guards_are_whole());
}

std::string name_of(ActFormat format) {
  switch (format) {
    case ActFormat::f32:
      return "f32";
    case ActFormat::bf16:
      return "bf16";
    case ActFormat::e4m3:
      return "e4m3";
  }
  return "?";
}

}  // namespace hadal::test
