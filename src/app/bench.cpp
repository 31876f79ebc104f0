// `hadal bench`: the engine without HTTP, greedy, no prefix reuse, as tokens per second and as a
// share of what the machine could do.
#include <algorithm>
#include <cstdio>

#include <nlohmann/json.hpp>

#include <hadal/metrics/metrics.h>

#include "assembly.h"
#include "bench_cost.h"
#include "bench_loop.h"
#include "bench_report.h"
#include "bench_step.h"
#include "bench_streams.h"
#include "commands.h"
#include "exit_code.h"
#include "machine_roof.h"

namespace hadal {

namespace {

using nlohmann::json;
using Seconds = std::chrono::duration<double>;

/// The median of repeated runs for about `seconds`, at least three.
template <class Value>
Result<double> median_of(double seconds, Value value) {
  std::vector<double> results;
  const TimePoint start = system_clock().now();
  while (results.size() < 3 || Seconds(system_clock().now() - start).count() < seconds) {
    auto result = value();
    if (!result) {
      return result.error();
    }
    results.push_back(result.value());
  }
  std::sort(results.begin(), results.end());
  return results[results.size() / 2];
}

struct Context {
  const Config& config;
  const DeepseekConfig& model;
  MachineRoof roof;
  DType kv_type = DType::bf16;
};

Result<json> bench_decode(const Context& context,
                          StreamBench& bench,
                          const StreamScenario& scenario) {
  auto rate = median_of(context.config.bench.seconds, [&]() -> Result<double> {
    auto measured = bench.run(scenario);
    if (!measured) {
      return measured.error();
    }
    return measured.value().decode_tokens_per_s;
  });
  if (!rate) {
    return rate.error();
  }
  const double mean_context = scenario.prompt_tokens + scenario.new_tokens / 2.0;
  const double bytes =
      decode_step_bytes(context.model, scenario.num_streams, mean_context, context.kv_type);
  const double steps_per_s = rate.value() / scenario.num_streams;
  return json{
      {"name", scenario.name},
      {"streams", scenario.num_streams},
      {"prompt_tokens", scenario.prompt_tokens},
      {"new_tokens", scenario.new_tokens},
      {"tokens_per_s", rate.value()},
      {"step_bytes", bytes},
      {"memory_bandwidth_fraction", steps_per_s * bytes / (context.roof.read_gb_per_s * 1e9)}};
}

Result<json> bench_prefill(const Context& context,
                           StreamBench& bench,
                           const StreamScenario& scenario) {
  auto time = median_of(context.config.bench.seconds, [&]() -> Result<double> {
    auto measured = bench.run(scenario);
    if (!measured) {
      return measured.error();
    }
    return measured.value().prefill_s;
  });
  if (!time) {
    return time.error();
  }
  const double flops = prefill_flops(context.model, scenario.prompt_tokens) * scenario.num_streams;
  const double tokens = static_cast<double>(scenario.prompt_tokens) * scenario.num_streams;
  return json{{"name", scenario.name},
              {"streams", scenario.num_streams},
              {"prompt_tokens", scenario.prompt_tokens},
              {"tokens_per_s", tokens / time.value()},
              {"flops", flops},
              {"flop_peak_fraction", flops / time.value() / (context.roof.f32_gflop_per_s * 1e9)}};
}

Result<json> run_scenarios(const Context& context, Engine& engine) {
  const StreamScenario decodes[] = {{"decode_1_context_512", 1, 128, 384},
                                    {"decode_1_context_2048", 1, 1792, 256},
                                    {"decode_16_context_512", 16, 128, 384}};
  const StreamScenario prefills[] = {{"prefill_1024", 1, 1024, 1}, {"prefill_4x1024", 4, 1024, 1}};
  StreamBench bench(engine, static_cast<int32_t>(context.model.vocab_size));
  json results = json::array();
  const auto fits = [&](const StreamScenario& scenario) {
    const RunnerLimits& limits = engine.limits();
    return scenario.prompt_tokens + scenario.new_tokens <= limits.max_context_tokens &&
           scenario.num_streams <= limits.max_slots;
  };
  for (const StreamScenario& scenario : decodes) {
    auto result = fits(scenario) ? bench_decode(context, bench, scenario) : Result<json>(json{});
    if (!result) {
      return result.error();
    }
    if (fits(scenario)) {
      std::fprintf(stderr, "%s\n", result.value().dump().c_str());
      results.push_back(std::move(result).value());
    }
  }
  for (const StreamScenario& scenario : prefills) {
    auto result = fits(scenario) ? bench_prefill(context, bench, scenario) : Result<json>(json{});
    if (!result) {
      return result.error();
    }
    if (fits(scenario)) {
      std::fprintf(stderr, "%s\n", result.value().dump().c_str());
      results.push_back(std::move(result).value());
    }
  }
  return results;
}

int fail(int code, const Error& error) {
  std::fprintf(stderr, "hadal bench: %s\n", error.message.c_str());
  return code;
}

}  // namespace

int run_bench(const Config& config,
              const Environment& environment,
              const std::vector<std::string>& words) {
  if (words.size() == 1 && words.front() == "step") {
    return run_bench_step(config, environment);
  }
  if (words.size() == 1 && words.front() == "loop") {
    return run_bench_loop(config, environment);
  }
  if (config.runner.device_choice == DeviceChoice::cuda) {
    return fail(kExitUsage,
                Error{ErrorCode::unsupported,
                      "--device cuda: expected `hadal bench step` or `loop`; the other benches "
                      "measure CPUs"});
  }
  if (words.size() == 1 && words.front() == "load") {
    return run_bench_load(config, environment);
  }
  if (!words.empty() && (words.size() > 1 || words.front() != "engine")) {
    return fail(
        kExitUsage,
        Error{ErrorCode::invalid_argument,
              "expected engine, load, loop, plan, sched or step, got '" + words.back() + "'"});
  }
  if (config.layout.num_nodes > 1) {
    return fail(kExitUsage, multi_node_error(config.layout));
  }
  if (config.model.query.name.empty()) {
    return fail(kExitUsage, Error{ErrorCode::invalid_argument, "--model-path is required"});
  }
  if (config.runner.null_step_us) {
    return fail(kExitUsage, Error{ErrorCode::unsupported, "--runner null: bench measures a model"});
  }
  auto model_dir = find_model_dir(config.model.query, environment);
  if (!model_dir) {
    return fail(model_exit_code(model_dir.error()), model_dir.error());
  }
  auto model = load_deepseek_config(model_dir.value());
  if (!model) {
    return fail(model_exit_code(model.error()), model.error());
  }
  const int32_t threads =
      config.runner.cpu_threads > 0 ? config.runner.cpu_threads : hardware_threads();
  Context context{config, model.value(), measure_roof(threads)};
  context.kv_type = kv_dtype_of(runner_config(config, model_dir.value()));
  auto runner = make_runner(config, model_dir.value(), 0);
  if (!runner) {
    return fail(model_exit_code(runner.error()), runner.error());
  }
  MetricsRegistry metrics(config.model.served_name);
  EngineConfig engine_config = config.engine;
  engine_config.enable_radix_cache = false;
  Engine engine(engine_config, std::move(runner).value(), metrics.metrics());
  engine.start();
  auto results = run_scenarios(context, engine);
  engine.drain_and_stop(system_clock().now());
  if (!results) {
    return fail(kExitInternal, results.error());
  }
  json report = bench_header(config, "hadal bench");
  report["threads"] = threads;
  report["memory_gb_per_s"] = context.roof.read_gb_per_s;
  report["f32_gflop_per_s"] = context.roof.f32_gflop_per_s;
  report["results"] = results.value();
  if (Status written = print_report(config, report); !written) {
    return fail(kExitUsage, written.error());
  }
  return kExitOk;
}

}  // namespace hadal
