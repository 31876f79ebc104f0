// Rank threads and the engine's end of them. A plan goes to every rank's queue; rank 0's result
// comes back through one more. The first failure anywhere aborts the communicators, so no rank
// waits for a dead one.
//
// A rank has two threads: one gives plans to the device as soon as they come, the other waits for
// their results. So the next step is on the device's stream before the last one has ended.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include <hadal/base/clock.h>
#include <hadal/base/log.h>
#include <hadal/comm/nccl_communicator.h>
#include <hadal/runtime/model_runner.h>

#include "model_setup.h"
#include "rank_worker.h"

namespace hadal {
namespace {

/// Bounded by RunnerLimits::max_steps_in_flight, which the caller keeps.
template <class T>
class Queue {
 public:
  void push(T value) {
    {
      const std::lock_guard lock(mutex_);
      values_.push_back(std::move(value));
    }
    changed_.notify_one();
  }

  void close() {
    {
      const std::lock_guard lock(mutex_);
      is_closed_ = true;
    }
    changed_.notify_all();
  }

  /// nullopt once closed and empty.
  std::optional<T> pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_closed_ || !values_.empty(); });
    if (values_.empty()) {
      return std::nullopt;
    }
    T value = std::move(values_.front());
    values_.pop_front();
    return value;
  }

  bool is_empty() const {
    const std::lock_guard lock(mutex_);
    return values_.empty();
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> values_;
  bool is_closed_ = false;
};

/// On a GPU machine the host's memory is larger than the device's, on which this is based.
constexpr int64_t kReadaheadBytesMin = int64_t{1} << 30;

using SharedPlan = std::shared_ptr<const BatchPlan>;

struct Rank {
  explicit Rank(std::unique_ptr<RankWorker> rank_worker) : worker(std::move(rank_worker)) {}

  std::unique_ptr<RankWorker> worker;
  Queue<SharedPlan> plans;
  Queue<bool> room;         ///< an entry for each step that may be submitted now
  Queue<Status> submitted;  ///< what came of it, in order
  std::jthread submitter;
  std::jthread collector;
};

class ModelRunner final : public Runner {
 public:
  ModelRunner(std::vector<std::unique_ptr<Rank>> ranks,
              const RunnerLimits& limits,
              KvPool host_pool)
      : host_pool_(std::move(host_pool)),
        ranks_(std::move(ranks)),
        limits_(limits),
        is_given_(ranks_.front()->worker->backend().device().type != DeviceType::cpu) {
    for (size_t r = 0; r < ranks_.size(); ++r) {
      for (size_t i = 0; i < kStepsInFlightMost; ++i) {
        ranks_[r]->room.push(true);
      }
      ranks_[r]->submitter = std::jthread([this, r] { submit_plans(r); });
      ranks_[r]->collector = std::jthread([this, r] { collect_results(r); });
    }
  }

  ModelRunner(const ModelRunner&) = delete;
  ModelRunner& operator=(const ModelRunner&) = delete;

  ~ModelRunner() override {
    for (const auto& rank : ranks_) {
      rank->plans.close();
    }
    for (const auto& rank : ranks_) {
      rank->submitter.join();
      rank->collector.join();
    }
    log_counts();
  }

  const RunnerLimits& limits() const override { return limits_; }

  Status submit(const BatchPlan& plan) override {
    HADAL_CHECK(num_in_flight_ < limits_.max_steps_in_flight, "too many steps in flight");
    ++num_in_flight_;
    const auto shared = std::make_shared<const BatchPlan>(plan);
    for (const auto& rank : ranks_) {
      rank->plans.push(shared);
    }
    return ok_status();
  }

  Result<StepResult> wait() override {
    HADAL_CHECK(num_in_flight_ > 0, "no step to wait for");
    --num_in_flight_;
    auto result = results_.pop();
    HADAL_CHECK(result.has_value(), "rank 0 ended before its runner");
    return std::move(*result);
  }

