// `hadal bench sched`: what the scheduler and the radix cache are for, on seeded workloads and
// R1's 16 GPUs as the roofline has them: reuse against its bounds, overload, tenants, an hour.
#include <chrono>
#include <cstdio>
#include <tuple>

#include <nlohmann/json.hpp>

#include <hadal/sim/scenario.h>
#include <hadal/sim/workload.h>

#include "commands.h"
#include "exit_code.h"
#include "machine_roof.h"
#include "simulate.h"
#include "version.h"

namespace hadal {

namespace {

using nlohmann::ordered_json;

struct Run {
  sim::Report report;
  sim::SimResult result;
  double wall_s = 0.0;
};

struct Traffic {
  const char* kind = "";
  double requests_per_s = 0.0;
  double duration_s = 0.0;
  const char* file = "";
};

constexpr int64_t kUnlimitedTokens = 40'000'000;

class SchedBench {
 public:
  /// Who may wait for admission may also see the first token that much later.
  explicit SchedBench(const Config& config) : config_(config) {
    slo_.ttft_s += config.engine.max_queue_wait_s;
  }

  Result<ordered_json> run() {
    ordered_json out;
    out["reuse"] = ordered_json::array();
    // At light load every request is admitted at once; under load the policy chooses.
    // Those with a file's name are committed in bench/sched/traces.
    const Traffic traffic[] = {{"sharegpt", 2.0, 300.0, "chats"},
                               {"readers", 0.5, 600.0, "readers"},
                               {"agents", 0.4, 600.0, ""},
                               {"agents", 1.2, 600.0, ""},
                               {"fan-out", 4.0, 600.0, ""},
                               {"long-document", 12.0, 60.0, "documents"},
                               {"long-document", 1.5, 600.0, "documents-light"},
                               {"cyclic-scan", 1.5, 300.0, "cyclic-scan"}};
    for (const Traffic& each : traffic) {
      HADAL_RETURN_IF_ERROR(add_reuse(each, out["reuse"]));
    }
    for (const double max_wait_s : {0.0, config_.engine.max_queue_wait_s}) {
      HADAL_RETURN_IF_ERROR(add_overload(max_wait_s, out["overload"]));
    }
    HADAL_RETURN_IF_ERROR(add_tenants(out["two_tenants"]));
    HADAL_RETURN_IF_ERROR(add_long_prompts(out["long_prompts"]));
    HADAL_RETURN_IF_ERROR(add_prefill_heavy(out["prefill_heavy"]));
    HADAL_RETURN_IF_ERROR(add_hour(out["group_hour"]));
    return out;
  }

 private:
  static Result<sim::Trace> make(const char* kind, double rate, double duration_s) {
    sim::WorkloadConfig workload;
    workload.kind = kind;
    workload.requests_per_s = rate;
    workload.duration_s = duration_s;
    return sim::make_workload(workload);
  }

  Result<Run> simulate(const sim::Trace& trace, const sim::SimConfig& config) {
    const auto start = std::chrono::steady_clock::now();
    auto result = sim::simulate(config, model_, trace);
    if (!result) {
      return result.error();
    }
    Run run;
    run.wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    run.result = std::move(result).value();
    run.report = sim::make_report(trace, run.result, slo_, config.scheduler.num_pages);
    return run;
  }

