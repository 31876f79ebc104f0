// The workloads. Lengths are log-normal around medians that public traces of such traffic show;
// arrivals are Poisson unless a kind says otherwise.
#include <algorithm>
#include <array>
#include <string>

#include <hadal/sim/workload.h>

#include "random.h"

namespace hadal::sim {
namespace {

constexpr int32_t kMaxTurns = 40;

/// Builds one trace; every random choice comes from one seeded stream.
class Builder {
 public:
  explicit Builder(const WorkloadConfig& config) : random(config.seed), config_(config) {
    trace.name = std::string(config.kind) + "-" + std::to_string(config.seed);
  }

  double rate(double otherwise) const {
    return config_.requests_per_s > 0.0 ? config_.requests_per_s : otherwise;
  }

  double duration_s() const { return config_.duration_s; }

  /// A seed of contents; `shared` ones are the same whenever their number is.
  uint64_t shared(uint64_t number) const { return mix(mix(config_.seed) ^ (number << 20U)); }

  uint64_t fresh() { return random.next(); }

  int32_t length(double median, double sigma, int32_t low, int32_t high) {
    return std::max(
        1, static_cast<int32_t>(config_.scale * random.log_normal(median, sigma, low, high)));
  }

  int32_t scaled(int32_t tokens) const {
    return std::max(1, static_cast<int32_t>(config_.scale * tokens));
  }

  int32_t add(SimRequest request, int32_t output_tokens, int32_t max_new_tokens) {
    request.output_seed = fresh();
    request.output_tokens = output_tokens;
    request.max_new_tokens = std::max(output_tokens, max_new_tokens);
    trace.requests.push_back(std::move(request));
    return static_cast<int32_t>(trace.requests.size()) - 1;
  }

  /// The conversation so far, its last answer without the stop token.
  std::vector<TokenSegment> continued(int32_t index) const {
    const SimRequest& last = trace.requests[static_cast<size_t>(index)];
    std::vector<TokenSegment> prompt = last.prompt;
    if (last.output_tokens > 1)
      prompt.push_back({last.output_seed, 0, last.output_tokens - 1});
    return prompt;
  }

  Random random;
  Trace trace;

