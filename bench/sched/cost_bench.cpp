// What the scheduler costs: plan and commit of one step at production size, the match of a long
// prompt, and allocations. No model, no device: the plans are answered at once.
//
//   sched_cost_bench [OUTPUT.json]
//
// 256 sequences run at 4096-token contexts over a radix tree of at least 100,000 pages. "decode"
// steps carry 256 decodes and nothing else; "traffic" steps also end sequences, admit new ones from
// a queue of 64 and prefill them, so that the pool is full and every new page evicts an old one.
// Times are of this thread's processor time, so that other load on the machine counts less.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <new>
#include <random>
#include <string>
#include <vector>

#include <hadal/sched/scheduler.h>

#include "radix_cache.h"

namespace {

int64_t g_num_allocations = 0;

}  // namespace

// Not inlined: the compiler would see malloc() meet delete.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++g_num_allocations;
  void* memory = std::malloc(size);
  if (memory == nullptr)
    std::abort();
  return memory;
}

[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}

[[gnu::noinline]] void operator delete(void* memory, std::size_t /*size*/) noexcept {
  std::free(memory);
}

namespace {

using namespace hadal;

constexpr int32_t kRunning = 256;
constexpr int32_t kContext = 4096;
constexpr int32_t kTreePages = 100'000;
constexpr int32_t kVocab = 129'280;
constexpr int kDecodeSteps = 1500;
constexpr int kTrafficSteps = 6000;

double thread_us() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) * 1e-3;
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

struct Costs {
  std::vector<double> plan_us;
  std::vector<double> commit_us;
  std::vector<double> step_us;
  int64_t allocations = 0;
  int64_t tokens = 0;
  int64_t evicted_pages = 0;
  int64_t admitted = 0;
};

class Bench {
 public:
  Bench() : scheduler_(config()) {}

  static SchedulerConfig config() {
    SchedulerConfig config;
    config.num_pages = kTreePages + kRunning * (kContext / kPageTokens + 16);
    config.max_slots = kRunning;
    config.max_step_tokens = 8192;
    config.max_context_tokens = 163'840;
    config.vocab_size = kVocab;
    config.max_running_requests = kRunning;
    config.chunked_prefill_tokens = 8192;
    config.max_decode_stretch = 0.0;  // no step times here: prefill as much as the limits allow
    return config;
  }

  /// A document of the popular ones (Zipf), then words of its own.
  GenerateRequest make_request(int32_t prompt_tokens, int32_t new_tokens) {
    const double u = std::uniform_real_distribution<double>(0.0, 1.0)(random_);
    const auto document = static_cast<int32_t>(std::pow(200.0, u));
    GenerateRequest request;
    request.prompt.reserve(static_cast<size_t>(prompt_tokens));
    for (int32_t i = 0; i < prompt_tokens; ++i) {
      const bool is_shared = i < prompt_tokens / 4;
      request.prompt.push_back(is_shared ? (document * 7919 + i * 31) % kVocab
                                         : static_cast<TokenId>(random_() % kVocab));
    }
    request.max_new_tokens = new_tokens;
    return request;
  }

  void submit(int32_t prompt_tokens, int32_t new_tokens) {
    scheduler_.submit(++last_id_, make_request(prompt_tokens, new_tokens));
  }

  /// One step; false when there is none.
  bool step(Costs* costs) {
    const int64_t allocations = g_num_allocations;
    const double start = thread_us();
    const bool is_planned = scheduler_.plan_next(plan_);
    const double planned = thread_us();
    int64_t counted = g_num_allocations - allocations;
    if (!is_planned)
      return false;
    answer();
    const int64_t before_commit = g_num_allocations;
    const double commit = thread_us();
    scheduler_.commit(result_);
    events_.clear();
    scheduler_.take_events(events_);
    const double end = thread_us();
    counted += g_num_allocations - before_commit;
    if (costs != nullptr) {
      costs->plan_us.push_back(planned - start);
      costs->commit_us.push_back(end - commit);
      costs->step_us.push_back(planned - start + end - commit);
      costs->allocations += counted;
      for (const TokenEvent& event : events_)
        costs->tokens += event.token ? 1 : 0;
    }
    return true;
  }

  void fill_tree() {
    while (scheduler_.stats().pages_cached < kTreePages) {
      for (int i = 0; i < 64; ++i)
        submit(kContext, 1);
      while (step(nullptr)) {
      }
    }
  }

  void start_streams() {
    for (int32_t i = 0; i < kRunning; ++i)
      submit(kContext - 2 * kPageTokens, 4000);
    while (scheduler_.stats().num_waiting > 0)
      step(nullptr);
    for (int i = 0; i < 200; ++i)
      step(nullptr);
  }

  Costs decode() {
    Costs costs;
    costs.plan_us.reserve(kDecodeSteps);
    costs.commit_us.reserve(kDecodeSteps);
    costs.step_us.reserve(kDecodeSteps);
    for (int i = 0; i < kDecodeSteps; ++i)
      step(&costs);
    return costs;
  }

