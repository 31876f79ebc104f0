// Both forms of attention at the sizes of DeepSeek-V2 and V3 (512 latents, 64 rope, heads of
// 128 + 64 and 128), where a GPU computes in bf16: awkward row counts, pages half full, more heads
// than a tile; and the same bits alone as among others.
//
// A backend that rounds to bf16 inside an op is held to a statistical bound: each rounding is an
// independent error of at most 2^-9 of its term, so a sum of terms is off by a few times the root
// of the sum of their squares; six times it is allowed. An index that is wrong anywhere gives
// errors of the terms' own size.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "catch.h"
#include "op_test.h"
#include "step_fixture.h"

namespace hadal::test {

namespace {

constexpr int64_t kNope = 128;
constexpr int64_t kRope = 64;
constexpr int64_t kHeadDim = kNope + kRope;
constexpr int64_t kValue = 128;
constexpr int64_t kLatents = 512;
constexpr int64_t kWidth = kLatents + kRope;
constexpr double kRounding = 6.0 * 0x1p-9;
constexpr float kScale = 0.02F;  ///< gives scores of a few units with the random operands below

struct Case {
  int64_t heads;
  DType weight_type;
  std::vector<int32_t> sequences;
  std::vector<RowSpec> rows;
};

/// A head's projections of one query, and the squares that its roundings scale with.
struct HeadQuery {
  std::vector<double> absorbed = std::vector<double>(kWidth);
  std::vector<double> squares = std::vector<double>(kWidth);
};

HeadQuery absorb(const double* q, const Matrix& kv_b, int64_t slab) {
  HeadQuery result;
  for (int64_t i = 0; i < kNope; ++i) {
    for (int64_t d = 0; d < kLatents; ++d) {
      const double term = q[i] * kv_b.at(slab + i, d);
      result.absorbed[static_cast<size_t>(d)] += term;
      result.squares[static_cast<size_t>(d)] += 2.0 * term * term;
    }
  }
  for (int64_t d = 0; d < kLatents; ++d) {
    const double value = result.absorbed[static_cast<size_t>(d)];
    result.squares[static_cast<size_t>(d)] += value * value;
  }
  for (int64_t i = 0; i < kRope; ++i) {
    result.absorbed[static_cast<size_t>(kLatents + i)] = q[kNope + i];
  }
  return result;
}

/// One query of one head over keys 0..length - 1.
void reference(const double* q,
               const Matrix& kv_b,
               int64_t head,
               const Matrix& cache,
               int64_t length,
               double* out,
               double* bounds) {
  const int64_t slab = head * (kNope + kValue);
  const HeadQuery query = absorb(q, kv_b, slab);
  std::vector<double> weights(static_cast<size_t>(length));
  double worst = 0.0;
  for (int64_t t = 0; t < length; ++t) {
    double score = 0.0;
    double squares = 0.0;
    for (int64_t d = 0; d < kWidth; ++d) {
      const double c = cache.at(t, d);
      score += query.absorbed[static_cast<size_t>(d)] * c;
      squares += query.squares[static_cast<size_t>(d)] * c * c;
    }
    weights[static_cast<size_t>(t)] = score * static_cast<double>(kScale);
    worst = std::max(worst, kRounding * static_cast<double>(kScale) * std::sqrt(squares));
  }
  const double max = *std::max_element(weights.begin(), weights.end());
  double total = 0.0;
  for (double& weight : weights) {
    weight = std::exp(weight - max);
    total += weight;
  }
  std::vector<double> mean(kLatents);
  std::vector<double> weighted(kLatents);  // sum of p c^2
  std::vector<double> rounded(kLatents);   // sum of (p c)^2
  for (int64_t t = 0; t < length; ++t) {
    const double p = weights[static_cast<size_t>(t)] / total;
    for (int64_t d = 0; d < kLatents; ++d) {
      const double c = cache.at(t, d);
      mean[static_cast<size_t>(d)] += p * c;
      weighted[static_cast<size_t>(d)] += p * c * c;
      rounded[static_cast<size_t>(d)] += p * p * c * c;
    }
  }
  for (int64_t j = 0; j < kValue; ++j) {
    double sum = 0.0;
    double own = 0.0;
    double spread = 0.0;
    double rounding = 0.0;
    for (int64_t d = 0; d < kLatents; ++d) {
      const double w = kv_b.at(slab + kNope + j, d);
      const double c = mean[static_cast<size_t>(d)];
      sum += w * c;
      own += w * w * c * c;
      spread += w * w * weighted[static_cast<size_t>(d)];
      rounding += w * w * rounded[static_cast<size_t>(d)];
    }
    out[j] = sum;
    bounds[j] = kRounding * (std::sqrt(2.0 * rounding) + std::sqrt(2.0 * own)) +
                2.0 * worst * std::sqrt(spread);
  }
}

/// Operands of a case, and the reference of every token.
struct Bench {
  Random random{71};
  StepFixture step;
  std::vector<Matrix> latents;
  RawOperand raw;
  Operand q;
  Matrix want;
  Matrix bounds;
  int64_t heads;