 private:
  const WorkloadConfig& config_;
};

struct TurnStyle {
  double more_turns = 0.0;  ///< probability of another turn
  double pause_s = 0.0;     ///< mean, between an answer and the next turn
  double input_median = 0.0;
  double input_sigma = 0.0;
  double output_median = 0.0;
  double output_sigma = 0.0;
};

void add_conversation(Builder& b, SimRequest first, const TurnStyle& style) {
  const auto output = [&] { return b.length(style.output_median, style.output_sigma, 4, 4096); };
  const int32_t limit = b.scaled(4096);
  int32_t last = b.add(std::move(first), output(), limit);
  for (int turn = 1; turn < kMaxTurns && b.random.uniform() < style.more_turns; ++turn) {
    SimRequest next;
    next.tenant = b.trace.requests[static_cast<size_t>(last)].tenant;
    next.after = last;
    next.arrival_s = 0.2 + b.random.exponential(style.pause_s);
    next.prompt = b.continued(last);
    next.prompt.push_back(
        {b.fresh(), 0, b.length(style.input_median, style.input_sigma, 4, 16'384)});
    last = b.add(std::move(next), output(), limit);
  }
}

/// Chats: a short system prompt of one of 20 applications, then one or several turns.
void add_chat(Builder& b, double arrival_s, double more_turns) {
  SimRequest first;
  first.arrival_s = arrival_s;
  const int32_t application = Zipf(20, 1.0).draw(b.random);
  first.prompt.push_back({b.shared(static_cast<uint64_t>(application)), 0, b.scaled(160)});
  first.prompt.push_back({b.fresh(), 0, b.length(120, 1.2, 4, 8192)});
  add_conversation(b, std::move(first), {more_turns, 25.0, 60, 1.1, 220, 0.9});
}

void make_sharegpt(Builder& b) {
  const double gap = 1.0 / b.rate(2.0);
  for (double t = b.random.exponential(gap); t < b.duration_s(); t += b.random.exponential(gap))
    add_chat(b, t, 0.6);
}

/// Chats whose rate jumps between a third and five times the mean, for half a minute on average.
void make_bursts(Builder& b) {
  const double rate = b.rate(3.0);
  bool is_burst = false;
  double change_s = 0.0;
  for (double t = 0.0; t < b.duration_s();) {
    if (t >= change_s) {
      is_burst = !is_burst && change_s > 0.0;
      change_s = t + b.random.exponential(is_burst ? 10.0 : 50.0);
    }
    t += b.random.exponential(1.0 / (is_burst ? 5.0 * rate : rate / 3.0));
    add_chat(b, t, 0.0);
  }
}

/// Questions about 60 documents, popular as Zipf says.
void make_long_document(Builder& b) {
  constexpr int32_t kDocuments = 60;
  const Zipf zipf(kDocuments, 1.0);
  std::vector<int32_t> lengths;
  for (int32_t i = 0; i < kDocuments; ++i)
    lengths.push_back(b.length(9'000, 0.6, 2'000, 40'000));
  const double gap = 1.0 / b.rate(1.5);
  for (double t = b.random.exponential(gap); t < b.duration_s(); t += b.random.exponential(gap)) {
    const int32_t document = zipf.draw(b.random);
    SimRequest request;
    request.arrival_s = t;
    request.prompt.push_back(
        {b.shared(static_cast<uint64_t>(document)), 0, lengths[static_cast<size_t>(document)]});
    request.prompt.push_back({b.fresh(), 0, b.length(40, 0.6, 8, 400)});
    b.add(std::move(request), b.length(160, 0.7, 8, 1024), b.scaled(1024));
  }
}

/// Readers of 120 documents, popular as Zipf says: each asks a question, and then some more.
void make_readers(Builder& b) {
  constexpr int32_t kDocuments = 120;
  const Zipf zipf(kDocuments, 1.0);
  std::vector<int32_t> lengths;
  for (int32_t i = 0; i < kDocuments; ++i)
    lengths.push_back(b.length(6'000, 0.6, 1'000, 30'000));
  const double gap = 1.0 / b.rate(0.5);
  for (double t = b.random.exponential(gap); t < b.duration_s(); t += b.random.exponential(gap)) {
    SimRequest first;
    first.arrival_s = t;
    const int32_t document = zipf.draw(b.random);
    first.prompt.push_back(
        {b.shared(static_cast<uint64_t>(document)), 0, lengths[static_cast<size_t>(document)]});
    first.prompt.push_back({b.fresh(), 0, b.length(40, 0.6, 8, 400)});
    add_conversation(b, std::move(first), {0.67, 20.0, 40, 0.6, 160, 0.7});
  }
}

/// Agents of five kinds: a long prompt of instructions and tools, a task, then many short turns
/// that each bring a tool's result.
void make_agents(Builder& b) {
  const Zipf kinds(5, 1.0);
  const double gap = 1.0 / b.rate(0.4);
  for (double t = b.random.exponential(gap); t < b.duration_s(); t += b.random.exponential(gap)) {
    SimRequest first;
    first.arrival_s = t;
    const int32_t kind = kinds.draw(b.random);
    first.prompt.push_back(
        {b.shared(static_cast<uint64_t>(kind)), 0, b.scaled(2'500 + 400 * kind)});
    first.prompt.push_back({b.fresh(), 0, b.length(300, 0.8, 20, 4'000)});
    add_conversation(b, std::move(first), {0.9, 3.0, 350, 1.0, 140, 0.8});
  }
}

/// Batches of 16 questions at once about one of twelve long system prompts.
void make_fan_out(Builder& b) {
  const Zipf prompts(12, 0.9);
  const double gap = 16.0 / b.rate(4.0);
  for (double t = b.random.exponential(gap); t < b.duration_s(); t += b.random.exponential(gap)) {
    const int32_t number = prompts.draw(b.random);
    for (int i = 0; i < 16; ++i) {
      SimRequest request;
      request.arrival_s = t;
      request.prompt.push_back({b.shared(static_cast<uint64_t>(number)), 0, b.scaled(4'000)});
      request.prompt.push_back({b.fresh(), 0, b.length(60, 0.5, 8, 400)});
      b.add(std::move(request), b.length(180, 0.6, 8, 1024), b.scaled(1024));
    }
  }
}

/// What keeps about 250 requests running at about 4,096 tokens of context on R1's 16 GPUs.
void make_group_hour(Builder& b) {
  const Zipf documents(400, 0.9);
  const double gap = 1.0 / b.rate(4.8);
  for (double t = b.random.exponential(gap); t < b.duration_s(); t += b.random.exponential(gap)) {
    SimRequest request;
    request.arrival_s = t;
    const auto number = static_cast<uint64_t>(documents.draw(b.random));
    request.prompt.push_back({b.shared(number), 0, b.scaled(1'500)});
    request.prompt.push_back({b.fresh(), 0, b.length(1'700, 0.6, 50, 16'000)});
    b.add(std::move(request), b.length(850, 0.7, 16, 6'000), b.scaled(8'192));
  }
}

/// 40 documents in a circle: least-recently-used must lose when the pool is smaller than the round.
void make_cyclic_scan(Builder& b) {
  const double gap = 1.0 / b.rate(1.5);
  uint64_t number = 0;
  for (double t = 0.0; t < b.duration_s(); t += gap) {
    SimRequest request;
    request.arrival_s = t;
    request.prompt.push_back({b.shared(number++ % 40), 0, b.scaled(9'000)});
    request.prompt.push_back({b.fresh(), 0, b.scaled(40)});
    b.add(std::move(request), b.scaled(100), b.scaled(1024));
  }
}

/// Tenant "quiet" at 1/101 of the rate, "loud" with the rest; the same kind of questions.
void make_two_tenants(Builder& b) {
  const double rate = b.rate(10.0);
  for (const bool is_quiet : {true, false}) {
    const double gap = (is_quiet ? 101.0 : 1.01) / rate;
    for (double t = b.random.exponential(gap); t < b.duration_s(); t += b.random.exponential(gap)) {
      SimRequest request;
      request.arrival_s = t;
      request.tenant = is_quiet ? "quiet" : "loud";
      request.prompt.push_back({b.fresh(), 0, b.length(1'000, 0.5, 50, 8'000)});
      b.add(std::move(request), b.length(250, 0.6, 8, 2'000), b.scaled(2'048));
    }
  }
}

constexpr WorkloadKind kKinds[] = {
    {"sharegpt", "chats of one or several turns over 20 short system prompts"},
    {"long-document", "questions about 60 shared documents, popular as Zipf says"},
    {"readers", "several questions each about 120 shared documents, popular as Zipf says"},
    {"agents", "agent loops: long instructions, growing conversations, short pauses"},
    {"fan-out", "16 questions at once about one of 12 long system prompts"},
    {"bursts", "chats whose rate jumps fifteenfold"},
    {"group-hour", "250 running requests of 4,096 tokens on R1's 16 GPUs"},
    {"cyclic-scan", "40 documents in a circle, where LRU must lose"},
    {"two-tenants", "one tenant that sends a hundred times what the other does"},
};

constexpr void (*kMakers[])(Builder&) = {make_sharegpt,
                                         make_long_document,
                                         make_readers,
                                         make_agents,
                                         make_fan_out,
                                         make_bursts,
                                         make_group_hour,
                                         make_cyclic_scan,
                                         make_two_tenants};

}  // namespace

std::span<const WorkloadKind> workload_kinds() {
  return kKinds;
}

Result<Trace> make_workload(const WorkloadConfig& config) {
  std::string names;
  for (size_t i = 0; i < std::size(kKinds); ++i) {
    names += (i > 0 ? ", " : "") + std::string(kKinds[i].name);
    if (kKinds[i].name != config.kind)
      continue;
    Builder builder(config);
    kMakers[i](builder);
    if (builder.trace.requests.empty())
      return Error{ErrorCode::invalid_argument,
                   "the workload has no request: its duration or rate is too small"};
    return std::move(builder.trace);
  }
  return Error{
      ErrorCode::not_found,
      "expected a trace file or one of " + names + ", got '" + std::string(config.kind) + "'"};
}

}  // namespace hadal::sim