  Costs traffic() {
    for (RequestId id = 1; id <= last_id_; ++id)
      scheduler_.cancel(id);
    const auto top_up = [&](int32_t queue) {
      std::uniform_int_distribution<int32_t> output(100, 900);
      while (scheduler_.stats().num_waiting < queue)
        submit(kContext - 500, output(random_));
    };
    for (int i = 0; i < 1500; ++i) {
      top_up(64);
      step(nullptr);
    }
    Costs costs;
    const SchedulerStats before = scheduler_.stats();
    const RequestId first = last_id_;
    for (int i = 0; i < kTrafficSteps; ++i) {
      top_up(64);
      step(&costs);
    }
    costs.evicted_pages = scheduler_.stats().num_evicted_pages - before.num_evicted_pages;
    costs.admitted = static_cast<int64_t>(last_id_ - first);
    return costs;
  }

  SchedulerStats stats() const { return scheduler_.stats(); }

 private:
  void answer() {
    result_.step_id = plan_.step_id;
    result_.rows.clear();
    for (const PlanRow& row : plan_.rows) {
      if (row.num_logits == 0)
        continue;
      RowResult& out = result_.rows.emplace_back();
      out.slot = row.slot;
      out.token = static_cast<TokenId>(random_() % kVocab);
    }
  }

  std::mt19937_64 random_{1};
  Scheduler scheduler_;
  BatchPlan plan_;
  StepResult result_;
  std::vector<TokenEvent> events_;
  RequestId last_id_ = 0;
};

/// Microseconds to match a prompt of 128 Ki tokens, all of it cached among 100,000 other pages.
std::vector<double> match_long_prompt() {
  constexpr int32_t kTokens = 131'072;
  PageAllocator pages(kTreePages + kTokens / kPageTokens);
  RadixCache cache(pages);
  std::mt19937_64 random(2);
  std::vector<TokenId> prompt;
  const auto insert = [&](int32_t num_pages) {
    Lease lease = cache.acquire("", PrefixMatch{});
    for (int32_t i = 0; i < num_pages; ++i) {
      const auto key = std::span<const TokenId>(prompt).subspan(
          static_cast<size_t>(i) * kPageTokens, static_cast<size_t>(kPageTokens));
      cache.extend(lease, key, pages.allocate());
    }
    cache.release(lease);
  };
  const auto draw = [&](int32_t num_tokens) {
    prompt.clear();
    for (int32_t i = 0; i < num_tokens; ++i)
      prompt.push_back(static_cast<TokenId>(random() % kVocab));
  };
  while (pages.num_free() >= 64 + kTokens / kPageTokens) {
    draw(64 * kPageTokens);
    insert(64);
  }
  draw(kTokens);
  insert(kTokens / kPageTokens);
  std::vector<double> times;
  std::vector<char> other_data(64 << 20);
  for (int i = 0; i < 50; ++i) {
    for (size_t k = 0; k < other_data.size(); k += 64)
      ++other_data[k];  // the tree is not in the processor's caches
    const double start = thread_us();
    const PrefixMatch match = cache.match("", prompt);
    times.push_back(thread_us() - start);
    if (match.num_tokens() != kTokens)
      std::abort();
  }
  return times;
}

std::string report(const char* name, const Costs& costs) {
  char text[700];
  std::snprintf(
      text,
      sizeof text,
      "    {\"name\": \"%s\", \"steps\": %zu, \"tokens\": %lld, \"admitted\": %lld, "
      "\"evicted_pages\": %lld,\n     \"plan_and_commit_us\": {\"p50\": %.1f, \"p99\": %.1f, "
      "\"max\": %.1f},\n     \"plan_us\": {\"p50\": %.1f, \"p99\": %.1f}, \"commit_us\": "
      "{\"p50\": %.1f, \"p99\": %.1f},\n     \"allocations_per_token\": %.6f}",
      name,
      costs.step_us.size(),
      static_cast<long long>(costs.tokens),
      static_cast<long long>(costs.admitted),
      static_cast<long long>(costs.evicted_pages),
      quantile(costs.step_us, 0.5),
      quantile(costs.step_us, 0.99),
      quantile(costs.step_us, 1.0),
      quantile(costs.plan_us, 0.5),
      quantile(costs.plan_us, 0.99),
      quantile(costs.commit_us, 0.5),
      quantile(costs.commit_us, 0.99),
      static_cast<double>(costs.allocations) / static_cast<double>(costs.tokens));
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<double> match = match_long_prompt();
  Bench bench;
  bench.fill_tree();
  const int32_t tree_pages = bench.stats().pages_cached;
  bench.start_streams();
  const Costs decode = bench.decode();
  const Costs traffic = bench.traffic();
  char head[400];
  std::snprintf(
      head,
      sizeof head,
      "{\n  \"command\": \"sched_cost_bench\",\n  \"running\": %d, \"context_tokens\": %d, "
      "\"tree_pages\": %d,\n  \"match_131072_tokens_us\": {\"p50\": %.1f, \"p99\": %.1f},\n"
      "  \"results\": [\n",
      kRunning,
      kContext,
      tree_pages,
      quantile(match, 0.5),
      quantile(match, 0.99));
  const std::string text = std::string(head) + report("decode", decode) + ",\n" +
                           report("traffic", traffic) + "\n  ]\n}\n";
  std::fputs(text.c_str(), stdout);
  if (argc > 1)
    std::ofstream(argv[1]) << text;
  return 0;
}
