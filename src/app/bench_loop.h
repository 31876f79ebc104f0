// `hadal bench loop`: the engine's loop over one rank, without HTTP.
#pragma once

#include "config.h"

namespace hadal {

/// Decodes at every --batch from prompts of --context tokens and prints one JSON document: rates,
/// and how long the device waits between steps.
int run_bench_loop(const Config& config, const Environment& environment);

}  // namespace hadal