  double launch_seconds() const override { return launch_seconds_.load(); }

  StepCounts step_counts() const override { return ranks_.front()->worker->counts(); }

  bool has_result() const override { return !results_.is_empty(); }

 private:
  void submit_plans(size_t index) {
    Rank& rank = *ranks_[index];
    while (const auto plan = rank.plans.pop()) {
      // Another rank may be slower than rank 0, whose results the engine counts.
      rank.room.pop();
      const auto failure = group_failure();
      const auto start = std::chrono::steady_clock::now();
      rank.submitted.push(failure ? Status(*failure) : rank.worker->submit(**plan));
      if (index == 0 && is_given_) {
        const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
        launch_seconds_ = std::max(0.9 * launch_seconds_, spent.count());
      }
    }
    rank.submitted.close();
  }

  /// Every plan gets an answer, also after a failure: the same error again.
  void collect_results(size_t index) {
    Rank& rank = *ranks_[index];
    std::optional<Error> failure;
    while (const auto submitted = rank.submitted.pop()) {
      Result<StepResult> result = failure      ? Result<StepResult>(*failure)
                                  : *submitted ? rank.worker->collect()
                                               : Result<StepResult>(submitted->error());
      if (!result && !failure) {
        failure = first_failure(index, result.error());
        result = *failure;
      }
      rank.room.push(true);
      if (index == 0) {
        results_.push(std::move(result));
      }
    }
  }

  std::optional<Error> group_failure() {
    const std::lock_guard lock(failure_mutex_);
    return failure_;
  }

  void log_counts() const {
    const StepCounts counts = step_counts();
    if (counts.replayed > 0) {
      log_info("Steps: " + std::to_string(counts.replayed) + " from CUDA graphs, " +
               std::to_string(counts.plain_decodes) + " decodes and " +
               std::to_string(counts.plain_others) + " with prompts op by op");
    }
  }

  /// Remembers the group's first failure and wakes all ranks.
  Error first_failure(size_t index, const Error& error) {
    const std::lock_guard lock(failure_mutex_);
    if (!failure_) {
      failure_ = Error{
          error.code,
          "rank " + std::to_string(ranks_[index]->worker->comm().rank()) + ": " + error.message};
      log_error("runner: " + failure_->message);
      for (const auto& rank : ranks_) {
        rank->worker->comm().abort();
      }
    }
    return *failure_;
  }

  KvPool host_pool_;  ///< outlives the ranks
  std::vector<std::unique_ptr<Rank>> ranks_;
  RunnerLimits limits_;
  const bool is_given_;  ///< steps run on a device; the CPU backend runs them while they are given
  std::atomic<double> launch_seconds_ = 0.0;
  Queue<Result<StepResult>> results_;
  std::mutex failure_mutex_;
  std::optional<Error> failure_;
  int32_t num_in_flight_ = 0;
};

/// Runs `work` for `count` ranks, each on a thread of its own, and returns the lowest rank's error.
template <class Work>
Status on_threads(size_t count, const Work& work) {
  std::vector<Status> statuses(count, ok_status());
  {
    std::vector<std::jthread> threads;
    for (size_t r = 1; r < count; ++r) {
      threads.emplace_back([&, r] { statuses[r] = work(r); });
    }
    statuses[0] = work(0);
  }
  for (const Status& status : statuses) {
    HADAL_RETURN_IF_ERROR(status);
  }
  return ok_status();
}

template <class Work>
Status on_all_ranks(const std::vector<std::unique_ptr<Rank>>& ranks, const Work& work) {
  return on_threads(ranks.size(), [&](size_t r) { return work(*ranks[r]->worker, r); });
}

using Communicators = std::vector<std::unique_ptr<Communicator>>;

