// Sampling: see hadal/ops/sample.h for the rule. Each entry is one task on one row of logits; sums
// that decide anything are in double and in token order, so an entry never depends on the others.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include <hadal/comm/communicator.h>

#include "cpu_ops.h"

namespace hadal::cpu {

namespace {

constexpr double kMaxGain = 16.7;  ///< above -log(-log(1 - 2^-24))
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Softmax {
  double max = 0.0;
  double total = 0.0;  ///< of exp(x - max)
};

/// False when an element is NaN or +inf, or all are -inf.
bool is_usable(const float* logits, int32_t vocab) {
  bool any_finite = false;
  for (int32_t v = 0; v < vocab; ++v) {
    if (std::isnan(logits[v]) || logits[v] == std::numeric_limits<float>::infinity()) {
      return false;
    }
    any_finite = any_finite || logits[v] != kMinusInfinity;
  }
  return any_finite;
}

Softmax softmax_of(const float* x, int32_t vocab) {
  Softmax s;
  s.max = static_cast<double>(*std::max_element(x, x + vocab));
  for (int32_t v = 0; v < vocab; ++v) {
    s.total += std::exp(static_cast<double>(x[v]) - s.max);
  }
  return s;
}

/// Penalties, then biases.
void adjust(const SampleArgs& args, const SampleEntry& entry, float* x, int32_t vocab) {
  const bool penalised = entry.repetition_penalty != 1.0F || entry.frequency_penalty != 0.0F ||
                         entry.presence_penalty != 0.0F;
  if (penalised) {
    const auto* counts = args.state.generated_counts.row<int32_t>(entry.slot);
    const auto* prompt = args.state.prompt_seen.row<uint8_t>(entry.slot);
    for (int32_t v = 0; v < vocab; ++v) {
      if (counts[v] == 0 && prompt[v] == 0) {
        continue;
      }
      x[v] = x[v] > 0.0F ? x[v] / entry.repetition_penalty : x[v] * entry.repetition_penalty;
      x[v] -= entry.frequency_penalty * static_cast<float>(counts[v]);
      x[v] -= counts[v] > 0 ? entry.presence_penalty : 0.0F;
    }
  }
  for (int32_t i = entry.bias_begin; i < entry.bias_end; ++i) {
    const int32_t token = args.bias_tokens.as<int32_t>()[i];
    if (token >= 0 && token < vocab) {
      x[token] += args.bias_values.as<float>()[i];
    }
  }
}

struct Better {
  const float* x;

