// What every report of `hadal bench` begins with, and where it goes.
#pragma once

#include <nlohmann/json.hpp>

#include "config.h"

namespace hadal {

/// Version, commit, compiler, machine, and `command` with the flags given.
nlohmann::json bench_header(const Config& config, const std::string& command);

/// To standard output, and to --bench-output where given.
Status print_report(const Config& config, const nlohmann::json& report);

/// `hadal bench load`.
int run_bench_load(const Config& config, const Environment& environment);

}  // namespace hadal
