// Routing against brute force, and the expert products over local lists, slices and shared experts.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "catch.h"
#include "op_test.h"

namespace hadal::test {

namespace {

struct RouterCase {
  RouterMethod method;
  int32_t experts;
  int32_t groups;
  int32_t top_groups;
  int32_t top_k;
  bool norm;
};

const std::vector<RouterCase> kRouterCases = {
    {RouterMethod::greedy, 8, 1, 1, 2, false},
    {RouterMethod::greedy, 13, 1, 1, 6, true},
    {RouterMethod::group_limited_greedy, 16, 4, 2, 3, false},
    {RouterMethod::noaux_tc, 16, 4, 2, 5, true},
    {RouterMethod::noaux_tc, 12, 1, 1, 4, true},
    {RouterMethod::noaux_tc, 256, 8, 4, 8, true},
};

/// Indices of the `count` largest, ties to the lowest.
std::vector<int32_t> best_of(const std::vector<double>& values, int32_t count) {
  std::vector<int32_t> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
  });
  ids.resize(static_cast<size_t>(count));
  return ids;
}

/// Chosen experts and their weights for one row of logits.
std::vector<std::pair<int32_t, double>> route(const RouterCase& c,
                                              const std::vector<double>& logits,
                                              const std::vector<double>& bias,
                                              double factor) {
  std::vector<double> scores(logits.size());
  double total = 0.0;
  for (size_t e = 0; e < logits.size(); ++e) {
    scores[e] = c.method == RouterMethod::noaux_tc ? 1.0 / (1.0 + std::exp(-logits[e]))
                                                   : std::exp(logits[e]);
    total += scores[e];
  }
  std::vector<double> choice = scores;
  for (size_t e = 0; e < scores.size(); ++e) {
    if (c.method != RouterMethod::noaux_tc) {
      scores[e] /= total;
      choice[e] = scores[e];
    } else {
      choice[e] += bias[e];
    }
  }
  if (c.method != RouterMethod::greedy) {
    const int32_t size = c.experts / c.groups;
    std::vector<double> group_scores;
    for (int32_t g = 0; g < c.groups; ++g) {
      std::vector<double> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      std::sort(members.rbegin(), members.rend());
      group_scores.push_back(c.method == RouterMethod::noaux_tc ? members[0] + members[1]
                                                                : members[0]);
    }
    const auto chosen = best_of(group_scores, c.top_groups);
    for (int32_t e = 0; e < c.experts; ++e) {
      if (std::find(chosen.begin(), chosen.end(), e / size) == chosen.end()) {
        choice[static_cast<size_t>(e)] = -1e30;
      }
    }
  }
  std::vector<std::pair<int32_t, double>> result;
  double sum = 0.0;
  for (const int32_t id : best_of(choice, c.top_k)) {
    result.emplace_back(id, scores[static_cast<size_t>(id)]);
    sum += result.back().second;
  }
  for (auto& [id, weight] : result) {
    weight = factor * (c.norm ? weight / sum : weight);
  }
  return result;
}

}  // namespace

TEST_CASE("router: every method chooses as brute force does", "[ops]") {
  const int64_t rows = 40;
  const int64_t hidden = 24;
  for (TestBackend& backend : backends()) {
    for (const RouterCase& c : kRouterCases) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        Random random(41);
        ErrorReport report("router " + backend.name);
        const RawOperand raw = make_raw(random, DType::bf16, c.experts, hidden);
        const auto weight = prepare(backend, WeightRole::router, {&raw});
        const Operand x = make_operand(random_matrix(random, rows, hidden), dtype);
        const Operand bias =
            make_operand(random_matrix(random, 1, c.experts, 0.3), DType::f32, true);
        const GuardedTensor ids(DType::i32, Shape{rows, c.top_k});
        const GuardedTensor weights(DType::f32, Shape{rows, c.top_k});
        RouterArgs args;
        args.x = x.view();
        args.weight = weight.get();
        if (c.method == RouterMethod::noaux_tc) {
          args.bias = bias.view();
        }
        args.method = c.method;
        args.top_k = c.top_k;
        args.num_groups = c.groups;
        args.top_groups = c.top_groups;
        args.norm_top_k = c.norm;
        args.scaling_factor = 2.5F;
        args.out_ids = ids.view();
        args.out_weights = weights.view();
        backend.ops().router(args, *backend.stream);
        for (int64_t m = 0; m < rows; ++m) {
          std::vector<double> logits(static_cast<size_t>(c.experts));
          double magnitude = 0.0;
          for (int32_t e = 0; e < c.experts; ++e) {
            for (int64_t k = 0; k < hidden; ++k) {
              logits[static_cast<size_t>(e)] += x.exact.at(m, k) * raw.exact.at(e, k);
              magnitude = std::max(magnitude, std::fabs(x.exact.at(m, k)));
            }
          }
          const auto want = route(c, logits, bias.exact.values, 2.5);
          for (int32_t k = 0; k < c.top_k; ++k) {
            const auto& [id, value] = want[static_cast<size_t>(k)];
            REQUIRE(ids.view().row<int32_t>(m)[k] == id);
            // Logits are off by a dot product's roundings; scores move by at most as much,
            // relatively.
            const double logit_error = dot_bound(hidden, magnitude * 0.2 * hidden);
            const double bound = value * (3.0 * logit_error + (c.experts + 16.0) * kUnit);
            report.add(static_cast<double>(weights.view().row<float>(m)[k]), value, bound);
          }
        }
        CHECK(report.is_within());
        CHECK(ids.guards_are_whole());
      }
    }
  }
}

