// What `simulate` and `bench sched` share.
#pragma once

#include <filesystem>
#include <string>

#include <hadal/sim/report.h>

#include "config.h"

namespace hadal {

/// The scheduler that `serve` would run on a device with a KV pool of `kv_tokens`.
sim::SimConfig make_sim_config(const Config& config, int64_t kv_tokens);

/// KV tokens of R1 on 16 H200: 84.7 GB at 70,272 bytes.
inline constexpr int64_t kGroupKvTokens = 1'190'000;

Status write_file(const std::filesystem::path& path, const std::string& text);

}  // namespace hadal
