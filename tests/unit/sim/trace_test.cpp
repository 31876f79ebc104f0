// Traces and workloads: both formats, what is wrong with a line, and seeds.
#include <hadal/sim/trace.h>
#include <hadal/sim/workload.h>

#include "catch.h"

namespace hadal::sim {
namespace {

std::string error_of(std::string_view line) {
  const auto trace = read_trace(line, "t");
  return trace ? "" : trace.error().message;
}

TEST_CASE("Trace: the Mooncake format shares blocks of 512 tokens by hash id", "[sim]") {
  const auto trace = read_trace(
      R"({"timestamp": 27482, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 2353]})"
      "\n\n"
      R"({"timestamp": 30535, "input_length": 600, "output_length": 0, "hash_ids": [46, 9]})"
      "\n",
      "mooncake");
  REQUIRE(trace);
  const auto& requests = trace.value().requests;
  REQUIRE(requests.size() == 2);
  CHECK(requests[0].arrival_s == Approx(27.482));
  CHECK(requests[0].num_prompt_tokens() == 1100);
  CHECK(requests[0].output_tokens == 52);
  CHECK(requests[0].prompt[2].count == 76);
  CHECK(requests[1].output_tokens == 1);
  CHECK(requests[0].prompt[0].seed == requests[1].prompt[0].seed);
  CHECK(requests[0].prompt[1].seed != requests[1].prompt[1].seed);
  CHECK(requests[0].output_seed != requests[1].output_seed);
}

TEST_CASE("Trace: what write_trace makes, read_trace reads", "[sim]") {
  const auto made = make_workload({"agents", 3, 120.0, 0.0, 0.1});
  REQUIRE(made);
  const std::string text = write_trace(made.value());
  const auto read = read_trace(text, "agents");
  REQUIRE(read);
  CHECK(write_trace(read.value()) == text);
  CHECK(read.value().requests.size() == made.value().requests.size());
}

TEST_CASE("Trace: a wrong line is named with its field", "[sim]") {
  CHECK(error_of("[]") == "t line 1: expected one JSON object");
  CHECK(error_of("") == "t: expected at least one request");
  CHECK(error_of(R"({"timestamp": 1, "input_length": 0, "output_length": 1, "hash_ids": []})") ==
        "t line 1: input_length: expected an integer from 1 to 16777216, got 0");
  CHECK(error_of(R"({"timestamp": 1, "input_length": 513, "output_length": 1, "hash_ids": [4]})") ==
        "t line 1: hash_ids: expected 2 ids for 513 tokens in blocks of 512, got [4]");
  CHECK(error_of(R"({"timestamp": -1, "input_length": 1, "output_length": 1, "hash_ids": [4]})") ==
        "t line 1: timestamp: expected a time from 0 to 1e9 seconds, got -1");
  CHECK(error_of(R"({"prompt": [[1, 0]], "output": [1, 2]})") ==
        "t line 1: prompt: expected [seed, begin, count], got [[1,0]]");
  CHECK(error_of(R"({"prompt": [[1, 0, 99999999999]], "output": [1, 2]})") ==
        "t line 1: prompt: expected an integer from 1 to 16777216, got 99999999999");
  CHECK(error_of(R"({"prompt": [[1, 0, 5]], "output": [1, 2], "after": 0})") ==
        "t line 1: after: expected an integer from -1 to -1, got 0");
  CHECK(error_of(R"({"prompt": [[1, 0, 5]], "output": [1, 9], "max_new_tokens": 8})") ==
        "t line 1: max_new_tokens: expected an integer from 9 to 16777216, got 8");
  CHECK(error_of(R"({"prompt": [[1, 0, 5]]})") ==
        "t line 1: output: expected an array, got nothing");
}

TEST_CASE("Workload: the same seed makes the same trace, another one another", "[sim]") {
  for (const WorkloadKind& kind : workload_kinds()) {
    INFO(kind.name);
    const auto a = make_workload({kind.name, 1, 60.0, 0.0, 1.0});
    const auto b = make_workload({kind.name, 1, 60.0, 0.0, 1.0});
    REQUIRE(a);
    CHECK(write_trace(a.value()) == write_trace(b.value()));
    for (const SimRequest& request : a.value().requests) {
      CHECK(request.num_prompt_tokens() > 0);
      CHECK(request.output_tokens > 0);
      CHECK(request.max_new_tokens >= request.output_tokens);
    }
    if (kind.name != "cyclic-scan")
      CHECK(write_trace(a.value()) != write_trace(make_workload({kind.name, 2, 60.0}).value()));
  }
  CHECK(make_workload({"chess"}).error().message.find("sharegpt") != std::string::npos);
}

TEST_CASE("Workload: a later turn contains the earlier ones and their answers", "[sim]") {
  const auto trace = make_workload({"agents", 1, 300.0, 0.0, 1.0});
  REQUIRE(trace);
  int num_turns = 0;
  for (const SimRequest& request : trace.value().requests) {
    if (request.after < 0)
      continue;
    ++num_turns;
    const SimRequest& before = trace.value().requests[static_cast<size_t>(request.after)];
    REQUIRE(request.prompt.size() >= before.prompt.size() + 1);
    for (size_t i = 0; i < before.prompt.size(); ++i)
      CHECK(request.prompt[i].seed == before.prompt[i].seed);
    if (before.output_tokens > 1)
      CHECK(request.prompt[before.prompt.size()].seed == before.output_seed);
  }
  CHECK(num_turns > 100);
}

}  // namespace
}  // namespace hadal::sim