  explicit Bench(const Case& setup)
      : step(random, setup.sequences, setup.rows),
        raw(make_raw(random, setup.weight_type, setup.heads * (kNope + kValue), kLatents, 64, 0)),
        q(make_operand(random_matrix(random, step.num_tokens(), setup.heads * kHeadDim),
                       DType::bf16)),
        want(step.num_tokens(), setup.heads * kValue),
        bounds(step.num_tokens(), setup.heads * kValue),
        heads(setup.heads) {
    for (const int32_t tokens : setup.sequences) {
      latents.push_back(random_matrix(random, tokens, kWidth));
    }
  }

  void compute(const CacheFixture& cache) {
    int64_t token = 0;
    for (const RowSpec& row : step.rows()) {
      for (int32_t i = 0; i < row.count; ++i, ++token) {
        for (int64_t h = 0; h < heads; ++h) {
          reference(&q.exact.values[static_cast<size_t>((token * heads + h) * kHeadDim)],
                    raw.exact,
                    h,
                    cache.exact[static_cast<size_t>(row.sequence)],
                    row.begin + i + 1,
                    &want.at(token, h * kValue),
                    &bounds.at(token, h * kValue));
        }
      }
    }
  }
};

AttentionArgs make_args(const StepFixture& step,
                        const CacheFixture& cache,
                        const Operand& q,
                        int64_t heads,
                        const Weight& kv_b,
                        const ActOperand& out) {
  AttentionArgs args;
  args.geometry = &step.geometry();
  args.q = q.view();
  args.q.shape = Shape{step.num_tokens(), heads, kHeadDim};
  args.q.strides = dense_strides(args.q.shape);
  args.kv_pages = cache.layer();
  args.kv_b = &kv_b;
  args.softmax_scale = kScale;
  args.out = out.view();
  return args;
}

std::unique_ptr<Weight> prepare_kv_b(TestBackend& backend, const RawOperand& raw, int64_t heads) {
  return prepare(backend, WeightRole::kv_b, {&raw}, static_cast<int32_t>(heads), kNope, kValue);
}

void run_both(TestBackend& backend, const AttentionArgs& args) {
  backend.ops().begin_step(*args.geometry, *backend.stream);
  if (args.geometry->num_prompt_rows > 0) {
    backend.ops().attention_prompt(args, *backend.stream);
  }
  if (args.geometry->num_prompt_rows < args.geometry->num_rows) {
    backend.ops().attention_generated(args, *backend.stream);
  }
}

void check_bench(TestBackend& backend,
                 const Bench& bench,
                 const CacheFixture& cache,
                 const std::string& name) {
  const auto kv_b = prepare_kv_b(backend, bench.raw, bench.heads);
  for (const ActFormat format : kAllFormats) {
    ErrorReport report(name + " " + backend.name + " " + name_of(format));
    const ActOperand out = make_output(format, bench.step.num_tokens(), bench.heads * kValue);
    run_both(backend, make_args(bench.step, cache, bench.q, bench.heads, *kv_b, out));
    compare(report, out, bench.want, bench.bounds);
    INFO(report.describe());
    CHECK(report.is_within());
    CHECK(out.guards_are_whole());
  }
  CHECK(cache.pool.guards_are_whole());
}

void run_pages(const Case& setup, const std::string& name, DType kv_type) {
  Bench bench(setup);
  const CacheFixture cache(bench.step, bench.latents, kv_type, kLatents);
  bench.compute(cache);
  for (TestBackend& backend : backends()) {
    if (backend.rounds_latents && setup.weight_type == DType::f8_e4m3) {
      continue;  // its latents are not the cache's: attention_test holds that
    }
    check_bench(backend, bench, cache, name);
  }
}

/// FP8 pages hold values that BF16 holds as well, so one bound serves both.
void run_case(const Case& setup, const std::string& name) {
  backends();  // decides where operands lie
  for (const DType kv_type : {DType::bf16, DType::f8_e4m3}) {
    run_pages(setup, name + " " + std::string(to_string(kv_type)), kv_type);
  }
}

}  // namespace

TEST_CASE("attention: the sizes of DeepSeek-V3, short rows of both forms", "[ops]") {
  run_case(
      {2,
       DType::bf16,
       {1, 33, 96, 131},
       {{0, 0, 1}, {1, 30, 3, kFormPrompt}, {2, 64, 17, kFormPrompt}, {2, 81, 1}, {3, 128, 3}}},
      "attention V3 short");
}

TEST_CASE("attention: the sizes of DeepSeek-V3, FP8 weights and several splits", "[ops]") {
  run_case({1, DType::f8_e4m3, {700}, {{0, 640, 5, kFormPrompt}, {0, 645, 1}, {0, 699, 1}}},
           "attention V3 splits");
}

/// A group's first latent is so large that all others become subnormal codes; kv_b ignores it, so
/// that a kernel which loses subnormal codes gives zeros.
TEST_CASE("attention: the sizes of DeepSeek-V3, subnormal FP8 codes count in full", "[ops]") {
  backends();  // decides where operands lie
  Bench bench({2, DType::bf16, {90}, {{0, 80, 9, kFormPrompt}, {0, 89, 1}}});
  std::uniform_real_distribution<double> small(-0.9, 0.9);
  for (int64_t t = 0; t < 90; ++t) {
    for (int64_t d = 0; d < kLatents; ++d) {
      bench.latents[0].at(t, d) = d % kQuantGroup == 0 ? 448.0 * 64.0 : small(bench.random);
    }
  }
  for (int64_t n = 0; n < bench.raw.exact.rows; ++n) {
    for (int64_t d = 0; d < kLatents; d += kQuantGroup) {
      bench.raw.values.view().row<uint16_t>(n)[d] = 0;
      bench.raw.exact.at(n, d) = 0.0;
    }
  }
  const CacheFixture cache(bench.step, bench.latents, DType::f8_e4m3, kLatents);
  REQUIRE(std::fabs(cache.exact[0].at(3, 5)) <= 0.875);
  bench.compute(cache);
  for (TestBackend& backend : backends()) {
    check_bench(backend, bench, cache, "attention V3 subnormal");
  }
}

TEST_CASE("attention: the sizes of DeepSeek-V3, bits do not depend on the batch", "[ops]") {
  const int64_t heads = 2;
  const int32_t length = 330;
  Random random(72);
  const RawOperand raw = make_raw(random, DType::f8_e4m3, heads * (kNope + kValue), kLatents);
  const Matrix latents = random_matrix(random, length, kWidth);
  const Matrix others = random_matrix(random, 90, kWidth);
  const Matrix q_values = random_matrix(random, length + 90, heads * kHeadDim);
  for (TestBackend& backend : backends()) {
    if (backend.rounds_latents) {
      continue;
    }
    const auto kv_b = prepare_kv_b(backend, raw, heads);
    const auto run = [&](const std::vector<RowSpec>& rows, DType kv_type) {
      const StepFixture step(random, {length, 90}, rows);
      const CacheFixture cache(step, {latents, others}, kv_type, kLatents);
      Matrix q(step.num_tokens(), q_values.columns);
      int64_t m = 0;
      for (const RowSpec& row : rows) {
        for (int32_t i = 0; i < row.count; ++i, ++m) {
          const int64_t from = row.sequence * length + row.begin + i;
          std::copy_n(
              &q_values.values[static_cast<size_t>(from * q.columns)], q.columns, &q.at(m, 0));
        }
      }
      const Operand q_operand = make_operand(q, DType::bf16);
      const ActOperand out = make_output(ActFormat::f32, q.rows, heads * kValue);
      run_both(backend, make_args(step, cache, q_operand, heads, *kv_b, out));
      return out.read();
    };
    const auto check = [&](uint8_t form, DType kv_type) {
      // 70 tokens of the end, alone and as three rows among others of both forms.
      const Matrix whole = run({{0, length - 70, 70, form}}, kv_type);
      const Matrix parts = run({{1, 0, 90, kFormPrompt},
                                {0, length - 50, 49, form},
                                {1, 70, 2, kFormGenerated},
                                {0, length - 70, 20, form},
                                {0, length - 1, 1, form}},
                               kv_type);
      // And one alone: so few that a GPU cuts its cache finer.
      const Matrix last = run({{0, length - 1, 1, form}}, kv_type);
      for (int64_t k = 0; k < whole.columns; ++k) {
        REQUIRE(last.at(0, k) == whole.at(69, k));
      }
      const int64_t starts[][3] = {{90, 20, 49}, {141, 0, 20}, {161, 69, 1}};
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

#ifdef HADAL_TEST_GPU
TEST_CASE("attention: TP16's eight heads, 255 prompt rows after a prefix", "[ops]") {
  run_case({8, DType::f8_e4m3, {300}, {{0, 45, 255, kFormPrompt}}}, "attention TP16 prompt");
}

/// On a GPU that has kernels of its own for prompts, the portable ones are held here.
TEST_CASE("attention: prompts by the portable family", "[ops]") {
  const Case setup{8,
                   DType::bf16,
                   {300, 140, 33},
                   {{0, 45, 255, kFormPrompt}, {1, 0, 140, kFormPrompt}, {2, 30, 3, kFormPrompt}}};
  backends();  // decides where operands lie
  auto made = make_cuda_backend({.kernel_family = KernelFamily::sm80, .sync_every_op = true});
  REQUIRE(made);
  TestBackend portable{"cuda sm80", std::move(made).value(), nullptr};
  REQUIRE(portable.backend->reserve({.max_step_tokens = 512,
                                     .max_rows = 64,
                                     .max_context_tokens = 512,
                                     .num_heads = 8,
                                     .qk_nope_head_dim = 128,
                                     .qk_rope_head_dim = 64,
                                     .v_head_dim = 128,
                                     .kv_lora_rank = 512}));
  portable.stream = portable.backend->create_stream();
  for (const DType kv_type : {DType::bf16, DType::f8_e4m3}) {
    Bench bench(setup);
    const CacheFixture cache(bench.step, bench.latents, kv_type, kLatents);
    bench.compute(cache);
    for (TestBackend* backend : {&backends()[0], &portable}) {
      check_bench(*backend, bench, cache, "attention prompts");
    }
  }
}

TEST_CASE("attention: TP16's eight heads, rows of many lengths", "[ops]") {
  Case setup{8, DType::f8_e4m3, {}, {}};
  for (const int32_t tokens : {1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000, 4100}) {
    setup.rows.push_back({static_cast<int32_t>(setup.sequences.size()), tokens - 1, 1});
    setup.sequences.push_back(tokens);
  }
  run_case(setup, "attention TP16 generated");
}

TEST_CASE("attention: TP8's sixteen heads, mixed rows", "[ops]") {
  run_case({16, DType::bf16, {130, 65}, {{0, 128, 2}, {1, 0, 64, kFormPrompt}, {1, 64, 1}}},
           "attention TP8");
}

TEST_CASE("attention: 20 heads, no whole tile of them", "[ops]") {
  run_case({20, DType::f8_e4m3, {90}, {{0, 85, 3, kFormPrompt}, {0, 88, 2}}}, "attention 20 heads");
}
#endif

}  // namespace hadal::test