TEST_CASE("router: ties go to the lowest id, NaN is never preferred", "[ops]") {
  for (TestBackend& backend : backends()) {
    const Operand zeros = make_operand(Matrix(6, 4), DType::f32);
    RawMatrix raw;
    raw.values = zeros.view();
    WeightSource source;
    source.role = WeightRole::router;
    source.parts = {&raw, 1};
    auto weight = backend.backend->prepare_weight(source);
    REQUIRE(static_cast<bool>(weight));
    Operand x = make_operand(Matrix(2, 4), DType::f32);
    x.view().row<float>(1)[2] = std::nanf("");
    Operand bias = make_operand(Matrix(1, 6), DType::f32, true);
    bias.view().as<float>()[4] = 0.25F;
    const GuardedTensor ids(DType::i32, Shape{2, 3});
    const GuardedTensor weights(DType::f32, Shape{2, 3});
    RouterArgs args;
    args.x = x.view();
    args.weight = weight.value().get();
    args.bias = bias.view();
    args.method = RouterMethod::noaux_tc;
    args.top_k = 3;
    args.out_ids = ids.view();
    args.out_weights = weights.view();
    backend.ops().router(args, *backend.stream);
    CHECK(ids.view().row<int32_t>(0)[0] == 4);
    CHECK(ids.view().row<int32_t>(0)[1] == 0);
    CHECK(ids.view().row<int32_t>(0)[2] == 1);
    for (int64_t k = 0; k < 3; ++k) {
      CHECK(ids.view().row<int32_t>(1)[k] == k);
    }
  }
}