  bool operator()(int32_t a, int32_t b) const { return x[a] > x[b] || (x[a] == x[b] && a < b); }
};

/// Moves the candidates to the front of `ids` (all tokens at first) and returns how many there are.
/// The largest x is zero.
int32_t select(const SampleEntry& entry, const float* x, int32_t vocab, int32_t* ids) {
  std::iota(ids, ids + vocab, 0);
  const int32_t top_k = entry.top_k > 0 ? std::min(entry.top_k, vocab) : vocab;
  int32_t kept = vocab;
  if (top_k < vocab || entry.top_p < 1.0F) {
    const double mass = entry.top_p < 1.0F
                            ? static_cast<double>(entry.top_p) * softmax_of(x, vocab).total
                            : std::numeric_limits<double>::infinity();
    double before = 0.0;
    int32_t sorted = 0;
    kept = 0;
    bool done = false;
    while (!done && sorted < top_k) {
      // Sort ever larger heads: most draws need a few dozen tokens.
      const int32_t target = std::min(top_k, std::max(64, sorted * 4));
      if (target < vocab) {
        std::nth_element(ids + sorted, ids + target, ids + vocab, Better{x});
      }
      std::sort(ids + sorted, ids + target, Better{x});
      for (; sorted < target && !done; ++sorted) {
        done = before >= mass && sorted > 0;
        if (!done) {
          before += std::exp(static_cast<double>(x[ids[sorted]]));
          ++kept;
        }
      }
    }
  }
  if (entry.min_p > 0.0F) {
    const double floor = std::log(static_cast<double>(entry.min_p));
    int32_t out = 0;
    for (int32_t i = 0; i < kept; ++i) {
      if (static_cast<double>(x[ids[i]]) >= floor) {
        ids[out++] = ids[i];
      }
    }
    kept = out;
  }
  return kept;
}

/// The exponential race over the first `count` of ids. No u is so close to one that it gains more
/// than kMaxGain, so most candidates of a large vocabulary need no logarithm.
int32_t draw(const SampleEntry& entry, const float* x, const int32_t* ids, int32_t count) {
  int32_t winner = -1;
  double best = 0.0;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t token = ids[i];
    if (x[token] == kMinusInfinity ||
        (winner >= 0 && static_cast<double>(x[token]) + kMaxGain < best)) {
      continue;
    }
    const float u = uniform_from_bits(uniform_bits(entry.seed, entry.position, token));
    const double key = static_cast<double>(x[token]) - std::log(-std::log(static_cast<double>(u)));
    if (winner < 0 || key > best || (key == best && token < winner)) {
      winner = token;
      best = key;
    }
  }
  return winner;
}

int32_t pick(const SampleArgs& args,
             const SampleEntry& entry,
             const float* logits,
             int32_t vocab,
             ThreadScratch& scratch) {
  float* x = scratch.row.at_least(vocab);
  std::copy_n(logits, vocab, x);
  adjust(args, entry, x, vocab);
  const auto largest = static_cast<int32_t>(std::max_element(x, x + vocab) - x);
  if (entry.temperature == 0.0F || x[largest] == kMinusInfinity) {
    return largest;
  }
  const float top = x[largest];
  for (int32_t v = 0; v < vocab; ++v) {
    x[v] = (x[v] - top) / entry.temperature;
  }
  int32_t* ids = scratch.indices.at_least(vocab);
  const int32_t count = select(entry, x, vocab, ids);
  const int32_t winner = draw(entry, x, ids, count);
  return winner >= 0 ? winner : largest;
}

void report_top(const SampleArgs& args,
                int64_t entry_index,
                const float* logits,
                int32_t vocab,
                const Softmax& softmax,
                ThreadScratch& scratch) {
  const SampleEntry& entry = args.entries[entry_index];
  const auto width = static_cast<int32_t>(args.out_top_tokens.shape[1]);
  const int32_t count = std::min({entry.num_top, width, vocab});
  int32_t* ids = scratch.indices.at_least(vocab);
  std::iota(ids, ids + vocab, 0);
  std::partial_sort(ids, ids + count, ids + vocab, Better{logits});
  for (int32_t i = 0; i < count; ++i) {
    args.out_top_tokens.row<int32_t>(entry_index)[i] = ids[i];
    args.out_top_logprobs.row<float>(entry_index)[i] = static_cast<float>(
        static_cast<double>(logits[ids[i]]) - softmax.max - std::log(softmax.total));
  }
}

}  // namespace

void CpuOps::reset_slots(const ResetSlotsArgs& args, Stream& /*stream*/) {
  require("reset_slots", check(args));
  const int64_t vocab = args.state.generated_counts.shape[1];
  const auto* offsets = args.history_offsets.as<int32_t>();
  for (int64_t i = 0; i < args.slots.shape[0]; ++i) {
    const int32_t slot = args.slots.as<int32_t>()[i];
    auto* counts = args.state.generated_counts.row<int32_t>(slot);
    auto* prompt = args.state.prompt_seen.row<uint8_t>(slot);
    std::fill_n(counts, vocab, 0);
    std::fill_n(prompt, vocab, uint8_t{0});
    const int32_t num_prompt = args.num_prompt_tokens.as<int32_t>()[i];
    for (int32_t j = offsets[i]; j < offsets[i + 1]; ++j) {
      const int32_t token = args.history.as<int32_t>()[j];
      if (token < 0 || token >= vocab) {
        continue;
      }
      if (j - offsets[i] < num_prompt) {
        prompt[token] = 1;
      } else {
        ++counts[token];
      }
    }
    args.state.last_tokens.as<int32_t>()[slot] =
        offsets[i + 1] > offsets[i] ? args.history.as<int32_t>()[offsets[i + 1] - 1] : 0;
  }
}

