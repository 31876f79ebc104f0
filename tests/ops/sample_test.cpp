// Sampling against a plain restatement of its rule, its distribution, and its independence from the
// batch and from how the vocabulary is split over ranks.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <thread>

#include <hadal/comm/communicator.h>

#include "catch.h"
#include "op_test.h"

namespace hadal::test {

namespace {

constexpr int32_t kVocab = 300;

struct Bench {
  GuardedTensor counts{DType::i32, Shape{4, kVocab}};
  GuardedTensor seen{DType::u8, Shape{4, kVocab}};
  GuardedTensor last{DType::i32, Shape{4}};

  SamplerState state() const { return {counts.view(), seen.view(), last.view()}; }

  void reset(TestBackend& backend,
             int32_t slot,
             const std::vector<int32_t>& history,
             int32_t num_prompt) const {
    const auto size = static_cast<int32_t>(history.size());
    const GuardedTensor slots = make_ints({slot}, Shape{1});
    const GuardedTensor offsets = make_ints({0, size}, Shape{2});
    const GuardedTensor tokens = make_ints(history, Shape{size});
    const GuardedTensor prompts = make_ints({num_prompt}, Shape{1});
    backend.ops().reset_slots({.slots = slots.view(),
                               .history_offsets = offsets.view(),
                               .history = tokens.view(),
                               .num_prompt_tokens = prompts.view(),
                               .state = state()},
                              *backend.stream);
  }
};

struct Outputs {
  GuardedTensor tokens;
  GuardedTensor logprobs;
  GuardedTensor has_nan;
  GuardedTensor top_tokens;
  GuardedTensor top_logprobs;

  explicit Outputs(int64_t count)
      : tokens(DType::i32, Shape{count}),
        logprobs(DType::f32, Shape{count}),
        has_nan(DType::u8, Shape{count}),
        top_tokens(DType::i32, Shape{count, 5}),
        top_logprobs(DType::f32, Shape{count, 5}) {}

  int32_t token(int64_t i) const { return tokens.view().as<int32_t>()[i]; }

  float logprob(int64_t i) const { return logprobs.view().as<float>()[i]; }
};

Outputs run(TestBackend& backend,
            const GuardedTensor& logits,
            const std::vector<SampleEntry>& entries,
            const Bench& bench,
            const std::vector<std::pair<int32_t, float>>& biases = {}) {
  Outputs out(static_cast<int64_t>(entries.size()));
  const auto count = static_cast<int64_t>(biases.size());
  const GuardedTensor bias_tokens(DType::i32, Shape{count});
  const GuardedTensor bias_values(DType::f32, Shape{count});
  for (size_t i = 0; i < biases.size(); ++i) {
    bias_tokens.view().as<int32_t>()[i] = biases[i].first;
    bias_values.view().as<float>()[i] = biases[i].second;
  }
  SampleArgs args;
  args.logits = logits.view();
  args.vocab_size = kVocab;
  const auto bytes = static_cast<int64_t>(entries.size() * sizeof(SampleEntry));
  const GuardedTensor memory(DType::u8, Shape{bytes});
  std::memcpy(memory.view().data, entries.data(), static_cast<size_t>(bytes));
  args.entries = reinterpret_cast<const SampleEntry*>(memory.view().data);
  args.num_entries = static_cast<int32_t>(entries.size());
  args.bias_tokens = bias_tokens.view();
  args.bias_values = bias_values.view();
  args.state = bench.state();
  args.out_tokens = out.tokens.view();
  args.out_logprobs = out.logprobs.view();
  args.out_has_nan = out.has_nan.view();
  args.out_top_tokens = out.top_tokens.view();
  args.out_top_logprobs = out.top_logprobs.view();
  backend.ops().sample(args, *backend.stream);
  return out;
}

/// The candidates of an entry over already penalised logits, restated plainly; -1 stands for a case
/// too close to a threshold to judge.
std::vector<int32_t> candidates(const SampleEntry& entry, const std::vector<double>& x) {
  std::vector<int32_t> ids(x.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)];
  });
  std::vector<double> p;
  double total = 0.0;
  for (const int32_t id : ids) {
    p.push_back(std::exp((x[static_cast<size_t>(id)] - x[static_cast<size_t>(ids[0])]) /
                         static_cast<double>(entry.temperature)));
    total += p.back();
  }
  std::vector<int32_t> kept;
  double before = 0.0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool in_k = entry.top_k == 0 || i < static_cast<size_t>(entry.top_k);
    const bool in_p =
        i == 0 || entry.top_p >= 1.0F || before < static_cast<double>(entry.top_p) * total;
    if (in_k && in_p && p[i] >= static_cast<double>(entry.min_p)) {
      kept.push_back(ids[i]);
    }
    before += p[i];
  }
  return kept;
}

