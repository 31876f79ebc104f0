// `hadal bench step`: one rank's steps with dummy or real weights, alone.
#pragma once

#include "config.h"

namespace hadal {

/// Where the measured rank runs; the others need no device.
DeviceType bench_device(const Config& config);

/// Measures what the flags name and prints one JSON document, and tables for people on standard
/// error.
int run_bench_step(const Config& config, const Environment& environment);

}  // namespace hadal
