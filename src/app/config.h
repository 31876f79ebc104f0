// The one configuration of a process: built from flags, config file and environment, validated as
// a whole, then const. Modules get their own small structs from it by value.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <hadal/api/server.h>
#include <hadal/backend/backend.h>
#include <hadal/base/log.h>
#include <hadal/base/result.h>
#include <hadal/comm/process_communicator.h>
#include <hadal/engine/engine.h>
#include <hadal/runtime/graph_config.h>
#include <hadal/runtime/model_runner.h>
#include <hadal/runtime/step_bench.h>

#include "arguments.h"
#include "environment.h"
#include "model_path.h"
#include "planted_fault.h"
#include "serve_load.h"

namespace hadal {

struct ModelOptions {
  ModelQuery query;                      ///< find_model_dir() makes it a directory
  std::filesystem::path tokenizer_path;  ///< empty = the model directory
  std::filesystem::path chat_template;   ///< empty = the checkpoint's own
  std::string served_name;
  LoadFormat load_format = LoadFormat::automatic;
  bool requires_fp8 = false;   ///< `--quantization fp8` was given
  int32_t context_length = 0;  ///< 0 = config.json's
};

/// The parallel layout and where the nodes meet.
struct LayoutOptions {
  int32_t tp_size = 1;
  int32_t ep_size = 1;  ///< divides tp_size
  AllReduce all_reduce = AllReduce::hier;
  int32_t num_nodes = 1;
  int32_t node_rank = 0;
  std::string rendezvous_host;  ///< empty on one node
  uint16_t rendezvous_port = 0;
  int32_t rendezvous_timeout_s = 600;

  int32_t ranks_per_node() const { return tp_size / num_nodes; }
};

/// `--device`.
enum class DeviceChoice : uint8_t { automatic, cpu, cuda };

struct RunnerOptions {
  std::optional<int64_t> null_step_us;     ///< set = no model
  std::optional<PlantedFault> null_fault;  ///< in one rank of the null runner
  DeviceChoice device_choice = DeviceChoice::automatic;
  DeviceType device = DeviceType::cpu;                   ///< set_device() decides
  int32_t base_gpu_id = 0;                               ///< the GPU of this node's first rank
  KernelFamily kernel_family = KernelFamily::automatic;  ///< HADAL_KERNEL_FAMILY
  bool fp8_activations = false;                          ///< CUDA: inputs of FP8 linears in E4M3
  bool enable_nccl_nvls = false;
  bool is_deterministic = false;
  GraphConfig graphs;
  CpuMode cpu_mode = CpuMode::fast;
  KvDtype kv_dtype = KvDtype::automatic;
  int32_t cpu_threads = 0;        ///< 0 = all cores
  bool plans_ahead = true;        ///< false: each step is planned after the last one has ended
  double memory_fraction = 0.85;  ///< of free memory, weights and KV pool
  int64_t kv_tokens_max = 0;      ///< 0 = from memory
  double host_cache_ratio = 0;    ///< host pages of the radix cache for each device page
  int64_t host_cache_gb = 0;      ///< the same in GB; 0 = by ratio
};

/// Ranks as processes.
struct RankOptions {
  bool uses_processes = false;         ///< `--rank-processes`
  std::filesystem::path secret_file;   ///< empty = the default, which may be absent
  std::filesystem::path record_plans;  ///< empty = none
  std::vector<int32_t> ranks_by_hand;
  int32_t rank = -1;  ///< `hadal rank` only
  std::string board;  ///< `hadal rank` only
};

struct GenerateOptions {
  int32_t max_new_tokens = 512;
  float temperature = 0;
  float top_p = 1;
  uint64_t seed = 0;
  bool is_raw = false;
};

struct BenchOptions {
  std::filesystem::path output;
  double seconds = 3;
  // `bench step` only:
  std::vector<int32_t> batches;   ///< rows of decode steps
  std::vector<int32_t> prefills;  ///< tokens of prompt steps
  int32_t prefix = 0;             ///< tokens in the cache before them
  int32_t context = 4096;         ///< tokens in the cache of a decoding row
  int32_t as_rank = 0;            ///< of tp_size
  BenchRouting routing = BenchRouting::automatic;
  ServeLoad load;  ///< `bench serve` only
};

struct SimulateOptions {
  double duration_s = 600;
  double requests_per_s = 0;  ///< 0 = the workload's own
  double length_scale = 1;
  double host_step_us = 100;
  double slo_ttft_ms = 2000;
  double slo_tpot_ms = 100;
  std::filesystem::path step_table;  ///< empty = R1 on 16 H200
  std::filesystem::path output;
  std::filesystem::path plot;
  std::filesystem::path trace_output;
  std::filesystem::path requests_output;
};

struct ShardOptions {
  std::filesystem::path output_dir;
};

struct Config {
  ModelOptions model;
  LayoutOptions layout;
  RunnerOptions runner;
  RankOptions rank;
  ApiConfig api;
  std::filesystem::path api_key_file;  ///< empty = none
  std::filesystem::path traffic_file;  ///< empty = defaults
  EngineConfig engine;
  GenerateOptions generate;
  BenchOptions bench;
  SimulateOptions simulate;
  ShardOptions shard;
  LogLevel log_level = LogLevel::info;
  std::optional<uint64_t> random_seed;
  double watchdog_timeout_s = 300;
  double shutdown_grace_s = 30;
  int32_t decode_log_interval = 40;
  FlagValues given;                   ///< flags and values as given, file included
  std::vector<std::string> warnings;  ///< one line for each flag that is ignored
  std::vector<std::string> notes;     ///< one line for each flag that has no effect here
};

/// Settles what the choice of the device leaves open: notes and warnings for flags that do nothing
/// on it. invalid_argument names a flag that the device cannot do.
Status set_device(Config& config, DeviceType device);

/// Builds and validates. `values` come from the command line, `file_values` from `--config`.
/// invalid_argument (exit 64) for wrong values, unsupported (exit 64) for refused flags: every
/// refused flag is in the message, one line each. Every command but doctor, simulate, `bench plan`
/// and `bench sched` needs a model.
Result<Config> build_config(const FlagValues& values,
                            const FlagValues& file_values,
                            const Environment& environment,
                            FlagCommands command = kServe);

}  // namespace hadal