TEST_CASE("moe: local experts, slices and the shared expert in every format", "[ops]") {
  const int64_t hidden = 72;
  const int64_t top_k = 3;
  for (TestBackend& backend : backends()) {
    for (const ActFormat format : kAllFormats) {
      for (const bool has_shared : {true, false}) {
        for (const int64_t intermediate : {48, 200}) {
          for (const int64_t tokens : {1, 21, 270}) {
            Random random(42);
            ErrorReport report("moe " + backend.name + " " + name_of(format));
            const DType dtype = format == ActFormat::bf16 ? DType::bf16 : DType::f8_e4m3;
            const int32_t local = 4;
            const int32_t first = 2;  // of 8 experts, 2..5 live here
            std::vector<RawOperand> gates;
            std::vector<RawOperand> downs;
            std::vector<const RawOperand*> gate_parts;
            std::vector<const RawOperand*> down_parts;
            for (int32_t e = 0; e <= local; ++e) {
              gates.push_back(make_raw(random, dtype, intermediate, hidden, 0, 0));
              gates.push_back(make_raw(random, dtype, intermediate, hidden, 64, 0));
              downs.push_back(make_raw(random, dtype, hidden, intermediate, 0, 96));
            }
            for (int32_t e = 0; e < local; ++e) {
              gate_parts.push_back(&gates[static_cast<size_t>(2 * e)]);
              gate_parts.push_back(&gates[static_cast<size_t>(2 * e + 1)]);
              down_parts.push_back(&downs[static_cast<size_t>(e)]);
            }
            const auto gate_up = prepare(backend, WeightRole::gate_up, gate_parts);
            const auto down = prepare(backend, WeightRole::down, down_parts);
            const auto shared_gate_up =
                prepare(backend, WeightRole::gate_up, {&gates[8], &gates[9]});
            const auto shared_down = prepare(backend, WeightRole::down, {&downs[4]});

            const ActOperand x = make_activation(random_matrix(random, tokens, hidden), format);
            std::vector<int32_t> ids;
            for (int64_t m = 0; m < tokens; ++m) {
              std::vector<int32_t> deck{0, 1, 2, 3, 4, 5, 6, 7};
              std::shuffle(deck.begin(), deck.end(), random);
              // Expert 5 never has a token; row 0 has no local expert but the shared one.
              std::replace(deck.begin(), deck.end(), 5, 0);
              ids.insert(ids.end(), deck.begin(), deck.begin() + top_k);
            }
            std::copy_n(std::vector<int32_t>{0, 1, 7}.begin(), 3, ids.begin());
            const GuardedTensor expert_ids = make_ints(ids, Shape{tokens, top_k});
            const Operand factors =
                make_operand(random_matrix(random, tokens, top_k, 0.5), DType::f32);
            const int64_t slots = top_k + (has_shared ? 1 : 0);
            const ActOperand inner = make_output(format, tokens * slots, intermediate);
            backend.ops().moe_gate_up({.x = x.view(),
                                       .expert_ids = expert_ids.view(),
                                       .experts = gate_up.get(),
                                       .first_expert = first,
                                       .shared = has_shared ? shared_gate_up.get() : nullptr,
                                       .inner = inner.view()},
                                      *backend.stream);
            const GuardedTensor out(DType::f32, Shape{tokens, hidden});
            backend.ops().moe_down({.inner = inner.view(),
                                    .expert_ids = expert_ids.view(),
                                    .expert_weights = factors.view(),
                                    .experts = down.get(),
                                    .first_expert = first,
                                    .shared = has_shared ? shared_down.get() : nullptr,
                                    .out = out.view()},
                                   *backend.stream);
            const Matrix found_inner = inner.read();
            Matrix want(tokens, hidden);
            Matrix bounds(tokens, hidden);
            const int64_t stride = tokens > 100 ? 16 : 1;  // the long case is sampled
            for (int64_t m = 0; m < tokens; m += stride) {
              for (int64_t s = 0; s < slots; ++s) {
                const int32_t expert =
                    s == top_k ? local : ids[static_cast<size_t>(m * top_k + s)] - first;
                const int64_t row = m * slots + s;
                if (expert < 0 || (expert >= local && s != top_k)) {
                  REQUIRE(std::isnan(found_inner.at(row, 0)));
                  continue;
                }
                const Matrix& gate = gates[static_cast<size_t>(2 * expert)].exact;
                const Matrix& up = gates[static_cast<size_t>(2 * expert + 1)].exact;
                double amax = 0.0;
                std::vector<double> product(static_cast<size_t>(intermediate));
                std::vector<double> bound(static_cast<size_t>(intermediate));
                for (int64_t i = 0; i < intermediate; ++i) {
                  double g = 0.0;
                  double u = 0.0;
                  double g_magnitude = 0.0;
                  double u_magnitude = 0.0;
                  for (int64_t k = 0; k < hidden; ++k) {
                    g += x.exact.at(m, k) * gate.at(i, k);
                    u += x.exact.at(m, k) * up.at(i, k);
                    g_magnitude += std::fabs(x.exact.at(m, k) * gate.at(i, k));
                    u_magnitude += std::fabs(x.exact.at(m, k) * up.at(i, k));
                  }
                  const double silu = g / (1.0 + std::exp(-g));
                  const auto at = static_cast<size_t>(i);
                  product[at] = silu * u;
                  bound[at] = 1.1 * dot_bound(hidden, g_magnitude) * (std::fabs(u) + 1e-4) +
                              std::fabs(silu) * dot_bound(hidden, u_magnitude) +
                              8.0 * kUnit * (1.0 + std::fabs(g)) * std::fabs(product[at]);
                }
                for (int64_t i = 0; i < intermediate; ++i) {
                  const auto at = static_cast<size_t>(i);
                  if (i % kQuantGroup == 0) {
                    amax = 0.0;
                    for (int64_t j = i; j < std::min(intermediate, i + kQuantGroup); ++j) {
                      amax = std::max(amax, std::fabs(product[static_cast<size_t>(j)]) * 1.0001);
                    }
                  }
                  report.add(
                      found_inner.at(row, i),
                      product[at],
                      bound[at] + half_step(format, std::fabs(product[at]) + bound[at], amax));
                }
                // The second product is judged on what the first wrote.
                const double factor = s == top_k ? 1.0 : factors.exact.at(m, s);
                for (int64_t n = 0; n < hidden; ++n) {
                  double sum = 0.0;
                  double magnitude = 0.0;
                  for (int64_t i = 0; i < intermediate; ++i) {
                    const double term = factor * found_inner.at(row, i) *
                                        downs[static_cast<size_t>(expert)].exact.at(n, i);
                    sum += term;
                    magnitude += std::fabs(term);
                  }
                  want.at(m, n) += sum;
                  bounds.at(m, n) += dot_bound(intermediate, magnitude) + 8.0 * kUnit * magnitude;
                }
              }
              for (int64_t n = 0; n < hidden; ++n) {
                report.add(static_cast<double>(out.view().row<float>(m)[n]),
                           want.at(m, n),
                           bounds.at(m, n) + half_step(DType::f32, want.at(m, n)));
              }
            }
            INFO(report.describe());
            CHECK(report.is_within());
            CHECK(inner.guards_are_whole());
            CHECK(out.guards_are_whole());
          }
        }
      }
    }
  }
}

}  // namespace hadal::test
