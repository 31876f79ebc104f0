// `hadal simulate TRACE`: the scheduler of `serve` with its flags, under a trace or a seeded
// workload, on R1's 16 GPUs or on whatever a table of step times describes.
#include "simulate.h"

#include <chrono>
#include <cstdio>
#include <fstream>

#include <nlohmann/json.hpp>

#include <hadal/sim/workload.h>

#include "commands.h"
#include "exit_code.h"
#include "files.h"
#include "version.h"

namespace hadal {

namespace {

using nlohmann::ordered_json;

constexpr int64_t kMaxTraceBytes = int64_t{1} << 30;
constexpr int32_t kGroupContextTokens = 163'840;

int fail(int code, const Error& error) {
  std::fprintf(stderr, "hadal simulate: %s\n", error.message.c_str());
  return code;
}

Result<sim::Trace> load_trace(const Config& config, const std::string& name) {
  if (std::filesystem::exists(name)) {
    auto text = read_small_file(name, kMaxTraceBytes);
    if (!text) {
      return text.error();
    }
    return sim::read_trace(text.value(), name);
  }
  sim::WorkloadConfig workload;
  workload.kind = name;
  workload.seed = config.random_seed.value_or(1);
  workload.duration_s = config.simulate.duration_s;
  workload.requests_per_s = config.simulate.requests_per_s;
  workload.scale = config.simulate.length_scale;
  return sim::make_workload(workload);
}

Result<sim::StepModel> load_step_model(const Config& config) {
  const std::filesystem::path& path = config.simulate.step_table;
  if (path.empty()) {
    return sim::r1_group_model();
  }
  auto text = read_small_file(path, 1 << 24);
  if (!text) {
    return Error{text.error().code, "--step-table: " + text.error().message};
  }
  return sim::read_step_table(text.value(), path.string());
}

std::string requests_jsonl(const sim::SimResult& result) {
  std::string text;
  for (const sim::RequestResult& request : result.requests) {
    const bool is_finished = request.outcome == sim::Outcome::finished;
    ordered_json line = {{"arrival_s", request.arrival_s}, {"finished", is_finished}};
    if (is_finished) {
      line["ttft_s"] = request.ttft_s();
      line["tpot_s"] = request.tpot_s();
      line["e2e_s"] = request.e2e_s();
      line["prompt_tokens"] = request.num_prompt_tokens;
      line["cached_tokens"] = request.num_cached_tokens;
      line["output_tokens"] = request.num_output_tokens;
    }
    text += line.dump() + "\n";
  }
  return text;
}

/// Whatever files were asked for.
Status write_outputs(const Config& config,
                     const sim::Trace& trace,
                     const sim::SimResult& result,
                     const std::string& json,
                     int32_t num_pages) {
  const SimulateOptions& options = config.simulate;
  if (!options.output.empty()) {
    HADAL_RETURN_IF_ERROR(write_file(options.output, json + "\n"));
  }
  if (!options.plot.empty()) {
    HADAL_RETURN_IF_ERROR(write_file(options.plot, sim::to_svg(result, trace.name, num_pages)));
  }
  if (!options.trace_output.empty()) {
    HADAL_RETURN_IF_ERROR(write_file(options.trace_output, sim::write_trace(trace)));
  }
  if (!options.requests_output.empty()) {
    HADAL_RETURN_IF_ERROR(write_file(options.requests_output, requests_jsonl(result)));
  }
  return ok_status();
}

}  // namespace

Status write_file(const std::filesystem::path& path, const std::string& text) {
  if (!(std::ofstream(path, std::ios::binary) << text).flush()) {
    return Error{ErrorCode::not_found, "cannot write " + path.string()};
  }
  return ok_status();
}

sim::SimConfig make_sim_config(const Config& config, int64_t kv_tokens) {
  const EngineConfig& engine = config.engine;
  sim::SimConfig out;
  SchedulerConfig& scheduler = out.scheduler;
  scheduler.num_pages = static_cast<int32_t>(std::max<int64_t>(1, kv_tokens / kPageTokens));
  scheduler.max_slots = engine.max_running_requests;
  scheduler.max_step_tokens = engine.max_prefill_tokens + engine.max_running_requests + 1;
  scheduler.max_context_tokens =
      config.model.context_length > 0 ? config.model.context_length : kGroupContextTokens;
  scheduler.max_steps_in_flight = config.runner.plans_ahead ? 2 : 1;
  scheduler.max_running_requests = engine.max_running_requests;
  scheduler.chunked_prefill_tokens = engine.chunked_prefill_tokens;
  scheduler.max_prefill_tokens = engine.max_prefill_tokens;
  scheduler.target_step_ms = engine.target_step_ms;
  scheduler.max_decode_stretch = engine.max_decode_stretch;
  scheduler.policy = engine.policy;
  scheduler.enable_radix_cache = engine.enable_radix_cache;
  scheduler.eviction = engine.eviction;
  scheduler.policy_seed = engine.policy_seed;
  scheduler.conservativeness = engine.schedule_conservativeness;
  out.queue = {engine.max_queued_requests, engine.max_queued_tokens, engine.max_queue_wait_s};
  out.request_timeout_s = engine.request_timeout_s;
  out.host_step_s = config.simulate.host_step_us * 1e-6;
  return out;
}

int run_simulate(const Config& config, const std::string& name) {
  auto model = load_step_model(config);
  if (!model) {
    return fail(kExitUsage, model.error());
  }
  if (config.runner.is_deterministic) {
    model.value().absorbed_chunk_tokens = 0;
  }
  auto trace = load_trace(config, name);
  if (!trace) {
    return fail(kExitUsage, trace.error());
  }
  const int64_t kv_tokens =
      config.runner.kv_tokens_max > 0 ? config.runner.kv_tokens_max : kGroupKvTokens;
  const sim::SimConfig sim_config = make_sim_config(config, kv_tokens);
  const auto start = std::chrono::steady_clock::now();
  auto result = sim::simulate(sim_config, model.value(), trace.value());
  if (!result) {
    return fail(kExitUsage, result.error());
  }
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
  const sim::Slo slo{config.simulate.slo_ttft_ms * 1e-3, config.simulate.slo_tpot_ms * 1e-3};
  const int32_t num_pages = sim_config.scheduler.num_pages;
  const sim::Report report = sim::make_report(trace.value(), result.value(), slo, num_pages);
  std::printf("%s on %s, a pool of %d pages; %.1f s simulated in %.1f s\n%s",
              trace.value().name.c_str(),
              model.value().name.c_str(),
              num_pages,
              result.value().end_s,
              wall.count(),
              sim::to_text(report, slo).c_str());
  const ordered_json document = {{"version", kVersion},
                                 {"commit", kCommit},
                                 {"trace", trace.value().name},
                                 {"step_model", model.value().name},
                                 {"pages", num_pages},
                                 {"wall_s", wall.count()},
                                 {"report", ordered_json::parse(sim::to_json(report, slo))}};
  const Status status =
      write_outputs(config, trace.value(), result.value(), document.dump(2), num_pages);
  return status ? kExitOk : fail(kExitUsage, status.error());
}

}  // namespace hadal
