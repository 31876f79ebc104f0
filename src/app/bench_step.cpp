// Times of whole steps come from passes of their own; the table of ops from one step with events
// around every op, so its sum is a little more than the step.
#include "bench_step.h"

#include <cstdio>

#include <nlohmann/json.hpp>

#include <hadal/runtime/step_bench.h>

#include "bench_report.h"
#include "exit_code.h"
#include "machine_roof.h"

namespace hadal {

namespace {

using nlohmann::json;

int fail(int code, const Error& error) {
  std::fprintf(stderr, "hadal bench step: %s\n", error.message.c_str());
  return code;
}

StepBenchConfig step_config(const Config& config, const std::filesystem::path& model_dir) {
  StepBenchConfig result;
  ModelRunnerConfig& runner = result.runner;
  runner.model_dir = model_dir;
  runner.load_format = config.model.load_format;
  runner.cpu_mode = config.runner.cpu_mode;
  runner.is_deterministic = config.runner.is_deterministic;
  runner.num_threads = config.runner.cpu_threads;
  runner.kv_dtype = config.runner.kv_dtype;
  runner.tp = config.layout.tp_size;
  runner.ep = config.layout.ep_size;
  runner.context_length = config.model.context_length;
  runner.device = bench_device(config);
  runner.base_gpu_id = config.runner.base_gpu_id;
  runner.kernel_family = config.runner.kernel_family;
  runner.e4m3_activations = runner.device == DeviceType::cuda && config.runner.fp8_activations;
  runner.graphs = config.runner.graphs;
  result.rank = config.bench.as_rank;
  result.batches = config.bench.batches;
  result.context = config.bench.context;
  result.prefills = config.bench.prefills;
  result.prefix = config.bench.prefix;
  result.seconds = config.bench.seconds;
  result.routing = config.bench.routing;
  return result;
}

/// Empty on the CPU.
std::string kernel_family_of(StepBench& bench, const Config& config) {
  const Device device = bench.backend().device();
  if (device.type != DeviceType::cuda) {
    return {};
  }
  const auto found = find_cuda_device(device.index, config.runner.kernel_family);
  return found ? std::string(to_string(found.value().kernel_family)) : std::string();
}

/// The ceilings of the device that computes.
Result<json> measure_ceilings(StepBench& bench, const Config& config) {
  if (bench.backend().device().type == DeviceType::cuda) {
    const auto found = bench.backend().measure_ceilings();
    if (!found) {
      return found.error();
    }
    return json{{"device", found.value().name},
                {"read_bytes_per_s", found.value().read_bytes_per_s},
                {"copy_bytes_per_s", found.value().copy_bytes_per_s},
                {"launch_us", found.value().launch_s * 1e6}};
  }
  const int32_t threads =
      config.runner.cpu_threads > 0 ? config.runner.cpu_threads : hardware_threads();
  const MachineRoof roof = measure_roof(threads);
  return json{{"device", machine_name()},
              {"threads", threads},
              {"read_bytes_per_s", roof.read_gb_per_s * 1e9},
              {"f32_flop_per_s", roof.f32_gflop_per_s * 1e9}};
}

struct Measured {
  std::string kind;
  int32_t rows = 0;
  int32_t new_tokens = 0;  ///< of a row
  int32_t context = 0;
  StepReport report;
};

json step_json(const Measured& step, double read_bytes_per_s) {
  const StepReport& report = step.report;
  json ops = json::array();
  double bytes = 0;
  double seconds = 0;
  for (const OpTotal& op : report.ops) {
    bytes += op.bytes;
    seconds += op.seconds;
    ops.push_back({{"op", op.name},
                   {"calls", op.calls},
                   {"us", op.seconds * 1e6},
                   {"bytes", op.bytes},
                   {"flops", op.flops},
                   {"bytes_per_s", op.bytes / op.seconds},
                   {"flop_per_s", op.flops / op.seconds},
                   {"read_ceiling_fraction", op.bytes / op.seconds / read_bytes_per_s}});
  }
  const double tokens = static_cast<double>(step.rows) * step.new_tokens;
  return {{"kind", step.kind},
          {"rows", step.rows},
          {"tokens", tokens},
          {"context", step.context},
          {"prefix", step.context - step.new_tokens},
          {"steps", report.num_steps},
          {"step_ms", report.median_s * 1e3},
          {"step_p10_ms", report.p10_s * 1e3},
          {"step_p90_ms", report.p90_s * 1e3},
          {"overlapped_step_ms", report.overlapped_s * 1e3},
          {"cuda_graph", report.has_graph},
          {"tokens_per_s", tokens / report.median_s},
          {"ops_ms", seconds * 1e3},
          {"step_bytes", bytes},
          {"read_ceiling_fraction", bytes / report.median_s / read_bytes_per_s},
          {"mean_experts", report.mean_experts},
          {"kv_pages", report.kv_pages},
          {"kv_pages_wanted", report.kv_pages_wanted},
          {"ops", ops}};
}

void print_table(const json& step) {
  std::fprintf(stderr,
               "%s of %d rows, %.0f tokens, context %d%s: %.3f ms (p10 %.3f, p90 %.3f; %.3f when "
               "overlapped), %.0f tokens/s, %.1f %% of the read ceiling\n",
               step["kind"].get<std::string>().c_str(),
               step["rows"].get<int>(),
               step["tokens"].get<double>(),
               step["context"].get<int>(),
               step["cuda_graph"].get<bool>() ? ", CUDA graph" : "",
               step["step_ms"].get<double>(),
               step["step_p10_ms"].get<double>(),
               step["step_p90_ms"].get<double>(),
               step["overlapped_step_ms"].get<double>(),
               step["tokens_per_s"].get<double>(),
               100 * step["read_ceiling_fraction"].get<double>());
  for (const json& op : step["ops"]) {
    std::fprintf(stderr,
                 "  %-28s %4d x %10.1f us %9.1f MB %9.1f GFLOP %6.1f %%\n",
                 op["op"].get<std::string>().c_str(),
                 op["calls"].get<int>(),
                 op["us"].get<double>() / op["calls"].get<int>(),
                 op["bytes"].get<double>() / op["calls"].get<int>() / 1e6,
                 op["flops"].get<double>() / op["calls"].get<int>() / 1e9,
                 100 * op["read_ceiling_fraction"].get<double>());
  }
}

Result<json> measure_steps(const Config& config, StepBench& bench, double read_bytes_per_s) {
  json steps = json::array();
  const auto add = [&](Measured step, Result<StepReport> report) -> Status {
    if (!report) {
      return report.error();
    }
    step.report = std::move(report).value();
    steps.push_back(step_json(step, read_bytes_per_s));
    print_table(steps.back());
    return ok_status();
  };
  for (const int32_t batch : config.bench.batches) {
    HADAL_RETURN_IF_ERROR(add({"decode", batch, 1, config.bench.context, {}}, bench.decode(batch)));
  }
  for (const int32_t tokens : config.bench.prefills) {
    HADAL_RETURN_IF_ERROR(
        add({"prefill", 1, tokens, config.bench.prefix + tokens, {}}, bench.prefill(tokens)));
  }
  return steps;
}

}  // namespace

DeviceType bench_device(const Config& config) {
  const RunnerOptions& runner = config.runner;
  const bool may_choose = runner.device_choice == DeviceChoice::automatic;
  const bool is_cuda =
      may_choose ? runner.cpu_mode != CpuMode::exact && find_cuda_device(runner.base_gpu_id)
                 : runner.device_choice == DeviceChoice::cuda;
  return is_cuda ? DeviceType::cuda : DeviceType::cpu;
}

int run_bench_step(const Config& config, const Environment& environment) {
  if (config.model.query.name.empty()) {
    return fail(kExitUsage, Error{ErrorCode::invalid_argument, "--model-path is required"});
  }
  if (config.layout.num_nodes > 1) {
    return fail(kExitUsage,
                Error{ErrorCode::invalid_argument,
                      "--nnodes: expected 1, since one rank is measured alone (--as-rank)"});
  }
  if (config.bench.batches.empty() && config.bench.prefills.empty()) {
    return fail(kExitUsage,
                Error{ErrorCode::invalid_argument, "expected --batch or --prefill, got neither"});
  }
  auto model_dir = find_model_dir(config.model.query, environment);
  if (!model_dir) {
    return fail(model_exit_code(model_dir.error()), model_dir.error());
  }
  auto bench = StepBench::create(step_config(config, model_dir.value()));
  if (!bench) {
    return fail(model_exit_code(bench.error()), bench.error());
  }
  StepBench& steps = *bench.value();
  auto ceilings = measure_ceilings(steps, config);
  if (!ceilings) {
    return fail(kExitInternal, ceilings.error());
  }
  json report = bench_header(config, "hadal bench step");
  report["tp"] = config.layout.tp_size;
  report["rank"] = config.bench.as_rank;
  report["collectives"] = config.layout.tp_size > 1 ? "loopback" : "none";
  report["routing"] = steps.routing() == BenchRouting::uniform ? "uniform" : "model";
  report["weight_bytes"] = steps.weight_bytes();
  report["load_s"] = steps.load_s();
  report["ceilings"] = ceilings.value();
  if (const auto family = kernel_family_of(steps, config); !family.empty()) {
    report["kernel_family"] = family;
  }
  const CaptureReport& captured = steps.capture_report();
  report["cuda_graphs"] = {{"batches", captured.batches},
                           {"lengths", captured.lengths},
                           {"capture_s", captured.seconds},
                           {"bytes", captured.bytes}};
  std::fprintf(stderr,
               "%s: %.3f GB of weights in %.1f s; reads %.0f GB/s\n",
               ceilings.value()["device"].get<std::string>().c_str(),
               static_cast<double>(steps.weight_bytes()) / 1e9,
               steps.load_s(),
               ceilings.value()["read_bytes_per_s"].get<double>() / 1e9);
  if (!captured.batches.empty()) {
    std::fprintf(stderr,
                 "%zu CUDA graphs captured in %.2f s, %.1f MB\n",
                 captured.batches.size() * captured.lengths.size(),
                 captured.seconds,
                 static_cast<double>(captured.bytes) / 1e6);
  }
  auto results = measure_steps(config, steps, ceilings.value()["read_bytes_per_s"].get<double>());
  if (!results) {
    return fail(model_exit_code(results.error()), results.error());
  }
  report["results"] = std::move(results).value();
  if (Status written = print_report(config, report); !written) {
    return fail(kExitUsage, written.error());
  }
  return kExitOk;
}

}  // namespace hadal
