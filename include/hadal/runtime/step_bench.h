// One rank's steps with nobody around it: weights of true size, a KV pool, real plans through the
// rank's own code, collectives that go nowhere. What `hadal bench step` measures.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <hadal/backend/backend.h>
#include <hadal/base/result.h>
#include <hadal/runtime/graph_config.h>
#include <hadal/runtime/model_runner.h>

namespace hadal {

/// Which experts a bench's tokens choose.
enum class BenchRouting : uint8_t {
  automatic,  ///< uniform for dummy weights, whose routers send most tokens to the same experts
  model,      ///< the router's
  uniform,    ///< at random, in as many groups as the router may choose
};

struct StepBenchConfig {
  ModelRunnerConfig runner;  ///< model, weights, device, layout; limits come from the steps below
  int32_t rank = 0;          ///< of runner.tp
  std::vector<int32_t> batches;  ///< decode steps that will be asked for
  int32_t context = 4096;  ///< tokens in the cache of each of their rows, the new one included
  std::vector<int32_t> prefills;  ///< prompts that will be asked for, each a step
  int32_t prefix = 0;             ///< tokens in the cache before each of them
  double seconds = 3.0;           ///< time of each measurement
  BenchRouting routing = BenchRouting::automatic;
};

/// Ops of one name together, a step.
struct OpTotal {
  std::string name;
  int32_t calls = 0;
  double seconds = 0.0;
  double bytes = 0.0;  ///< see OpSample
  double flops = 0.0;
};

struct StepReport {
  int32_t num_steps = 0;  ///< measured
  double median_s = 0.0;  ///< of a step as the host sees it, from submission to result
  double p10_s = 0.0;
  double p90_s = 0.0;
  double overlapped_s = 0.0;    ///< mean of a step when the next is submitted before its result
  bool has_graph = false;       ///< the forward pass was replayed from a captured graph
  std::vector<OpTotal> ops;     ///< of one profiled step, slowest first
  double mean_experts = 0.0;    ///< different experts of an MoE layer that the step's tokens chose
  int64_t kv_pages_wanted = 0;  ///< by the rows
  int64_t kv_pages = 0;         ///< in the pool; fewer than wanted = rows share pages
};

class StepBench {
 public:
  /// Loads the weights and prepares the largest step. Errors as make_model_runner's.
  static Result<std::unique_ptr<StepBench>> create(const StepBenchConfig& config);
  virtual ~StepBench() = default;

  /// `batch` rows generate one token each.
  virtual Result<StepReport> decode(int32_t batch) = 0;
  /// One row of `tokens` prompt tokens after the prefix, in the form that a scheduler would choose.
  virtual Result<StepReport> prefill(int32_t tokens) = 0;

  /// model or uniform.
  virtual BenchRouting routing() const = 0;
  virtual int64_t weight_bytes() const = 0;
  virtual double load_s() const = 0;
  /// Of the graphs for the configured batches.
  virtual const CaptureReport& capture_report() const = 0;
  virtual Backend& backend() = 0;
};

}  // namespace hadal