/// NCCL waits for all ranks of a communicator, so they are made side by side.
Result<Communicators> make_nccl_communicators(const ModelRunnerConfig& config) {
  const auto id = make_nccl_id();
  if (!id) {
    return id.error();
  }
  Communicators comms(static_cast<size_t>(config.tp));
  HADAL_RETURN_IF_ERROR(on_threads(comms.size(), [&](size_t r) -> Status {
    const auto rank = static_cast<int32_t>(r);
    auto comm = make_nccl_communicator({.id = id.value(),
                                        .rank = rank,
                                        .world_size = config.tp,
                                        .device_index = config.base_gpu_id + rank,
                                        .enable_nvls = config.enable_nccl_nvls});
    if (!comm) {
      return comm.error();
    }
    comms[r] = std::move(comm).value();
    return ok_status();
  }));
  return comms;
}

Result<Communicators> make_communicators(const ModelRunnerConfig& config) {
  if (config.tp > 1) {
    return config.device == DeviceType::cpu ? Result(make_thread_communicators(config.tp))
                                            : make_nccl_communicators(config);
  }
  Communicators comms;
  comms.push_back(make_self_communicator());
  return comms;
}

/// Backends come first: one that cannot be made leaves no rank waiting for another.
Result<std::vector<std::unique_ptr<Rank>>> make_ranks(const ModelRunnerConfig& config) {
  std::vector<std::unique_ptr<Backend>> backends;
  for (int32_t rank = 0; rank < config.tp; ++rank) {
    auto backend = make_rank_backend(config, rank, config.tp);
    if (!backend) {
      return backend.error();
    }
    backends.push_back(std::move(backend).value());
  }
  auto comms = make_communicators(config);
  if (!comms) {
    return comms.error();
  }
  std::vector<std::unique_ptr<Rank>> ranks;
  for (size_t r = 0; r < backends.size(); ++r) {
    ranks.push_back(std::make_unique<Rank>(
        std::make_unique<RankWorker>(std::move(backends[r]), std::move(comms.value()[r]))));
  }
  return ranks;
}

/// Free memory of the rank that has least, before anything is loaded: the host's is divided, a GPU
/// belongs to its rank.
int64_t free_bytes_of_rank(const ModelRunnerConfig& config,
                           const std::vector<std::unique_ptr<Rank>>& ranks,
                           int32_t ranks_on_host) {
  int64_t least = ranks.front()->worker->backend().memory_info().free_bytes;
  if (config.device == DeviceType::cpu) {
    return least / ranks_on_host;
  }
  for (const auto& rank : ranks) {
    least = std::min(least, rank->worker->backend().memory_info().free_bytes);
  }
  return least;
}

const ParallelLayout& layout_of(const ModelSetup& setup, RankWorker& worker) {
  return setup.layouts[static_cast<size_t>(worker.comm().rank())];
}

Status load_ranks(const ModelRunnerConfig& config,
                  const ModelSetup& setup,
                  const std::vector<std::unique_ptr<Rank>>& ranks) {
  int64_t total = 0;
  for (const auto& rank : ranks) {
    for (const WeightBytes& group :
         count_weight_bytes(setup.model, layout_of(setup, *rank->worker), false)) {
      total += group.bytes;
    }
  }
  LoadMeter meter(total, config.progress, system_clock());
  const TimePoint start = system_clock().now();
  std::vector<ParallelLayout> layouts;
  for (const auto& rank : ranks) {
    layouts.push_back(layout_of(setup, *rank->worker));
  }
  LoadPlan plan = plan_load(setup, layouts);
  LoadReport report{.file_bytes = total_bytes(plan.reads)};
  ReadaheadConfig readahead_config;
  readahead_config.lead_bytes =
      std::max(kReadaheadBytesMin, ranks.front()->worker->backend().memory_info().free_bytes / 8);
  readahead_config.fraction_consumed = [&] { return meter.fraction(); };
  Readahead readahead(std::move(plan.files), std::move(plan.reads), readahead_config);
  HADAL_RETURN_IF_ERROR(on_all_ranks(ranks, [&](RankWorker& worker, size_t /*rank*/) {
    return worker.load({.config = setup.model,
                        .layout = layout_of(setup, worker),
                        .weights = *setup.weights,
                        .backend = worker.backend(),
                        .max_positions = setup.context_length,
                        .with_mtp = false,
                        .meter = &meter});
  }));
  HADAL_RETURN_IF_ERROR(readahead.finish());
  report.bytes_read = readahead.bytes_read();
  report.seconds = std::chrono::duration<double>(system_clock().now() - start).count();
  if (config.on_loaded) {
    config.on_loaded(report);
  }
  return ok_status();
}