int32_t race(const SampleEntry& entry,
             const std::vector<double>& x,
             const std::vector<int32_t>& ids) {
  int32_t winner = -1;
  double best = -1e300;
  for (const int32_t id : ids) {
    const double u =
        static_cast<double>(uniform_from_bits(uniform_bits(entry.seed, entry.position, id)));
    const double key = x[static_cast<size_t>(id)] / static_cast<double>(entry.temperature) -
                       std::log(-std::log(u));
    if (key > best) {
      best = key;
      winner = id;
    }
  }
  return winner;
}

Operand random_logits(Random& random, int64_t rows) {
  return make_operand(random_matrix(random, rows, kVocab, 2.0), DType::f32);
}

std::vector<double> row_of(const Operand& logits, int64_t row) {
  const auto begin = logits.exact.values.begin() + row * kVocab;
  return std::vector<double>(begin, begin + kVocab);
}

}  // namespace

TEST_CASE("sample: draws follow the stated rule for every filter", "[ops]") {
  for (TestBackend& backend : backends()) {
    Random random(51);
    const Operand logits = random_logits(random, 6);
    const Bench bench;
    std::vector<SampleEntry> entries;
    for (const int32_t top_k : {0, 1, 7, 200}) {
      for (const float top_p : {1.0F, 0.9F, 0.3F, 1e-6F}) {
        for (const float min_p : {0.0F, 0.05F}) {
          for (int32_t position = 0; position < 6; ++position) {
            SampleEntry entry;
            entry.logits_row = position;
            entry.position = position;
            entry.seed = 77 + static_cast<uint64_t>(top_k);
            entry.temperature = 0.5F + 0.3F * static_cast<float>(position);
            entry.top_k = top_k;
            entry.top_p = top_p;
            entry.min_p = min_p;
            entries.push_back(entry);
          }
        }
      }
    }
    const Outputs out = run(backend, logits.tensor, entries, bench);
    for (size_t i = 0; i < entries.size(); ++i) {
      const auto x = row_of(logits, entries[i].logits_row);
      REQUIRE(out.token(static_cast<int64_t>(i)) == race(entries[i], x, candidates(entries[i], x)));
    }
    CHECK(out.tokens.guards_are_whole());
  }
}

TEST_CASE("sample: frequencies are the softmax's", "[ops]") {
  TestBackend& backend = backends().back();
  const GuardedTensor logits(DType::f32, Shape{1, kVocab});
  std::fill_n(logits.view().as<float>(), kVocab, -std::numeric_limits<float>::infinity());
  const double probabilities[] = {0.5, 0.3, 0.15, 0.05};
  for (int i = 0; i < 4; ++i) {
    logits.view().as<float>()[i * 50] = static_cast<float>(std::log(probabilities[i]));
  }
  const int32_t draws = 20000;
  std::vector<SampleEntry> entries(static_cast<size_t>(draws));
  for (int32_t i = 0; i < draws; ++i) {
    entries[static_cast<size_t>(i)].seed = 5;
    entries[static_cast<size_t>(i)].position = i;
  }
  const Bench bench;
  const Outputs out = run(backend, logits, entries, bench);
  std::map<int32_t, int32_t> counts;
  for (int32_t i = 0; i < draws; ++i) {
    ++counts[out.token(i)];
  }
  CHECK(counts.size() == 4);
  for (int i = 0; i < 4; ++i) {
    const double p = probabilities[i];
    const double deviation = std::sqrt(p * (1.0 - p) * draws);
    CHECK(std::fabs(counts[i * 50] - p * draws) < 4.5 * deviation);
  }
}

