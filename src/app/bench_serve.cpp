// `hadal bench serve`: load for a server that runs elsewhere, and how it was answered.
#include <cstdio>

#include <nlohmann/json.hpp>

#include "bench_report.h"
#include "commands.h"
#include "exit_code.h"
#include "serve_load.h"

namespace hadal {

int run_bench_serve(const Config& config) {
  const ServeLoad& load = config.bench.load;
  std::fprintf(stderr,
               "%d requests at %g/s to %s\n",
               load.num_prompts,
               load.requests_per_s,
               load.base_url.c_str());
  const auto outcomes = drive_load(load);
  if (!outcomes) {
    std::fprintf(stderr, "hadal bench serve: %s\n", outcomes.error().message.c_str());
    return outcomes.error().code == ErrorCode::invalid_argument ? kExitUsage : kExitRetry;
  }
  nlohmann::json report = bench_header(config, "hadal bench serve");
  report["backend"] = "openai";
  report["dataset_name"] = "random";
  report["base_url"] = load.base_url;
  report["request_rate"] = load.requests_per_s;
  report["burstiness"] = 1.0;
  report["max_concurrency"] = nullptr;
  report["random_input_len"] = load.input_words;
  report["random_output_len"] = load.output_tokens;
  report["goodput_ttft_ms"] = config.simulate.slo_ttft_ms;
  report["goodput_tpot_ms"] = config.simulate.slo_tpot_ms;
  for (const auto& [name, value] :
       summarize(outcomes.value(), {config.simulate.slo_ttft_ms, config.simulate.slo_tpot_ms})) {
    report[name] = value;
  }
  nlohmann::json by_status = nlohmann::json::object();
  nlohmann::json by_gate = nlohmann::json::object();
  nlohmann::json errors = nlohmann::json::object();
  const auto count = [](nlohmann::json& counts, const std::string& name) {
    counts[name] = counts.value(name, 0) + 1;
  };
  for (const ServeOutcome& outcome : outcomes.value()) {
    count(by_status, std::to_string(outcome.status));
    if (!outcome.gate.empty()) {
      count(by_gate, outcome.gate);
    }
    if (!outcome.error.empty() && outcome.status < 400 && errors.size() < 20) {
      count(errors, outcome.error);
    }
  }
  report["status"] = by_status;
  report["gates"] = by_gate;
  report["errors"] = errors;
  if (Status written = print_report(config, report); !written) {
    std::fprintf(stderr, "hadal bench serve: %s\n", written.error().message.c_str());
    return kExitUsage;
  }
  return kExitOk;
}

}  // namespace hadal
