// Products at model shapes on the GPU: sampled elements against double arithmetic, and the same
// bits whatever the batch, although few and many rows take different kernels.
#include <cmath>
#include <cstring>
#include <span>

#include <hadal/backend/generated_values.h>
#include <hadal/tensor/dtype.h>

#include "catch.h"
#include "op_test.h"
#include "product.h"

namespace hadal::test {

namespace {

constexpr int64_t kRows = 300;
constexpr int64_t kSamples = 1500;

struct ProductShape {
  int64_t out;
  int64_t in;
};

const std::vector<ProductShape> kShapes = {
    {2112, 7168},   // q_a + kv_a of R1
    {1536, 1536},   // q_b at TP16
    {7168, 1024},   // o_proj at TP16
    {576, 2048},    // kv_a of V2-Lite
    {200, 10944},   // down of V2-Lite: K is no multiple of 128
    {4 * 33, 128},  // one block of k
};

/// What may meet what on tensor cores.
struct Formats {
  DType weight;
  ActFormat input;
};

const std::vector<Formats> kFormats = {{DType::f8_e4m3, ActFormat::bf16},
                                       {DType::f8_e4m3, ActFormat::e4m3},
                                       {DType::bf16, ActFormat::bf16}};

std::string text_of(const Formats& formats) {
  return std::string(formats.weight == DType::bf16 ? " bf16" : " fp8") +
         (formats.input == ActFormat::bf16 ? " x bf16 " : " x e4m3 ");
}

/// x[m] * w[n] and its bound, for a format's exact operands.
void reference_at(
    const Matrix& x, const Matrix& w, int64_t m, int64_t n, double& value, double& bound) {
  value = 0.0;
  double magnitude = 0.0;
  for (int64_t k = 0; k < w.columns; ++k) {
    const double term = x.at(m, k) * w.at(n, k);
    value += term;
    magnitude += std::fabs(term);
  }
  bound = dot_bound(w.columns, magnitude);
}

bool same_bytes(const TensorView& a, const TensorView& b) {
  return std::memcmp(a.data, b.data, static_cast<size_t>(a.shape.numel() * size_of(a.dtype))) == 0;
}

/// Rows [begin, begin + count) of an activation are the same in both.
bool same_rows(const ActOperand& all, int64_t begin, const ActOperand& some) {
  const Matrix few = some.read();
  const Matrix whole = all.read();
  for (int64_t m = 0; m < few.rows; ++m) {
    for (int64_t k = 0; k < few.columns; ++k) {
      if (few.at(m, k) != whole.at(begin + m, k)) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace

TEST_CASE("products: tensor cores take every format of a model, float32 arithmetic only the rest",
          "[ops]") {
  alignas(16) std::byte memory[16] = {};
  const auto mode = [&](DType weight, ActFormat input, int64_t columns, int32_t column_offset) {
    cuda::ProductArgs args;
    args.weight.dtype = weight;
    args.weight.columns = static_cast<int32_t>(columns);
    args.weight.column_offset = column_offset;
    args.x.data = memory;
    args.x.format = input;
    args.x.stride = columns;
    return cuda::mode_of(args);
  };
  for (const ProductShape& shape : kShapes) {
    CHECK(mode(DType::f8_e4m3, ActFormat::bf16, shape.in, 0) == cuda::ProductMode::w8a16);
    CHECK(mode(DType::f8_e4m3, ActFormat::e4m3, shape.in, 0) == cuda::ProductMode::fp8);
    CHECK(mode(DType::bf16, ActFormat::bf16, shape.in, 0) == cuda::ProductMode::bf16);
    CHECK(mode(DType::f8_e4m3, ActFormat::bf16, shape.in, 64) == cuda::ProductMode::plain);
    CHECK(mode(DType::f8_e4m3, ActFormat::f32, shape.in, 0) == cuda::ProductMode::plain);
  }
  CHECK(mode(DType::f8_e4m3, ActFormat::bf16, 7164, 0) == cuda::ProductMode::plain);
}

TEST_CASE("linear: model shapes, the same bits in every batch", "[ops]") {
  for (TestBackend& backend : backends()) {
    for (const auto& [dtype, format] : kFormats) {
      for (const ProductShape& shape : kShapes) {
        Random random(51);
        ErrorReport report("linear " + backend.name + text_of({dtype, format}) +
                           std::to_string(shape.out) + " x " + std::to_string(shape.in));
        const RawOperand raw = make_raw(random, dtype, shape.out, shape.in);
        const auto weight = prepare(backend, WeightRole::linear, {&raw});
        const ActOperand x = make_activation(random_matrix(random, kRows, shape.in), format);
        const GuardedTensor out(DType::f32, Shape{kRows, shape.out});
        backend.ops().linear({.x = x.view(), .weight = weight.get(), .out = out.view()},
                             *backend.stream);
        for (int64_t i = 0; i < kSamples; ++i) {
          const auto m = static_cast<int64_t>(random() % static_cast<uint64_t>(kRows));
          const auto n = static_cast<int64_t>(random() % static_cast<uint64_t>(shape.out));
          double value = 0.0;
          double bound = 0.0;
          reference_at(x.exact, raw.exact, m, n, value, bound);
          report.add(static_cast<double>(out.view().row<float>(m)[n]), value, bound + 1e-30);
        }
        CHECK(out.guards_are_whole());
        for (const int64_t count : {1, 3, 8, 9, 17, 255}) {
          const int64_t begin = kRows - count - 1;
          const GuardedTensor few(DType::f32, Shape{count, shape.out});
          backend.ops().linear(
              {.x = x.view().rows(begin, count), .weight = weight.get(), .out = few.view()},
              *backend.stream);
          INFO(count << " rows of " << shape.out << " x " << shape.in);
          CHECK(same_bytes(few.view(), out.view().rows(begin, count)));
          CHECK(few.guards_are_whole());
        }
        INFO(report.describe());
        CHECK(report.is_within());
      }
    }
  }
}

TEST_CASE("linear: portable kernels and the GPU's own give the same bits", "[ops]") {
  for (TestBackend& own : backends()) {
    auto made = make_cuda_backend({.kernel_family = KernelFamily::sm80, .sync_every_op = true});
    REQUIRE(made);
    Backend& portable = *made.value();
    REQUIRE(portable.reserve({.max_step_tokens = 512, .max_rows = 64, .max_context_tokens = 512}));
    for (const auto& [dtype, format] : kFormats) {
      Random random(58);
      const RawOperand raw = make_raw(random, dtype, 1536, 1536);
      const ActOperand x = make_activation(random_matrix(random, kRows, 1536), format);
      std::vector<GuardedTensor> outs;
      for (Backend* backend : {own.backend.get(), &portable}) {
        auto weight =
            backend->prepare_weight({.role = WeightRole::linear, .parts = std::span(&raw.raw, 1)});
        REQUIRE(weight);
        outs.emplace_back(DType::f32, Shape{kRows, 1536});
        const auto stream = backend->create_stream();
        backend->ops().linear(
            {.x = x.view(), .weight = weight.value().get(), .out = outs.back().view()}, *stream);
      }
      INFO(text_of({dtype, format}));
      CHECK(same_bytes(outs[0].view(), outs[1].view()));
    }
  }
}

TEST_CASE("gate_up: model shapes, the same bits in every batch", "[ops]") {
  for (TestBackend& backend : backends()) {
    for (const auto& [dtype, format] : kFormats) {
      Random random(52);
      const int64_t intermediate = 1152;
      const RawOperand gate = make_raw(random, dtype, intermediate, 1536);
      const RawOperand up = make_raw(random, dtype, intermediate, 1536);
      const auto weight = prepare(backend, WeightRole::gate_up, {&gate, &up});
      const ActOperand x = make_activation(random_matrix(random, kRows, 1536, 0.1), format);
      const ActOperand out = make_output(format, kRows, intermediate);
      backend.ops().gate_up({.x = x.view(), .weight = weight.get(), .out = out.view()},
                            *backend.stream);
      for (const int64_t count : {1, 3, 17, 255}) {
        const int64_t begin = kRows - count - 1;
        const ActOperand few = make_output(format, count, intermediate);
        backend.ops().gate_up(
            {.x = x.view().rows(begin, count), .weight = weight.get(), .out = few.view()},
            *backend.stream);
        INFO(count << " rows");
        CHECK(same_rows(out, begin, few));
        CHECK(few.guards_are_whole());
      }
      CHECK(out.guards_are_whole());
    }
  }
}

TEST_CASE("moe: model shapes, the same bits in every batch, experts empty or crowded", "[ops]") {
  constexpr int64_t kHidden = 2048;
  constexpr int64_t kIntermediate = 128;
  constexpr int32_t kExperts = 8;
  constexpr int64_t kTopK = 4;
  constexpr int64_t kSlots = kTopK + 1;
  for (TestBackend& backend : backends()) {
    for (const auto& [dtype, format] : kFormats) {
      Random random(53);
      std::vector<RawOperand> gates;
      std::vector<RawOperand> downs;
      for (int32_t e = 0; e <= kExperts; ++e) {
        gates.push_back(make_raw(random, dtype, kIntermediate, kHidden));
        gates.push_back(make_raw(random, dtype, kIntermediate, kHidden));
        downs.push_back(make_raw(random, dtype, kHidden, kIntermediate));
      }
      std::vector<const RawOperand*> gate_parts;
      std::vector<const RawOperand*> down_parts;
      for (size_t e = 0; e < kExperts; ++e) {
        gate_parts.push_back(&gates[2 * e]);
        gate_parts.push_back(&gates[2 * e + 1]);
        down_parts.push_back(&downs[e]);
      }
      const auto gate_up = prepare(backend, WeightRole::gate_up, gate_parts);
      const auto down = prepare(backend, WeightRole::down, down_parts);
      const auto shared_gate_up =
          prepare(backend, WeightRole::gate_up, {&gates[2 * kExperts], &gates[2 * kExperts + 1]});
      const auto shared_down = prepare(backend, WeightRole::down, {&downs[kExperts]});
      const ActOperand x = make_activation(random_matrix(random, kRows, kHidden, 0.1), format);
      const Operand factors = make_operand(random_matrix(random, kRows, kTopK, 0.5), DType::f32);
      for (const int64_t spread : {0, 1, 2}) {
        // 0: every slot of every token takes expert 0; 1: every token experts 0..3, the others are
        // empty; 2: all experts.
        std::vector<int32_t> ids;
        for (int64_t m = 0; m < kRows; ++m) {
          for (int64_t k = 0; k < kTopK; ++k) {
            const int64_t shift = spread == 2 ? m : 0;
            ids.push_back(static_cast<int32_t>((k * spread + shift) % kExperts));
          }
        }
        const GuardedTensor expert_ids = make_ints(ids, Shape{kRows, kTopK});
        const auto run = [&](int64_t begin, int64_t count, ActOperand& inner, GuardedTensor& out) {
          inner = make_output(format, count * kSlots, kIntermediate);
          out = GuardedTensor(DType::f32, Shape{count, kHidden});
          const ConstTensorView chosen = expert_ids.view().rows(begin, count);
          backend.ops().moe_gate_up({.x = x.view().rows(begin, count),
                                     .expert_ids = chosen,
                                     .experts = gate_up.get(),
                                     .shared = shared_gate_up.get(),
                                     .inner = inner.view()},
                                    *backend.stream);
          backend.ops().moe_down({.inner = inner.view(),
                                  .expert_ids = chosen,
                                  .expert_weights = factors.view().rows(begin, count),
                                  .experts = down.get(),
                                  .shared = shared_down.get(),
                                  .out = out.view()},
                                 *backend.stream);
          CHECK(inner.guards_are_whole());
          CHECK(out.guards_are_whole());
        };
        ActOperand inner;
        GuardedTensor out;
        run(0, kRows, inner, out);
        for (const int64_t count : {1, 3, 8, 17, 40, 60, 100, 255}) {  // tiles of all sizes
          const int64_t begin = kRows - count - 1;
          ActOperand few_inner;
          GuardedTensor few;
          run(begin, count, few_inner, few);
          INFO(count << " rows, spread " << spread);
          CHECK(same_rows(inner, begin * kSlots, few_inner));
          CHECK(same_bytes(few.view(), out.view().rows(begin, count)));
        }
        // The second product against double arithmetic on what the first wrote.
        ErrorReport report("moe_down " + backend.name + text_of({dtype, format}));
        const Matrix found = inner.read();
        for (int64_t i = 0; i < kSamples; ++i) {
          const auto m = static_cast<int64_t>(random() % static_cast<uint64_t>(kRows));
          const auto n = static_cast<int64_t>(random() % static_cast<uint64_t>(kHidden));
          double want = 0.0;
          double bound = 0.0;
          for (int64_t s = 0; s < kSlots; ++s) {
            const int32_t expert = s == kTopK ? kExperts : ids[static_cast<size_t>(m * kTopK + s)];
            const double factor = s == kTopK ? 1.0 : factors.exact.at(m, s);
            double value = 0.0;
            double value_bound = 0.0;
            reference_at(found,
                         downs[static_cast<size_t>(expert)].exact,
                         m * kSlots + s,
                         n,
                         value,
                         value_bound);
            want += factor * value;
            bound += std::fabs(factor) * (value_bound + 8.0 * kUnit * std::fabs(value));
          }
          // A token's magnitudes bound the roundings of the sum over slots.
          report.add(static_cast<double>(out.view().row<float>(m)[n]), want, bound + 1e-30);
        }
        INFO(report.describe());
        CHECK(report.is_within());
      }
    }
  }
}

namespace {

/// The second product alone, over given inputs of it.
struct DownCase {
  int64_t hidden;
  int64_t inner;
  int64_t rows;
  bool has_shared;
};

/// Few columns and many, inputs of one to eleven k blocks, hidden sizes that stripes of threads do
/// not divide; the last case's products do not fit the workspace at once.
const std::vector<DownCase> kDownCases = {{4352, 128, 700, true},
                                          {4232, 256, 430, false},
                                          {1040, 1408, 300, false},
                                          {264, 512, 300, true},
                                          {7168, 128, 4200, false}};
constexpr int32_t kDownExperts = 8;
constexpr int64_t kDownTopK = 4;

/// How tokens choose: spread over experts but 5, all of them the same one in every slot, or every
/// fifth none.
enum class Choice : uint8_t { spread, crowded, padded };

std::vector<int32_t> choose(Choice choice, int64_t rows) {
  std::vector<int32_t> ids;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k = 0; k < kDownTopK; ++k) {
      const int64_t id = choice == Choice::crowded ? 7 : (k * 2 + m) % kDownExperts;
      const bool is_none = id == 5 || (choice == Choice::padded && m % 5 == 0);
      ids.push_back(is_none ? -1 : static_cast<int32_t>(id));
    }
  }
  return ids;
}

/// Sampled elements of `out` against double arithmetic, and rows without an expert, which are zero.
void check_down(const DownCase& c,
                const std::vector<RawOperand>& downs,
                const Matrix& inner,
                const std::vector<int32_t>& ids,
                const Matrix& factors,
                const TensorView& out,
                ErrorReport& report) {
  const int64_t slots = kDownTopK + (c.has_shared ? 1 : 0);
  const bool is_bf16 = out.dtype == DType::bf16;
  const Matrix found = read_matrix(out);
  Random random(59);
  for (int64_t i = 0; i < kSamples; ++i) {
    const auto m = static_cast<int64_t>(random() % static_cast<uint64_t>(c.rows));
    const auto n = static_cast<int64_t>(random() % static_cast<uint64_t>(c.hidden));
    double want = 0.0;
    double bound = 1e-30;
    for (int64_t s = 0; s < slots; ++s) {
      const int32_t expert = s == kDownTopK ? kDownExperts : ids[static_cast<size_t>(m * 4 + s)];
      if (expert < 0) {
        continue;
      }
      const double factor = s == kDownTopK ? 1.0 : factors.at(m, s);
      double value = 0.0;
      double value_bound = 0.0;
      const Matrix& weight = downs[static_cast<size_t>(expert)].exact;
      reference_at(inner, weight, m * slots + s, n, value, value_bound);
      // With BF16 results an expert's product is BF16 as well.
      value_bound += is_bf16 ? half_step(DType::bf16, std::fabs(value) + value_bound) : 0.0;
      want += factor * value;
      bound += std::fabs(factor) * (value_bound + 8.0 * kUnit * std::fabs(value));
    }
    bound += is_bf16 ? half_step(DType::bf16, std::fabs(want) + bound) : 0.0;
    report.add(found.at(m, n), want, bound);
    if (bound < 1e-20) {
      CHECK(found.at(m, n) == 0.0);
    }
  }
}

}  // namespace

TEST_CASE("moe_down: every shape of the second product, the same bits in every batch", "[ops]") {
  for (TestBackend& backend : backends()) {
    for (const auto& [dtype, format] : kFormats) {
      for (const DownCase& c : kDownCases) {
        if (c.rows > 1000 && (dtype == DType::bf16 || format == ActFormat::e4m3)) {
          continue;
        }
        Random random(58);
        std::vector<RawOperand> downs;
        std::vector<const RawOperand*> parts;
        for (int32_t e = 0; e <= kDownExperts; ++e) {
          downs.push_back(make_raw(random, dtype, c.hidden, c.inner));
        }
        for (size_t e = 0; e < kDownExperts; ++e) {
          parts.push_back(&downs[e]);
        }
        const auto down = prepare(backend, WeightRole::down, parts);
        const auto shared = prepare(backend, WeightRole::down, {&downs[kDownExperts]});
        const int64_t slots = kDownTopK + (c.has_shared ? 1 : 0);
        const ActOperand inner =
            make_activation(random_matrix(random, c.rows * slots, c.inner), format);
        const Operand factors =
            make_operand(random_matrix(random, c.rows, kDownTopK, 0.5), DType::f32);
        for (const Choice choice : {Choice::spread, Choice::crowded, Choice::padded}) {
          const std::vector<int32_t> ids = choose(choice, c.rows);
          const GuardedTensor expert_ids = make_ints(ids, Shape{c.rows, kDownTopK});
          for (const DType out_type : {DType::f32, DType::bf16}) {
            const auto run = [&](int64_t begin, int64_t count) {
              GuardedTensor out(out_type, Shape{count, c.hidden});
              backend.ops().moe_down({.inner = inner.view().rows(begin * slots, count * slots),
                                      .expert_ids = expert_ids.view().rows(begin, count),
                                      .expert_weights = factors.view().rows(begin, count),
                                      .experts = down.get(),
                                      .shared = c.has_shared ? shared.get() : nullptr,
                                      .out = out.view()},
                                     *backend.stream);
              CHECK(out.guards_are_whole());
              return out;
            };
            const GuardedTensor out = run(0, c.rows);
            INFO(c.hidden << " x " << c.inner << text_of({dtype, format})
                          << (out_type == DType::bf16 ? "to bf16" : "to f32") << ", choice "
                          << static_cast<int>(choice));
            for (const int64_t count : {1, 3, 17, 128, 255}) {
              const int64_t begin = c.rows - count - 1;
              INFO(count << " rows");
              CHECK(same_bytes(run(begin, count).view(), out.view().rows(begin, count)));
            }
            ErrorReport report("moe_down " + backend.name + text_of({dtype, format}) +
                               std::to_string(c.hidden) + " x " + std::to_string(c.inner));
            check_down(c, downs, inner.exact, ids, factors.exact, out.view(), report);
            CHECK(report.is_within());
          }
        }
      }
    }
  }
}

TEST_CASE("generated weights: the bits of the host's formula", "[ops]") {
  constexpr int64_t kOut = 130;
  constexpr int64_t kIn = 201;
  for (TestBackend& backend : backends()) {
    if (!backend.backend->generates_weights()) {
      continue;
    }
    for (const DType dtype : {DType::f8_e4m3, DType::bf16}) {
      Random random(57);
      const GeneratedValues formula{random(), 100, 400, dtype == DType::bf16 ? 0.05F : 448.0F};
      std::vector<std::byte> host(static_cast<size_t>(kOut * kIn * size_of(dtype)));
      for (int64_t i = 0; i < kOut * kIn; ++i) {
        const int64_t index = formula.first_index + i / kIn * formula.row_indices + i % kIn;
        const float value = formula.factor * generated_unit(formula.start, index);
        if (dtype == DType::bf16) {
          reinterpret_cast<uint16_t*>(host.data())[i] = f32_to_bf16(value);
        } else {
          host[static_cast<size_t>(i)] = static_cast<std::byte>(f32_to_e4m3(value));
        }
      }
      std::vector<float> scales(4, 0.01F);
      RawMatrix read;
      read.values = make_view(host.data(), dtype, Shape{kOut, kIn});
      if (dtype == DType::f8_e4m3) {
        read.scale_inv =
            make_view(reinterpret_cast<std::byte*>(scales.data()), DType::f32, Shape{2, 2});
      }
      RawMatrix made = read;
      made.values.data = nullptr;
      made.generated = &formula;
      const ActOperand x = make_activation(random_matrix(random, 5, kIn), ActFormat::bf16);
      std::vector<GuardedTensor> outs;
      for (const RawMatrix& raw : {read, made}) {
        auto weight = backend.backend->prepare_weight(
            {.role = WeightRole::linear, .parts = std::span(&raw, 1)});
        REQUIRE(weight);
        outs.emplace_back(DType::f32, Shape{5, kOut});
        backend.ops().linear(
            {.x = x.view(), .weight = weight.value().get(), .out = outs.back().view()},
            *backend.stream);
        backend.stream->synchronize();
      }
      CHECK(same_bytes(outs[0].view(), outs[1].view()));
    }
  }
}

}  // namespace hadal::test