TEST_CASE("sample: penalties, biases, greedy ties, history", "[ops]") {
  for (TestBackend& backend : backends()) {
    const GuardedTensor logits(DType::f32, Shape{1, kVocab});
    std::fill_n(logits.view().as<float>(), kVocab, 0.0F);
    float* x = logits.view().as<float>();
    x[10] = 4.0F;
    x[20] = 3.0F;
    x[30] = 3.0F;
    const Bench bench;
    bench.reset(
        backend, 2, {10, 10, 20, 20, 20}, 2);  // 10 twice in the prompt, 20 thrice generated
    CHECK(bench.last.view().as<int32_t>()[2] == 20);
    const auto greedy = [&](SampleEntry entry,
                            const std::vector<std::pair<int32_t, float>>& biases = {}) {
      entry.temperature = 0.0F;
      entry.slot = 2;
      entry.bias_end = static_cast<int32_t>(biases.size());
      return run(backend, logits, {entry}, bench, biases).token(0);
    };
    CHECK(greedy({}) == 10);
    CHECK(greedy({.repetition_penalty = 2.0F}) == 30);  // 4 / 2 and 3 / 2 lose to 3
    CHECK(greedy({.presence_penalty = 2.0F}) == 10);    // the prompt does not count
    CHECK(greedy({}, {{10, -2.0F}}) == 20);             // a tie: the lowest id
    CHECK(greedy({.presence_penalty = 0.5F}, {{10, -2.0F}}) == 30);
    CHECK(greedy({.frequency_penalty = 0.01F}, {{10, -2.0F}}) == 30);
    CHECK(greedy({}, {{10, -std::numeric_limits<float>::infinity()}, {299, 3.5F}}) == 299);
    SampleEntry counted;
    counted.temperature = 0.0F;
    counted.slot = 2;
    counted.updates_history = 1;
    run(backend, logits, {counted}, bench);
    CHECK(bench.counts.view().row<int32_t>(2)[10] == 1);
    CHECK(bench.last.view().as<int32_t>()[2] == 10);
    CHECK(bench.counts.view().row<int32_t>(1)[10] == kAbsurdIndex);  // other slots stay
  }
}

TEST_CASE("sample: log-probabilities are the model's, best first", "[ops]") {
  for (TestBackend& backend : backends()) {
    Random random(52);
    const Operand logits = random_logits(random, 2);
    SampleEntry drawn;
    drawn.temperature = 0.3F;  // must not change what is reported
    drawn.wants_logprob = 1;
    drawn.num_top = 3;
    SampleEntry given;
    given.logits_row = 1;
    given.given_token = 123;
    given.wants_logprob = 1;
    given.num_top = 9;  // more than there is room for
    const Bench bench;
    const Outputs out = run(backend, logits.tensor, {drawn, given}, bench);
    CHECK(out.token(1) == 123);
    for (int64_t i = 0; i < 2; ++i) {
      const auto x = row_of(logits, i);
      double total = 0.0;
      for (const double value : x) {
        total += std::exp(value);
      }
      const auto want = [&](int32_t id) { return x[static_cast<size_t>(id)] - std::log(total); };
      CHECK(std::fabs(static_cast<double>(out.logprob(i)) - want(out.token(i))) < 1e-5);
      SampleEntry all;
      const auto order = candidates(all, x);
      for (int64_t k = 0; k < (i == 0 ? 3 : 5); ++k) {
        const int32_t id = out.top_tokens.view().row<int32_t>(i)[k];
        CHECK(id == order[static_cast<size_t>(k)]);
        const auto found = static_cast<double>(out.top_logprobs.view().row<float>(i)[k]);
        CHECK(std::fabs(found - want(id)) < 1e-5);
      }
    }
    CHECK(out.top_tokens.view().row<int32_t>(0)[3] == kAbsurdIndex);
  }
}

