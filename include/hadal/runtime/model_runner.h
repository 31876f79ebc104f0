// The Runner that has a model: loads a checkpoint over `tp` ranks and executes batch plans.
//
// Each rank is a thread with its own backend, weights, KV pool and sampling state; the ranks obey
// the same plans in the same order and meet in collectives. `submit` hands a plan to the rank
// threads and returns; `wait` blocks for rank 0's result, so the engine can plan one step ahead.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include <hadal/backend/backend.h>
#include <hadal/base/result.h>
#include <hadal/comm/communicator.h>
#include <hadal/model/config.h>
#include <hadal/runtime/graph_config.h>
#include <hadal/runtime/memory_plan.h>
#include <hadal/runtime/runner.h>
#include <hadal/weights/readahead.h>
#include <hadal/weights/weight_store.h>

namespace hadal {

enum class LoadFormat : uint8_t {
  automatic,    ///< what the directory has: safetensors, pre-sharded or not; otherwise an error
  safetensors,  ///< the same, by name
  dummy,        ///< weights from config.json and `dummy_seed` alone (src/weights/DUMMY.md)
};

enum class KvDtype : uint8_t {
  automatic,  ///< f32 in exact CPU mode, else bf16
  f32,
  bf16,
  fp8_e4m3,  ///< latents; rope stays bf16 (ops/kv_record.h)
};

struct ModelRunnerConfig;

/// The format of the KV pages that this configuration means.
DType kv_dtype_of(const ModelRunnerConfig& config);

/// What loading took, once the weights are in.
struct LoadReport {
  int64_t file_bytes = 0;  ///< different bytes that the ranks of this node need; 0 = dummy weights
  int64_t bytes_read = 0;  ///< of files, by this process
  double seconds = 0;      ///< from opening the files to the last prepared weight
};

struct ModelRunnerConfig {
  std::filesystem::path model_dir;  ///< holds config.json and, unless dummy, the weights
  LoadFormat load_format = LoadFormat::automatic;
  uint64_t dummy_seed = 0;

  DeviceType device = DeviceType::cpu;
  KernelFamily kernel_family = KernelFamily::automatic;
  int32_t base_gpu_id = 0;  ///< CUDA: the device of this node's first rank; the next has the next
  bool enable_nccl_nvls = false;  ///< NVLink multicast for ranks of one process
  CpuMode cpu_mode = CpuMode::fast;
  /// Prompts keep one form of attention (RunnerLimits::absorbed_chunk_tokens is 0).
  bool is_deterministic = false;
  int32_t num_threads = 0;  ///< CPU threads of all ranks together; 0 = the hardware's
  /// Rounds inputs of FP8 linears to E4M3 with 1 x 128 scales, as FP8 units want them.
  bool e4m3_activations = false;

  KvDtype kv_dtype = KvDtype::automatic;
  int32_t tp = 1;  ///< ranks, all in this process
  int32_t ep = 1;  ///< groups with different experts; divides tp
  /// Lets a cut fall inside an FP8 block. For tests with models smaller than a block: right on the
  /// host, see check_fp8_blocks.
  bool allow_cut_blocks = false;

  /// Prompt plus answer; 0 = max_position_embeddings. Larger than that is an error.
  int64_t context_length = 0;
  /// Tokens of KV that all sequences share; 0 = as many as memory_fraction allows, but no more than
  /// all slots could use and, on the host, 2 GiB (or four longest sequences) holds.
  int64_t max_total_tokens = 0;
  /// Share of the free memory that weights, KV and work space may take together, 0 to 1.
  double memory_fraction = 0.8;
  /// Host tier of the radix cache: a multiple of the device's pages, or, when not 0, of this many
  /// bytes. Both 0 = none.
  double host_cache_ratio = 0.0;
  int64_t host_cache_bytes = 0;
  int32_t max_slots = 64;          ///< sequences that run at once
  int32_t max_step_tokens = 2048;  ///< tokens of one step, chunked prefill included

  /// 2 lets the engine plan a step while one runs.
  int32_t max_steps_in_flight = 2;

  GraphConfig graphs;

  LoadProgressFn progress;  ///< called from loading threads, never two at once; may be empty
  std::function<void(const LoadReport&)> on_loaded;  ///< called once; may be empty
  std::function<void()> on_prepared;  ///< called once, the KV pool is there; may be empty
  /// How many graphs the first rank has captured, and of how many; may be empty.
  std::function<void(size_t num_captured, size_t num_graphs)> on_capture;
  std::function<void(const CaptureReport&)> on_captured;  ///< called once, first rank; may be empty
};

/// Loads the model and starts the rank threads. Errors name the file, tensor or flag:
/// invalid_argument, not_found, data_loss, unsupported, resource_exhausted. May take minutes; call
/// it from any thread. The runner's methods belong to one thread.
Result<std::unique_ptr<Runner>> make_model_runner(const ModelRunnerConfig& config);

/// Rank `rank` of `config.tp` alone, with collectives that go nowhere: for measuring. Its tokens
/// mean nothing.
Result<std::unique_ptr<Runner>> make_lone_rank_runner(const ModelRunnerConfig& config,
                                                      int32_t rank);

/// One rank of a group whose ranks are processes.
struct RankProcess {
  std::unique_ptr<Communicator> comm;  ///< its rank and world are this runner's; fits the device
  int32_t ranks_on_host = 1;           ///< they share the host's memory and threads
  /// From the KV pages that fit here to those that fit everywhere; every rank calls it once.
  std::function<Result<int32_t>(int32_t num_pages)> agree_on_pages;
};

/// The same for one rank: `config.tp` is the whole group's. Every rank of the group must execute
/// the same plans.
Result<std::unique_ptr<Runner>> make_rank_runner(const ModelRunnerConfig& config,
                                                 RankProcess process);

/// The files of a checkpoint and what the ranks of this node need of them.
struct LoadPlan {
  std::vector<StoredFile> files;
  std::vector<FileRange> reads;  ///< disjoint, in load order
};

/// What make_model_runner would read. Empty for dummy weights.
Result<LoadPlan> plan_model_load(const ModelRunnerConfig& config);

/// Writes a pre-sharded directory for config.tp and config.ep (weights/shards.h): config.model_dir
/// is the source, dummy weights included. Errors as make_model_runner's, and those of writing.
Status shard_model(const ModelRunnerConfig& config, const std::filesystem::path& output);

/// What make_model_runner would do with this configuration and `free_bytes` of memory (CPU: the
/// host's, which all ranks share; CUDA: of each rank's GPU), without loading anything: reads
/// config.json and, unless dummy, checks every tensor's presence, dtype and shape.
/// resource_exhausted names the nearest flags with which the plan would fit.
Result<MemoryPlan> plan_model_memory(const ModelRunnerConfig& config, int64_t free_bytes);

}  // namespace hadal
