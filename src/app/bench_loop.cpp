// How much of the time the device waits for the host: scheduling, planning and launching are the
// server's own, requests come from this process and the other ranks do not exist.
#include "bench_loop.h"

#include <algorithm>
#include <cstdio>
#include <mutex>

#include <nlohmann/json.hpp>

#include <hadal/metrics/metrics.h>
#include <hadal/runtime/wrapped_runner.h>

#include "assembly.h"
#include "bench_report.h"
#include "bench_step.h"
#include "bench_streams.h"
#include "exit_code.h"
#include "machine_roof.h"

namespace hadal {

namespace {

using nlohmann::json;

constexpr int32_t kNewTokens = 256;

int fail(int code, const Error& error) {
  std::fprintf(stderr, "hadal bench loop: %s\n", error.message.c_str());
  return code;
}

struct StepTime {
  TimePoint retired;
  int32_t rows = 0;
  double busy_s = 0.0;
  double idle_s = 0.0;
};

/// The steps of a runner as they were retired.
class StepTimes {
 public:
  void add(StepTime step) {
    const std::lock_guard lock(mutex_);
    steps_.push_back(step);
  }

  /// Those of `rows` rows that ended in (begin, end].
  std::vector<StepTime> between(TimePoint begin, TimePoint end, int32_t rows) const {
    const std::lock_guard lock(mutex_);
    std::vector<StepTime> found;
    std::copy_if(steps_.begin(), steps_.end(), std::back_inserter(found), [&](const auto& step) {
      return step.retired > begin && step.retired <= end && step.rows == rows;
    });
    return found;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<StepTime> steps_;
};

class TimedRunner final : public WrappedRunner {
 public:
  TimedRunner(std::unique_ptr<Runner> runner, StepTimes& times)
      : WrappedRunner(std::move(runner)), times_(times) {}

  Result<StepResult> wait() override {
    auto result = WrappedRunner::wait();
    if (result) {
      times_.add({system_clock().now(),
                  static_cast<int32_t>(result.value().rows.size()),
                  result.value().device_busy_s,
                  result.value().device_idle_s});
    }
    return result;
  }

 private:
  StepTimes& times_;
};

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

Result<json> measure(StreamBench& streams, const StepTimes& times, int32_t batch, int32_t context) {
  auto run = streams.run({"decode", batch, context, kNewTokens});
  if (!run) {
    return run.error();
  }
  const auto steps = times.between(run.value().all_decode, run.value().first_end, batch);
  if (steps.empty()) {
    return Error{
        ErrorCode::unavailable,
        "no step of " + std::to_string(batch) + " rows; expected " + std::to_string(kNewTokens)};
  }
  std::vector<double> idle;
  std::vector<double> busy;
  double all_busy_s = 0.0;
  double all_s = 0.0;
  for (const StepTime& step : steps) {
    idle.push_back(step.idle_s * 1e6);
    busy.push_back(step.busy_s * 1e3);
    all_busy_s += step.busy_s;
    all_s += step.busy_s + step.idle_s;
  }
  return json{{"batch", batch},
              {"context", context},
              {"steps", steps.size()},
              {"tokens_per_s", run.value().decode_tokens_per_s},
              {"prefill_s", run.value().prefill_s},
              {"step_ms", quantile(busy, 0.5)},
              {"gap_us", quantile(idle, 0.5)},
              {"gap_p99_us", quantile(idle, 0.99)},
              {"device_busy_fraction", all_busy_s / all_s}};
}

Result<json> measure_all(const Config& config, Engine& engine, const StepTimes& times) {
  StreamBench streams(engine, engine.limits().vocab_size);
  json results = json::array();
  for (const int32_t batch : config.bench.batches) {
    auto result = measure(streams, times, batch, config.bench.context);
    if (!result) {
      return result.error();
    }
    std::fprintf(stderr, "%s\n", result.value().dump().c_str());
    results.push_back(std::move(result).value());
  }
  return results;
}

}  // namespace

int run_bench_loop(const Config& config, const Environment& environment) {
  if (config.model.query.name.empty()) {
    return fail(kExitUsage, Error{ErrorCode::invalid_argument, "--model-path is required"});
  }
  if (config.layout.num_nodes > 1 || config.bench.batches.empty()) {
    return fail(kExitUsage,
                Error{ErrorCode::invalid_argument,
                      "expected --batch and one node: one rank is measured alone (--as-rank)"});
  }
  auto model_dir = find_model_dir(config.model.query, environment);
  if (!model_dir) {
    return fail(model_exit_code(model_dir.error()), model_dir.error());
  }
  Config own = config;
  own.runner.device = bench_device(config);
  own.engine.enable_radix_cache = false;
  own.engine.max_running_requests =
      *std::max_element(config.bench.batches.begin(), config.bench.batches.end());
  auto runner = make_lone_rank_runner(runner_config(own, model_dir.value()), config.bench.as_rank);
  if (!runner) {
    return fail(model_exit_code(runner.error()), runner.error());
  }
  const int32_t most = runner.value()->limits().max_context_tokens;
  if (config.bench.context + kNewTokens > most) {
    return fail(kExitUsage,
                Error{ErrorCode::invalid_argument,
                      "--context: expected at most " + std::to_string(most - kNewTokens) +
                          ", since " + std::to_string(kNewTokens) + " tokens are generated, got " +
                          std::to_string(config.bench.context)});
  }
  StepTimes times;
  MetricsRegistry metrics(config.model.served_name);
  Engine engine(own.engine,
                std::make_unique<TimedRunner>(std::move(runner).value(), times),
                metrics.metrics());
  engine.start();
  auto results = measure_all(config, engine, times);
  engine.drain_and_stop(system_clock().now());
  if (!results) {
    return fail(kExitInternal, results.error());
  }
  json report = bench_header(config, "hadal bench loop");
  report["tp"] = config.layout.tp_size;
  report["rank"] = config.bench.as_rank;
  report["device"] = own.runner.device == DeviceType::cuda
                         ? find_cuda_device(own.runner.base_gpu_id).value().name
                         : machine_name();
  report["results"] = results.value();
  if (Status written = print_report(config, report); !written) {
    return fail(kExitUsage, written.error());
  }
  return kExitOk;
}

}  // namespace hadal