TEST_CASE("sample: a row that is not finite is told apart, the others are not touched", "[ops]") {
  for (TestBackend& backend : backends()) {
    Random random(53);
    const Operand logits = random_logits(random, 4);
    logits.view().row<float>(0)[299] = std::nanf("");
    logits.view().row<float>(1)[0] = std::numeric_limits<float>::infinity();
    std::fill_n(logits.view().row<float>(2), kVocab, -std::numeric_limits<float>::infinity());
    std::vector<SampleEntry> entries(4);
    for (int32_t i = 0; i < 4; ++i) {
      entries[static_cast<size_t>(i)].logits_row = i;
      entries[static_cast<size_t>(i)].temperature = i == 3 ? 1.0F : 0.0F;
    }
    const Bench bench;
    const Outputs out = run(backend, logits.tensor, entries, bench);
    for (int64_t i = 0; i < 3; ++i) {
      CHECK(out.has_nan.view().as<uint8_t>()[i] == 1);
      CHECK(out.token(i) == 0);
    }
    CHECK(out.has_nan.view().as<uint8_t>()[3] == 0);
    CHECK(out.token(3) ==
          race(entries[3], row_of(logits, 3), candidates(entries[3], row_of(logits, 3))));
  }
}

TEST_CASE("sample: a vocabulary over ranks gives what one rank gives", "[ops]") {
  Random random(54);
  const Operand logits = random_logits(random, 3);
  std::vector<SampleEntry> entries(3);
  for (int32_t i = 0; i < 3; ++i) {
    entries[static_cast<size_t>(i)].logits_row = i;
    entries[static_cast<size_t>(i)].seed = 9;
    entries[static_cast<size_t>(i)].top_p = 0.8F;
    entries[static_cast<size_t>(i)].wants_logprob = 1;
  }
  const Bench bench;
  TestBackend one;
  one.backend = make_cpu_backend({.num_threads = 1});
  one.stream = one.backend->create_stream();
  const Outputs whole = run(one, logits.tensor, entries, bench);
  auto comms = make_thread_communicators(4);
  const int64_t local = 76;  // four slices of 76: the last has 4 columns of padding
  std::vector<Outputs> outs;
  std::vector<GuardedTensor> slices;
  for (int64_t rank = 0; rank < 4; ++rank) {
    outs.emplace_back(3);
    slices.emplace_back(DType::f32, Shape{3, local});
    for (int64_t row = 0; row < 3; ++row) {
      const int64_t begin = rank * local;
      std::copy_n(logits.view().row<float>(row) + begin,
                  std::min(local, kVocab - begin),
                  slices.back().view().row<float>(row));
    }
  }
  {
    std::vector<std::jthread> threads;
    for (size_t rank = 0; rank < 4; ++rank) {
      threads.emplace_back([&, rank] {
        const auto backend = make_cpu_backend({.num_threads = 1});
        const auto stream = backend->create_stream();
        SampleArgs args;
        args.logits = slices[rank].view();
        args.comm = comms[rank].get();
        args.vocab_size = kVocab;
        args.entries = entries.data();
        args.num_entries = 3;
        args.bias_tokens = make_view(static_cast<std::byte*>(nullptr), DType::i32, Shape{0});
        args.bias_values = make_view(static_cast<std::byte*>(nullptr), DType::f32, Shape{0});
        args.state = bench.state();
        args.out_tokens = outs[rank].tokens.view();
        args.out_logprobs = outs[rank].logprobs.view();
        args.out_has_nan = outs[rank].has_nan.view();
        backend->ops().sample(args, *stream);
      });
    }
  }
  for (const Outputs& out : outs) {
    for (int64_t i = 0; i < 3; ++i) {
      CHECK(out.token(i) == whole.token(i));
      CHECK(out.logprob(i) == whole.logprob(i));
    }
  }
}

}  // namespace hadal::test
