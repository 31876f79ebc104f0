// The metrics page: our names and SGLang's beside them, with one value.
#include <algorithm>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <hadal/metrics/metrics.h>
#include <hadal/metrics/rank_metrics.h>

#include "catch.h"

namespace hadal {
namespace {

/// The value of the series `name` with the label model_name, or -1.
double value_of(const std::string& text, const std::string& name, const std::string& model) {
  std::istringstream lines(text);
  const std::string begin = name + "{model_name=\"" + model + "\"} ";
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(begin, 0) == 0)
      return std::stod(line.substr(begin.size()));
  }
  return -1;
}

TEST_CASE("Metrics: a set of counters does not grow without end", "[metrics]") {
  MetricsRegistry registry("m");
  CounterSet& set = registry.metrics().key_tokens_total;
  for (size_t i = 0; i < CounterSet::kValuesMax + 10; ++i)
    set.at("k" + std::to_string(i)).add(2);
  set.at("k0").add();
  const std::string text = registry.to_prometheus_text();
  CHECK(text.find("hadal_key_tokens_total{model_name=\"m\",key=\"k0\"} 3\n") != std::string::npos);
  CHECK(text.find("hadal_key_tokens_total{model_name=\"m\",key=\"other\"} 20\n") !=
        std::string::npos);
  CHECK(text.find("key=\"k64\"") == std::string::npos);
}

TEST_CASE("Metrics: SGLang's names carry the same values as ours", "[metrics]") {
  MetricsRegistry registry("deepseek-r1");
  Metrics& metrics = registry.metrics();
  metrics.requests_total.add();
  metrics.prompt_tokens_total.add(100);
  metrics.generation_tokens_total.add(7);
  metrics.cached_tokens_total.add(64);
  metrics.requests_running.set(3);
  metrics.requests_queued.set(2);
  metrics.tokens_used.set(640);
  metrics.token_usage.set(0.5);
  metrics.cache_hit_rate.set(0.25);
  metrics.generation_throughput.set(123);
  metrics.time_to_first_token_seconds.observe(0.3);
  metrics.inter_token_latency_seconds.observe(0.02);
  metrics.request_latency_seconds.observe(3);
  const std::string text = registry.to_prometheus_text();
  const std::string model = "deepseek-r1";

  struct Pair {
    const char* ours;
    const char* theirs;
    double value;
  };

  for (const Pair& pair :
       {Pair{"requests_total", "num_requests_total", 1},
        Pair{"prompt_tokens_total", "prompt_tokens_total", 100},
        Pair{"generation_tokens_total", "generation_tokens_total", 7},
        Pair{"cached_tokens_total", "cached_tokens_total", 64},
        Pair{"requests_running", "num_running_reqs", 3},
        Pair{"requests_queued", "num_queue_reqs", 2},
        Pair{"tokens_used", "num_used_tokens", 640},
        Pair{"token_usage", "token_usage", 0.5},
        Pair{"cache_hit_rate", "cache_hit_rate", 0.25},
        Pair{"generation_throughput", "gen_throughput", 123},
        Pair{"time_to_first_token_seconds_count", "time_to_first_token_seconds_count", 1},
        Pair{"inter_token_latency_seconds_sum", "time_per_output_token_seconds_sum", 0.02},
        Pair{"request_latency_seconds_sum", "e2e_request_latency_seconds_sum", 3}}) {
    INFO(pair.ours);
    CHECK(value_of(text, std::string("hadal_") + pair.ours, model) == Approx(pair.value));
    CHECK(value_of(text, std::string("sglang:") + pair.theirs, model) == Approx(pair.value));
  }
}

TEST_CASE("Metrics: every family has one HELP and one TYPE, and buckets end at infinity",
          "[metrics]") {
  MetricsRegistry registry("a\"b\\c\nd");
  const std::string text = registry.to_prometheus_text();
  std::istringstream lines(text);
  std::vector<std::string> families;
  int num_infinite = 0;
  int num_histograms = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("# TYPE ", 0) == 0) {
      const std::string family = line.substr(7, line.find(' ', 7) - 7);
      CHECK(std::find(families.begin(), families.end(), family) == families.end());
      families.push_back(family);
      num_histograms += line.ends_with(" histogram");
    }
    num_infinite += line.find("le=\"+Inf\"") != std::string::npos;
    if (line[0] != '#')
      CHECK(line.find("model_name=\"a\\\"b\\\\c\\nd\"") != std::string::npos);
  }
  CHECK(families.size() > 30);
  CHECK(num_histograms == num_infinite);
}

TEST_CASE("Metrics: a node's ranks are told apart by labels", "[metrics]") {
  RankMetrics metrics("m", 1, 2, 2);
  metrics.show(2, {.is_ready = true, .steps = 7, .silent_s = 0.25, .resident_bytes = 4096});
  metrics.show(2, {.is_ready = true, .steps = 9, .silent_s = 0.5, .resident_bytes = 8192});
  const std::string text = metrics.to_prometheus_text();
  const auto series = [](const char* name, int rank, const char* value) {
    return std::string("hadal_rank_") + name + R"({model_name="m",node="1",rank=")" +
           std::to_string(rank) + "\"} " + value + "\n";
  };
  for (const std::string& line : {series("ready", 2, "1"),
                                  series("steps_total", 2, "9"),
                                  series("silent_seconds", 2, "0.5"),
                                  series("resident_bytes", 2, "8192"),
                                  series("ready", 3, "0"),
                                  series("steps_total", 3, "0")}) {
    CHECK_THAT(text, Catch::Matchers::Contains(line));
  }
  CHECK(text.find("rank=\"1\"") == std::string::npos);
  CHECK(text.find("requests") == std::string::npos);  // rank 0's node counts them
}

TEST_CASE("Metrics: counting from several threads loses nothing", "[metrics]") {
  MetricsRegistry registry("m");
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 10'000; ++k) {
        registry.metrics().generation_tokens_total.add();
        registry.metrics().step_seconds.observe(0.001);
      }
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  const std::string text = registry.to_prometheus_text();
  CHECK(value_of(text, "hadal_generation_tokens_total", "m") == 40'000);
  CHECK(value_of(text, "hadal_step_seconds_count", "m") == 40'000);
}

}  // namespace
}  // namespace hadal