void CpuOps::sample_entry(const SampleArgs& args,
                          const float* logits,
                          int64_t entry_index,
                          int32_t thread) {
  const SampleEntry& entry = args.entries[entry_index];
  const int32_t vocab = args.vocab_size;
  ThreadScratch& s = scratch(thread);
  int32_t token = entry.given_token;
  float logprob = 0.0F;
  const bool usable = is_usable(logits, vocab);
  args.out_has_nan.as<uint8_t>()[entry_index] = usable ? 0 : 1;
  if (!usable) {
    token = token >= 0 ? token : 0;
    if (!args.out_top_tokens.empty()) {
      std::fill_n(args.out_top_tokens.row<int32_t>(entry_index), args.out_top_tokens.shape[1], 0);
      std::fill_n(
          args.out_top_logprobs.row<float>(entry_index), args.out_top_tokens.shape[1], 0.0F);
    }
  } else {
    const bool draws = token < 0;
    token = draws ? pick(args, entry, logits, vocab, s) : token;
    const bool reports_top = entry.num_top > 0 && !args.out_top_tokens.empty();
    if (entry.wants_logprob != 0 || reports_top) {
      const Softmax softmax = softmax_of(logits, vocab);
      HADAL_CHECK(token < vocab, "sample: given_token is outside the vocabulary");
      logprob = static_cast<float>(static_cast<double>(logits[token]) - softmax.max -
                                   std::log(softmax.total));
      if (reports_top) {
        report_top(args, entry_index, logits, vocab, softmax, s);
      }
    }
    if (draws && entry.updates_history != 0) {
      ++args.state.generated_counts.row<int32_t>(entry.slot)[token];
      args.state.last_tokens.as<int32_t>()[entry.slot] = token;
    }
  }
  args.out_tokens.as<int32_t>()[entry_index] = token;
  args.out_logprobs.as<float>()[entry_index] = entry.wants_logprob != 0 ? logprob : 0.0F;
}

void CpuOps::sample(const SampleArgs& args, Stream& stream) {
  require("sample", check(args));
  const int64_t rows = args.logits.shape[0];
  const int64_t local = args.logits.shape[1];
  const int64_t vocab = args.vocab_size;
  const int32_t world = args.comm == nullptr ? 1 : args.comm->world_size();
  const float* all = nullptr;
  if (world > 1) {
    HADAL_CHECK(local * world >= vocab, "sample: the ranks' logits are fewer than vocab_size");
    float* gathered = gathered_.at_least(world * rows * local);
    args.comm->all_gather(
        args.logits,
        make_view(reinterpret_cast<std::byte*>(gathered), DType::f32, Shape{world, rows, local}),
        stream);
    float* joined = row_logits_.at_least(rows * vocab);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t begin = 0; begin < vocab; begin += local) {
        std::copy_n(gathered + (begin / local * rows + row) * local,
                    std::min(local, vocab - begin),
                    joined + row * vocab + begin);
      }
    }
    all = joined;
  }
  pool_.run(args.num_entries, [&](int64_t entry, int32_t thread) {
    const int64_t row = args.entries[entry].logits_row;
    HADAL_CHECK(row >= 0 && row < rows, "sample: logits_row out of bounds");
    const float* logits = all != nullptr ? all + row * vocab : args.logits.row<float>(row);
    sample_entry(args, logits, entry, thread);
  });
}

}  // namespace hadal::cpu