/// The host tier, empty when none is wanted; sets the limits' number of its pages.
Result<KvPool> make_host_pool(const ModelRunnerConfig& config,
                              Backend& backend,
                              const ModelSetup& setup,
                              RankSizes& sizes) {
  RunnerLimits& limits = sizes.limits;
  const int64_t wanted =
      config.host_cache_bytes > 0
          ? config.host_cache_bytes / limits.page_bytes
          : static_cast<int64_t>(config.host_cache_ratio * static_cast<double>(limits.num_pages));
  if (wanted == 0) {
    if (config.host_cache_bytes > 0) {
      return Error{ErrorCode::invalid_argument,
                   "--hicache-size: " + std::to_string(config.host_cache_bytes) +
                       " bytes hold no page of " + std::to_string(limits.page_bytes)};
    }
    return KvPool{};
  }
  limits.num_host_pages = static_cast<int32_t>(std::min<int64_t>(wanted, INT32_MAX / kPageTokens));
  auto pool = KvPool::create(backend,
                             setup.model.kv_record(sizes.kv_dtype),
                             limits.num_host_pages,
                             setup.model.num_hidden_layers,
                             MemoryKind::pinned_host);
  if (!pool) {
    return Error{pool.error().code, "--enable-hierarchical-cache: " + pool.error().message};
  }
  return pool;
}

/// A rank that fails leaves the others waiting in a collective, unless their groups are aborted.
Status capture_graphs(const ModelRunnerConfig& config,
                      const std::vector<std::unique_ptr<Rank>>& ranks) {
  CaptureReport first;
  HADAL_RETURN_IF_ERROR(on_all_ranks(ranks, [&](RankWorker& worker, size_t rank) -> Status {
    auto report = worker.capture_graphs(rank == 0 ? config.on_capture : nullptr);
    if (!report) {
      for (const auto& other : ranks) {
        other->worker->comm().abort();
      }
      return report.error();
    }
    if (rank == 0) {
      first = std::move(report).value();
    }
    return ok_status();
  }));
  if (config.on_captured) {
    config.on_captured(first);
  }
  return ok_status();
}

using AgreeOnPages = std::function<Result<int32_t>(int32_t)>;

