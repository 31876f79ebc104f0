// Both forms of latent attention against one plain double reference, on shuffled pages with
// everything that must not be read poisoned.
#include <algorithm>
#include <cmath>

#include "catch.h"
#include "op_test.h"
#include "step_fixture.h"

namespace hadal::test {

namespace {

struct Dims {
  int64_t heads;
  int64_t nope;
  int64_t rope;
  int64_t value;
  int64_t latents;
};

/// What an FP8 kv_b linear would see of a latent row: groups of 128 rounded to E4M3.
void round_latents(Matrix& cache, int64_t latents) {
  for (int64_t t = 0; t < cache.rows; ++t) {
    for (int64_t begin = 0; begin < latents; begin += kQuantGroup) {
      const int64_t end = std::min(latents, begin + kQuantGroup);
      float amax = 1e-4F;
      for (int64_t d = begin; d < end; ++d) {
        amax = std::max(amax, static_cast<float>(std::fabs(cache.at(t, d))));
      }
      const float scale = amax / 448.0F;
      for (int64_t d = begin; d < end; ++d) {
        const float value = static_cast<float>(cache.at(t, d)) / scale;
        cache.at(t, d) = static_cast<double>(e4m3_to_f32(f32_to_e4m3(value)) * scale);
      }
    }
  }
}

/// One query of one head over keys 0..length: out and bounds have `value` columns from `column`.
struct HeadReference {
  const Dims& dims;
  const Matrix& kv_b;
  const Matrix& cache;
  double scale;