  /// One workload: a pool that holds everything, and a quarter of that, under lpm and fcfs.
  Status add_reuse(const Traffic& traffic, ordered_json& out) {
    auto trace = make(traffic.kind, traffic.requests_per_s, traffic.duration_s);
    if (!trace) {
      return trace.error();
    }
    sim::SimConfig config = make_sim_config(config_, kUnlimitedTokens);
    config.queue = {1'000'000, int64_t{1} << 40, 0.0};
    auto whole = simulate(trace.value(), config);
    if (!whole) {
      return whole.error();
    }
    const int32_t working_set = whole.value().report.bounds.num_pages;
    ordered_json entry = {{"workload", trace.value().name},
                          {"requests_per_s", traffic.requests_per_s},
                          {"duration_s", traffic.duration_s},
                          {"trace", traffic.file},
                          {"working_set_pages", working_set}};
    for (const double share : {1.0, 0.25}) {
      // Running requests need room beside what is cached.
      config.scheduler.num_pages =
          static_cast<int32_t>(share * working_set) + (share == 1.0 ? working_set : 0);
      const std::tuple<const char*, SchedulePolicy, EvictionPolicy> policies[] = {
          {"lpm", SchedulePolicy::lpm, EvictionPolicy::lru},
          {"lpm_lfu", SchedulePolicy::lpm, EvictionPolicy::lfu},
          {"fcfs", SchedulePolicy::fcfs, EvictionPolicy::lru}};
      for (const auto& [policy_name, policy, eviction] : policies) {
        config.scheduler.policy = policy;
        config.scheduler.eviction = eviction;
        auto run = simulate(trace.value(), config);
        if (!run) {
          return run.error();
        }
        const sim::Report& report = run.value().report;
        const char* share_name = share == 1.0 ? "whole" : "quarter";
        entry[share_name][policy_name] = {
            {"pages", config.scheduler.num_pages},
            {"hit_rate", report.hit_rate},
            {"hit_rate_infinite_cache", report.bounds.rate(report.bounds.infinite)},
            {"hit_rate_belady", report.bounds.rate(report.bounds.belady)},
            {"hit_rate_whole_prompts", report.bounds.rate(report.bounds.whole_prompt)},
            // What is computed instead of served from the cache, against no cache and that one.
            {"computed_of_no_cache", 1.0 - report.hit_rate},
            {"computed_of_whole_prompts",
             (1.0 - report.hit_rate) / (1.0 - report.bounds.rate(report.bounds.whole_prompt))},
            {"ttft_p50_s", report.ttft.p50},
            {"ttft_p99_s", report.ttft.p99},
            {"makespan_s", report.makespan_s},
            {"retractions", report.num_retractions}};
        std::fprintf(
            stderr,
            "%-14s %4.1f/s %-7s %-7s hit %6.2f %%  infinite %6.2f %%  Belady %6.2f %%  whole "
            "prompts %6.2f %%  TTFT p50 %8.1f p99 %9.1f ms\n",
            traffic.kind,
            traffic.requests_per_s,
            share_name,
            policy_name,
            100.0 * report.hit_rate,
            100.0 * report.bounds.rate(report.bounds.infinite),
            100.0 * report.bounds.rate(report.bounds.belady),
            100.0 * report.bounds.rate(report.bounds.whole_prompt),
            1e3 * report.ttft.p50,
            1e3 * report.ttft.p99);
      }
    }
    out.push_back(std::move(entry));
    return ok_status();
  }

  /// Chats at multiples of what saturates the group.
  Status add_overload(double max_wait_s, ordered_json& out) {
    sim::SimConfig config = make_sim_config(config_, kGroupKvTokens);
    config.queue.max_wait_seconds = max_wait_s;
    ordered_json entry = {{"max_queued_requests", config.queue.max_requests},
                          {"max_queue_wait_ms", 1e3 * max_wait_s}};
    double peak = 0.0;
    for (const double factor : {0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 5.0, 10.0}) {
      auto trace = make("group-hour", factor * kSaturationPerS, 300.0);
      if (!trace) {
        return trace.error();
      }
      auto run = simulate(trace.value(), config);
      if (!run) {
        return run.error();
      }
      const sim::Report& report = run.value().report;
      peak = std::max(peak, report.goodput_per_s);
      entry["loads"].push_back({{"load", factor},
                                {"requests_per_s", factor * kSaturationPerS},
                                {"goodput_per_s", report.goodput_per_s},
                                {"of_peak_so_far", report.goodput_per_s / std::max(peak, 1e-9)},
                                {"rejected", report.num_rejected},
                                {"failed", report.num_failed},
                                {"ttft_p99_s", report.ttft.p99},
                                {"tpot_p99_s", report.tpot.p99},
                                {"retractions", report.num_retractions}});
      std::fprintf(stderr,
                   "overload, wait bound %.0f ms: %s\n",
                   1e3 * max_wait_s,
                   entry["loads"].back().dump().c_str());
    }
    entry["peak_goodput_per_s"] = peak;
    out.push_back(std::move(entry));
    return ok_status();
  }