/// Loads and prepares this process's ranks.
Result<std::unique_ptr<Runner>> start_ranks(const ModelRunnerConfig& config,
                                            ModelSetup setup,
                                            std::vector<std::unique_ptr<Rank>> workers,
                                            int32_t ranks_on_host,
                                            const AgreeOnPages& agree_on_pages) {
  MemoryGiven given{.backend = workers.front()->worker->backend(),
                    .free_bytes = free_bytes_of_rank(config, workers, ranks_on_host)};
  // What does not fit is told now, not after minutes of loading.
  if (const auto fits = plan_memory(config, setup, given); !fits) {
    return fits.error();
  }
  HADAL_RETURN_IF_ERROR(load_ranks(config, setup, workers));
  given.weight_bytes = workers.front()->worker->model().weight_bytes();
  const auto memory = plan_memory(config, setup, given);
  if (!memory) {
    return memory.error();
  }
  const auto num_pages = agree_on_pages(memory.value().num_pages);
  if (!num_pages) {
    return num_pages.error();
  }
  setup.weights.reset();
  const int64_t max_total_tokens = int64_t{num_pages.value()} * kPageTokens;
  RankSizes sizes;
  sizes.kv_dtype = setup.kv_dtype;
  sizes.graphs = config.graphs;
  sizes.limits = {
      .num_pages = num_pages.value(),
      .max_step_tokens = config.max_step_tokens,
      .max_slots = config.max_slots,
      .max_context_tokens = static_cast<int32_t>(std::min(setup.context_length, max_total_tokens)),
      .vocab_size = static_cast<int32_t>(setup.model.vocab_size),
      .max_steps_in_flight = config.max_steps_in_flight,
      .max_step_logits = config.max_step_tokens,
      .page_bytes = memory.value().kv_bytes_per_token * kPageTokens,
      .absorbed_chunk_tokens =
          config.is_deterministic ? 0 : workers.front()->worker->backend().absorbed_chunk_tokens()};
  auto host_pool = make_host_pool(config, workers.front()->worker->backend(), setup, sizes);
  if (!host_pool) {
    return host_pool.error();
  }
  sizes.host_pages = host_pool.value().view();
  HADAL_RETURN_IF_ERROR(on_all_ranks(
      workers, [&](RankWorker& worker, size_t /*rank*/) { return worker.prepare(sizes); }));
  if (config.on_prepared) {
    config.on_prepared();
  }
  HADAL_RETURN_IF_ERROR(capture_graphs(config, workers));
  return std::unique_ptr<Runner>(std::make_unique<ModelRunner>(
      std::move(workers), sizes.limits, std::move(host_pool).value()));
}

}  // namespace

Result<std::unique_ptr<Runner>> make_model_runner(const ModelRunnerConfig& config) {
  auto setup = make_setup(config);
  if (!setup) {
    return setup.error();
  }
  auto ranks = make_ranks(config);
  if (!ranks) {
    return ranks.error();
  }
  return start_ranks(
      config, std::move(setup).value(), std::move(ranks).value(), config.tp, [](int32_t num_pages) {
        return num_pages;
      });
}

Result<std::unique_ptr<Runner>> make_lone_rank_runner(const ModelRunnerConfig& config,
                                                      int32_t rank) {
  HADAL_CHECK(rank >= 0 && rank < config.tp, "no such rank");
  auto setup = make_setup(config);
  if (!setup) {
    return setup.error();
  }
  auto backend = make_rank_backend(config, 0, 1);
  if (!backend) {
    return backend.error();
  }
  auto comm = config.tp > 1 ? make_loopback_communicator(*backend.value(), rank, config.tp)
                            : make_self_communicator();
  std::vector<std::unique_ptr<Rank>> ranks;
  ranks.push_back(std::make_unique<Rank>(
      std::make_unique<RankWorker>(std::move(backend).value(), std::move(comm))));
  return start_ranks(config, std::move(setup).value(), std::move(ranks), 1, [](int32_t num_pages) {
    return num_pages;
  });
}

Result<std::unique_ptr<Runner>> make_rank_runner(const ModelRunnerConfig& config,
                                                 RankProcess process) {
  HADAL_CHECK(process.comm->world_size() == config.tp, "a communicator of another world");
  auto setup = make_setup(config);
  if (!setup) {
    return setup.error();
  }
  if (config.host_cache_bytes > 0 || config.host_cache_ratio > 0.0) {
    return Error{
        ErrorCode::unsupported,
        "--enable-hierarchical-cache: ranks as processes would each keep a copy of the host "
        "tier; expected ranks as threads (no --rank-processes, one node)"};
  }
  auto backend = make_rank_backend(
      config, process.comm->rank() % process.ranks_on_host, process.ranks_on_host);
  if (!backend) {
    return backend.error();
  }
  std::vector<std::unique_ptr<Rank>> ranks;
  ranks.push_back(std::make_unique<Rank>(
      std::make_unique<RankWorker>(std::move(backend).value(), std::move(process.comm))));
  return start_ranks(config,
                     std::move(setup).value(),
                     std::move(ranks),
                     process.ranks_on_host,
                     process.agree_on_pages);
}

}  // namespace hadal
