// The commands, each from a validated configuration to an exit code.
#pragma once

#include <string>
#include <vector>

#include "config.h"

namespace hadal {

/// Answers one prompt on standard output, streamed.
int run_generate(const Config& config, const Environment& environment, const std::string& prompt);

/// Validates the model directory, prints what `serve` would do and starts nothing.
int run_check(const Config& config, const Environment& environment);

class RankSeat;

/// Serves until SIGTERM.
int run_serve(const Config& config, const Environment& environment);

/// The same in this process alone, or as rank 0 of a group.
int serve_model(const Config& config, const Environment& environment, RankSeat* seat);

/// Starts this node's ranks as processes and ends with the group.
int run_supervisor(const Config& config, const Environment& environment);

/// One rank of a node.
int run_rank(const Config& config, const Environment& environment);

/// Runs a recorded plan stream again.
int run_replay(const Config& config, const Environment& environment, const std::string& file);

/// Checks this node and, with the doctors of the other nodes, every link.
int run_doctor(const Config& config, const Environment& environment);

/// The checks of this node alone, for the start of serve: one warning line for each failure.
void warn_of_node_failures(const Config& config, const Environment& environment);

/// Measures what `words` name (nothing or engine: the engine; load: loading) and prints one JSON
/// document.
int run_bench(const Config& config,
              const Environment& environment,
              const std::vector<std::string>& words);

/// Writes a pre-sharded directory.
int run_shard(const Config& config, const Environment& environment);

/// Measures the fan-out of plans to rank processes.
int run_bench_plan(const Config& config);

/// Loads a server that is running and prints how it answered, as JSON.
int run_bench_serve(const Config& config);

/// Measures the scheduler on seeded workloads and a modelled device, and prints one JSON document.
int run_bench_sched(const Config& config);

/// Replays `trace`, a file or the name of a workload, and prints what it would have met.
int run_simulate(const Config& config, const std::string& trace);

}  // namespace hadal