  /// The quiet tenant alone, and next to one that sends a hundred times as much; at loads that are
  /// served, and at twice what can be.
  Status add_tenants(ordered_json& out) {
    for (const double rate : {5.0, 10.0, 15.0, 20.0, 50.0}) {
      auto result =
          sim::measure_two_tenants(make_sim_config(config_, kGroupKvTokens), model_, rate, 1'500.0);
      if (!result) {
        return result.error();
      }
      const auto to_json = [](const sim::TenantReport& tenant) -> ordered_json {
        return {{"finished", tenant.num_finished},
                {"rejected", tenant.num_rejected},
                {"ttft_p50_s", tenant.ttft.p50},
                {"ttft_p99_s", tenant.ttft.p99}};
      };
      out.push_back({{"requests_per_s", rate},
                     {"solo", to_json(result.value().solo)},
                     {"quiet", to_json(result.value().quiet)},
                     {"loud", to_json(result.value().loud)},
                     {"ttft_p99_of_solo", result.value().stretch()},
                     {"fairness", result.value().fairness}});
      std::fprintf(stderr, "two tenants %s\n", out.back().dump().c_str());
    }
    return ok_status();
  }

  /// The bound on decode steps, and none: what long prompts do to running streams.
  Status add_long_prompts(ordered_json& out) {
    for (const double stretch : {config_.engine.max_decode_stretch, 0.0}) {
      sim::SimConfig config = make_sim_config(config_, kGroupKvTokens);
      config.scheduler.max_decode_stretch = stretch;
      auto result = sim::measure_long_prompts(config, model_, {});
      if (!result) {
        return result.error();
      }
      out.push_back({{"max_decode_stretch", stretch},
                     {"quiet_itl_p99_s", result.value().quiet_p99_s},
                     {"itl_p99_s", result.value().disturbed_p99_s},
                     {"itl_max_s", result.value().disturbed_max_s},
                     {"itl_p99_of_quiet", result.value().stretch()},
                     {"last_first_token_s", result.value().window_s}});
      std::fprintf(stderr, "long prompts %s\n", out.back().dump().c_str());
    }
    return ok_status();
  }

  /// Loads whose prefill is most of the work, with the bound and without: what the bound costs.
  Status add_prefill_heavy(ordered_json& out) {
    const std::pair<const char*, double> workloads[] = {
        {"two-tenants", 50.0}, {"long-document", 20.0}, {"group-hour", 3.5}, {"bursts", 3.0}};
    for (const auto& [kind, rate] : workloads) {
      auto trace = make(kind, rate, 200.0);
      if (!trace) {
        return trace.error();
      }
      ordered_json entry = {{"workload", trace.value().name}, {"requests_per_s", rate}};
      for (const double stretch : {config_.engine.max_decode_stretch, 0.0}) {
        sim::SimConfig config = make_sim_config(config_, kGroupKvTokens);
        config.scheduler.max_decode_stretch = stretch;
        auto run = simulate(trace.value(), config);
        if (!run) {
          return run.error();
        }
        const sim::Report& report = run.value().report;
        entry[stretch > 0.0 ? "bounded" : "unbounded"] = {{"served_per_s", report.requests_per_s},
                                                          {"goodput_per_s", report.goodput_per_s},
                                                          {"ttft_p50_s", report.ttft.p50},
                                                          {"ttft_p99_s", report.ttft.p99},
                                                          {"itl_p99_s", report.gap.p99}};
      }
      std::fprintf(stderr, "prefill-heavy %s\n", entry.dump().c_str());
      out.push_back(std::move(entry));
    }
    return ok_status();
  }

  /// An hour of the group's traffic, and how long it took to simulate.
  Status add_hour(ordered_json& out) {
    auto trace = make("group-hour", 0.0, 3600.0);
    if (!trace) {
      return trace.error();
    }
    auto run = simulate(trace.value(), make_sim_config(config_, kGroupKvTokens));
    if (!run) {
      return run.error();
    }
    out = ordered_json::parse(sim::to_json(run.value().report, slo_));
    out["wall_s"] = run.value().wall_s;
    std::fprintf(stderr,
                 "an hour: %.1f running, %lld steps, simulated in %.1f s\n",
                 run.value().report.mean_running,
                 static_cast<long long>(run.value().report.num_steps),
                 run.value().wall_s);
    return ok_status();
  }

  static constexpr double kSaturationPerS = 4.8;

  const Config& config_;
  const sim::StepModel model_ = sim::r1_group_model();
  sim::Slo slo_;
};

}  // namespace

int run_bench_sched(const Config& config) {
  SchedBench bench(config);
  auto results = bench.run();
  if (!results) {
    std::fprintf(stderr, "hadal bench sched: %s\n", results.error().message.c_str());
    return kExitInternal;
  }
  const ordered_json report = {{"version", kVersion},
                               {"commit", kCommit},
                               {"compiler", kCompiler},
                               {"command", "hadal bench sched"},
                               {"machine", machine_name()},
                               {"step_model", sim::r1_group_model().name},
                               {"simulation", results.value()}};
  const std::string text = report.dump(2) + "\n";
  std::fputs(text.c_str(), stdout);
  if (config.bench.output.empty()) {
    return kExitOk;
  }
  const Status status = write_file(config.bench.output, text);
  if (!status) {
    std::fprintf(stderr, "hadal bench sched: %s\n", status.error().message.c_str());
    return kExitUsage;
  }
  return kExitOk;
}

}  // namespace hadal