  void run(const double* q, int64_t head, int64_t length, double* out, double* bounds) const {
    const int64_t slab = head * (dims.nope + dims.value);
    std::vector<double> scores(static_cast<size_t>(length));
    double worst = 0.0;
    for (int64_t t = 0; t < length; ++t) {
      double score = 0.0;
      double magnitude = 0.0;
      for (int64_t i = 0; i < dims.nope; ++i) {
        for (int64_t d = 0; d < dims.latents; ++d) {
          const double term = q[i] * kv_b.at(slab + i, d) * cache.at(t, d);
          score += term;
          magnitude += std::fabs(term);
        }
      }
      for (int64_t i = 0; i < dims.rope; ++i) {
        const double term = q[dims.nope + i] * cache.at(t, dims.latents + i);
        score += term;
        magnitude += std::fabs(term);
      }
      scores[static_cast<size_t>(t)] = score * scale;
      // Two dot products in sequence, one over at most latents + rope, one over at most head width.
      const double roundings = static_cast<double>(dims.latents + dims.nope + dims.rope) + 16.0;
      worst = std::max(worst, roundings * kUnit * magnitude * scale);
    }
    const double max = *std::max_element(scores.begin(), scores.end());
    double total = 0.0;
    for (double& score : scores) {
      score = std::exp(score - max);
      total += score;
    }
    // Weights are off by twice the scores' error, and by the exponential and the running sums.
    const double roundings = static_cast<double>(length + dims.latents) + 64.0;
    const double relative = 2.0 * worst + roundings * kUnit;
    for (int64_t j = 0; j < dims.value; ++j) {
      double sum = 0.0;
      double magnitude = 0.0;
      for (int64_t d = 0; d < dims.latents; ++d) {
        const double w = kv_b.at(slab + dims.nope + j, d);
        for (int64_t t = 0; t < length; ++t) {
          const double term = w * scores[static_cast<size_t>(t)] / total * cache.at(t, d);
          sum += term;
          magnitude += std::fabs(term);
        }
      }
      out[j] = sum;
      bounds[j] = relative * magnitude + 1e-30;
    }
  }
};

struct Setup {
  Dims dims;
  std::vector<int32_t> sequences;
  std::vector<RowSpec> rows;
};

void run_form(TestBackend& backend,
              uint8_t form,
              const Setup& setup,
              DType weight_type,
              ActFormat format,
              DType kv_type,
              ErrorReport& report,
              bool* untouched) {
  Random random(21);
  const Dims& dims = setup.dims;
  const int64_t head_dim = dims.nope + dims.rope;
  const int64_t width = dims.latents + dims.rope;
  const StepFixture step(random, setup.sequences, setup.rows);
  std::vector<Matrix> latents;
  for (const int32_t tokens : setup.sequences) {
    latents.push_back(random_matrix(random, tokens, width));
  }
  const CacheFixture cache(step, latents, kv_type, dims.latents);
  const RawOperand raw =
      make_raw(random, weight_type, dims.heads * (dims.nope + dims.value), dims.latents, 64, 0);
  const auto kv_b = prepare(backend,
                            WeightRole::kv_b,
                            {&raw},
                            static_cast<int32_t>(dims.heads),
                            static_cast<int32_t>(dims.nope),
                            static_cast<int32_t>(dims.value));
  const DType q_type = kv_type == DType::f32 ? DType::f32 : DType::bf16;
  const Operand q =
      make_operand(random_matrix(random, step.num_tokens(), dims.heads * head_dim), q_type);
  TensorView q_view = q.view();
  q_view.shape = Shape{step.num_tokens(), dims.heads, head_dim};
  q_view.strides = dense_strides(q_view.shape);
  const ActOperand out = make_output(format, step.num_tokens(), dims.heads * dims.value);
  AttentionArgs args;
  args.geometry = &step.geometry();
  args.q = q_view;
  args.kv_pages = cache.layer();
  args.kv_b = kv_b.get();
  args.softmax_scale = 0.3F;
  args.out = out.view();
  backend.ops().begin_step(step.geometry(), *backend.stream);
  if (form == kFormPrompt) {
    backend.ops().attention_prompt(args, *backend.stream);
  } else {
    backend.ops().attention_generated(args, *backend.stream);
  }
  const Matrix found = out.read();
  int64_t token = 0;
  for (const RowSpec& row : setup.rows) {
    Matrix keys = cache.exact[static_cast<size_t>(row.sequence)];
    if (backend.rounds_latents && weight_type == DType::f8_e4m3) {
      round_latents(keys, dims.latents);
    }
    const HeadReference head_reference{dims, raw.exact, keys, static_cast<double>(0.3F)};
    for (int32_t i = 0; i < row.count; ++i, ++token) {
      if (row.form != form) {
        *untouched = *untouched && std::isnan(found.at(token, 0));
        continue;
      }
      Matrix want(1, dims.heads * dims.value);
      Matrix bounds = want;
      for (int64_t h = 0; h < dims.heads; ++h) {
        head_reference.run(
            &q.exact.values[static_cast<size_t>((token * dims.heads + h) * head_dim)],
            h,
            row.begin + i + 1,
            &want.values[static_cast<size_t>(h * dims.value)],
            &bounds.values[static_cast<size_t>(h * dims.value)]);
      }
      for (int64_t k = 0; k < want.columns; ++k) {
        const int64_t group = k / kQuantGroup * kQuantGroup;
        double amax = 0.0;
        for (int64_t j = group; j < std::min(want.columns, group + kQuantGroup); ++j) {
          amax = std::max(amax, std::fabs(want.at(0, j)) + bounds.at(0, j));
        }
        const double step_size =
            half_step(format, std::fabs(want.at(0, k)) + bounds.at(0, k), amax);
        report.add(found.at(token, k), want.at(0, k), bounds.at(0, k) + step_size);
      }
    }
  }
  CHECK(out.guards_are_whole());
  CHECK(cache.pool.guards_are_whole());
}

const Dims kSmall{3, 16, 8, 16, 32};
const Dims kOdd{2, 24, 10, 20, 40};      // nothing is a multiple of sixteen
const Dims kNine{9, 16, 16, 32, 48};     // more heads than a tile of heads
const Dims kWide{2, 128, 64, 128, 160};  // a quantisation group and a part

const std::vector<Setup> kGenerated = {
    {kSmall, {1, 64, 65, 130}, {{0, 0, 1}, {1, 63, 1}, {2, 64, 1}, {3, 129, 1}}},
    {kOdd, {300, 20}, {{0, 290, 10}, {1, 3, 2, kFormPrompt}, {1, 19, 1}}},
    {kNine, {128}, {{0, 127, 1}}},
    {kWide, {40}, {{0, 38, 2}}},
};

const std::vector<Setup> kPrompt = {
    {kSmall,
     {1, 64, 65},
     {{0, 0, 1, kFormPrompt}, {1, 0, 64, kFormPrompt}, {2, 0, 65, kFormPrompt}}},
    {kOdd, {200, 9}, {{0, 130, 70, kFormPrompt}, {1, 8, 1}, {1, 0, 8, kFormPrompt}}},
    {kNine, {70}, {{0, 60, 10, kFormPrompt}}},
    {kWide, {30}, {{0, 0, 30, kFormPrompt}}},
};

void run_all(uint8_t form, const std::vector<Setup>& setups, const std::string& name) {
  for (TestBackend& backend : backends()) {
    for (const ActFormat format : kAllFormats) {
      ErrorReport report(name + " " + backend.name + " " + name_of(format));
      bool untouched = true;
      for (const Setup& setup : setups) {
        for (const DType kv_type : kKvTypes) {
          const DType weight = kv_type == DType::f32 ? DType::bf16 : DType::f8_e4m3;
          run_form(backend, form, setup, weight, format, kv_type, report, &untouched);
        }
      }
      INFO(report.describe());
      CHECK(report.is_within());
      CHECK(untouched);
    }
  }
}

}  // namespace

TEST_CASE("attention_generated: agrees with double arithmetic, other rows stay", "[ops]") {
  run_all(kFormGenerated, kGenerated, "attention_generated");
}

TEST_CASE("attention_prompt: agrees with double arithmetic, other rows stay", "[ops]") {
  run_all(kFormPrompt, kPrompt, "attention_prompt");
}

}  // namespace hadal::test
