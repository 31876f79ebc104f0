// Flag values to Config. Every value is range-checked here, so nothing below has to doubt it.
#include "config.h"

#include <charconv>
#include <limits>
#include <utility>

#include "layout.h"

namespace hadal {

namespace {

Error usage_error(std::string message) {
  return Error{ErrorCode::invalid_argument, std::move(message)};
}

/// Typed reads of merged values. The first failed read is kept, so that the functions below stay
/// straight lists; they check `error()` once at the end.
class FlagReader {
 public:
  explicit FlagReader(const FlagValues& values) : values_(values) {}

  bool has(std::string_view name) const { return values_.find(name) != values_.end(); }

  void toggle(std::string_view name, bool& out) const { out = out || has(name); }

  template <class Text>
  void text(std::string_view name, Text& out) const {
    if (const std::string* value = last(name)) {
      out = Text(*value);
    }
  }

  void list(std::string_view name, std::vector<std::string>& out) const {
    if (const auto found = values_.find(name); found != values_.end()) {
      out = found->second;
    }
  }

  template <class Integer>
  void integer(std::string_view name, int64_t low, int64_t high, Integer& out) {
    const std::string* value = last(name);
    if (value == nullptr) {
      return;
    }
    int64_t number = 0;
    const char* end = value->data() + value->size();
    const auto parsed = std::from_chars(value->data(), end, number);
    if (parsed.ec != std::errc{} || parsed.ptr != end || number < low || number > high) {
      fail(name, "an integer in " + std::to_string(low) + ".." + std::to_string(high), *value);
      return;
    }
    out = static_cast<Integer>(number);
  }

  /// Comma-separated.
  void integers(std::string_view name, int64_t low, int64_t high, std::vector<int32_t>& out) {
    const std::string* value = last(name);
    if (value == nullptr) {
      return;
    }
    std::vector<int32_t> numbers;
    const char* at = value->data();
    const char* end = at + value->size();
    while (true) {
      int32_t number = 0;
      const auto parsed = std::from_chars(at, end, number);
      const bool is_end = parsed.ptr == end;
      if (parsed.ec != std::errc{} || number < low || number > high ||
          (!is_end && *parsed.ptr != ',')) {
        fail(name,
             "integers in " + std::to_string(low) + ".." + std::to_string(high) + " with commas",
             *value);
        return;
      }
      numbers.push_back(number);
      if (is_end) {
        break;
      }
      at = parsed.ptr + 1;
    }
    out = std::move(numbers);
  }

  /// Any number of words, an integer each.
  void integer_list(std::string_view name, int64_t low, int64_t high, std::vector<int32_t>& out) {
    std::vector<std::string> words;
    list(name, words);
    for (const std::string& word : words) {
      int32_t number = 0;
      const char* end = word.data() + word.size();
      const auto parsed = std::from_chars(word.data(), end, number);
      if (parsed.ec != std::errc{} || parsed.ptr != end || number < low || number > high) {
        fail(name, "integers in " + std::to_string(low) + ".." + std::to_string(high), word);
        return;
      }
      out.push_back(number);
    }
  }

  void number(std::string_view name, double low, double high, double& out) {
    const std::string* value = last(name);
    if (value == nullptr) {
      return;
    }
    double number = 0;
    const char* end = value->data() + value->size();
    const auto parsed = std::from_chars(value->data(), end, number);
    if (parsed.ec != std::errc{} || parsed.ptr != end || !(number >= low && number <= high)) {
      fail(name, "a number in " + std::to_string(low) + ".." + std::to_string(high), *value);
      return;
    }
    out = number;
  }

  /// One of `names`; writes the value at the same place in `values`.
  template <class T>
  void choice(std::string_view name,
              std::initializer_list<std::pair<std::string_view, T>> choices,
              T& out) {
    const std::string* value = last(name);
    if (value == nullptr) {
      return;
    }
    for (const auto& [word, result] : choices) {
      if (word == *value) {
        out = result;
        return;
      }
    }
    fail(name, "another value", *value);
  }

  void fail(std::string_view name, const std::string& expected, const std::string& got) {
    if (!error_) {
      error_ =
          usage_error("--" + std::string(name) + ": expected " + expected + ", got '" + got + "'");
    }
  }

  Status status() const {
    if (error_) {
      return *error_;
    }
    return ok_status();
  }

 private:
  const std::string* last(std::string_view name) const {
    const auto found = values_.find(name);
    return found == values_.end() ? nullptr : &found->second.back();
  }

  const FlagValues& values_;
  std::optional<Error> error_;
};

std::string value_text(const std::vector<std::string>& values) {
  std::string text;
  for (const std::string& value : values) {
    text += (text.empty() ? "" : " ") + value;
  }
  return text;
}

/// Applies the table's handling: refusals are collected so that a user sees all of them at once.
Status apply_handling(const FlagValues& values, Config& config) {
  std::string refusals;
  for (const auto& [name, texts] : values) {
    const FlagSpec* flag = find_flag(name);
    HADAL_CHECK(flag != nullptr, "flag value without a row: " + name);
    const std::string shown = "--" + name;
    const std::string reason(flag->reason);
    const bool is_accepted = flag->accepted.empty() || list_contains(flag->accepted, texts.back());
    if (!is_accepted && flag->handling == FlagHandling::honoured) {
      return usage_error(shown + ": expected one of " + std::string(flag->accepted) + ", got '" +
                         texts.back() + "'");
    }
    if (flag->handling == FlagHandling::refused ||
        (flag->handling == FlagHandling::limited && !is_accepted)) {
      refusals += (refusals.empty() ? "" : "\n") + shown +
                  (flag->kind == FlagKind::toggle ? "" : " " + value_text(texts)) +
                  " is refused: " + reason;
    } else if (flag->handling == FlagHandling::warned) {
      config.warnings.push_back(shown + " is ignored: " + reason);
    }
  }
  if (!refusals.empty()) {
    return Error{ErrorCode::unsupported, refusals};
  }
  return ok_status();
}

void read_model(FlagReader& reader, Config& config) {
  ModelOptions& model = config.model;
  reader.text("model-path", model.query.name);
  reader.text("revision", model.query.revision);
  reader.text("download-dir", model.query.download_dir);
  reader.text("tokenizer-path", model.tokenizer_path);
  reader.text("chat-template", model.chat_template);
  model.served_name = model.query.name.empty() ? "null" : model.query.name;
  reader.text("served-model-name", model.served_name);
  reader.choice("load-format",
                {{"auto", LoadFormat::automatic},
                 {"safetensors", LoadFormat::safetensors},
                 {"dummy", LoadFormat::dummy}},
                model.load_format);
  model.requires_fp8 = reader.has("quantization");
  reader.integer("context-length", 1, std::numeric_limits<int32_t>::max(), model.context_length);
}

void read_runner(FlagReader& reader, Config& config) {
  RunnerOptions& runner = config.runner;
  std::string kind = "model";
  reader.text("runner", kind);
  if (kind.starts_with("null:")) {
    int64_t step_us = -1;
    const size_t comma = std::min(kind.find(','), kind.size());
    const char* end = kind.data() + comma;
    const auto parsed = std::from_chars(kind.data() + 5, end, step_us);
    if (parsed.ec != std::errc{} || parsed.ptr != end || step_us < 0 || step_us > 10'000'000) {
      reader.fail("runner", "null:STEP_US with 0..10000000 microseconds", kind);
    }
    if (comma < kind.size()) {
      runner.null_fault = parse_planted_fault(std::string_view(kind).substr(comma + 1));
      if (!runner.null_fault) {
        reader.fail("runner",
                    "null:STEP_US,hang@RANK:STEP[:SECONDS] or null:STEP_US,token@RANK:STEP",
                    kind);
      }
    }
    runner.null_step_us = step_us;
  } else if (kind != "model") {
    reader.fail("runner", "model or null:STEP_US", kind);
  }
  reader.choice("cpu-mode", {{"fast", CpuMode::fast}, {"exact", CpuMode::exact}}, runner.cpu_mode);
  reader.choice("kv-cache-dtype",
                {{"auto", KvDtype::automatic},
                 {"bf16", KvDtype::bf16},
                 {"bfloat16", KvDtype::bf16},
                 {"fp8_e4m3", KvDtype::fp8_e4m3},
                 {"float32", KvDtype::f32}},
                runner.kv_dtype);
  reader.choice(
      "device",
      {{"auto", DeviceChoice::automatic}, {"cpu", DeviceChoice::cpu}, {"cuda", DeviceChoice::cuda}},
      runner.device_choice);
  reader.integer("base-gpu-id", 0, 1023, runner.base_gpu_id);
  reader.toggle("fp8-activations", runner.fp8_activations);
  reader.toggle("enable-nccl-nvls", runner.enable_nccl_nvls);
  reader.toggle("deterministic", runner.is_deterministic);
  runner.graphs.is_enabled = !reader.has("disable-cuda-graph");
  runner.graphs.pads = !reader.has("disable-cuda-graph-padding");
  reader.integer("cuda-graph-max-bs", 1, 4096, runner.graphs.max_batch);
  reader.integer_list("cuda-graph-bs", 1, 4096, runner.graphs.batches);
  runner.plans_ahead = !reader.has("disable-overlap-schedule");
  reader.integer("cpu-threads", 1, 1024, runner.cpu_threads);
  reader.number("mem-fraction-static", 0.01, 0.99, runner.memory_fraction);
  reader.integer("max-total-tokens", 1, int64_t{1} << 40, runner.kv_tokens_max);
  if (reader.has("enable-hierarchical-cache")) {
    runner.host_cache_ratio = 2.0;
    reader.number("hicache-ratio", 0.01, 1000, runner.host_cache_ratio);
    reader.integer("hicache-size", 0, 1'000'000, runner.host_cache_gb);
    for (const std::string_view other : {"disable-radix-cache", "runner"}) {
      if (reader.has(other) && (other != "runner" || runner.null_step_us))
        reader.fail(
            "enable-hierarchical-cache", "no --" + std::string(other) + " beside it", "both");
    }
  }
  for (const std::string_view name : {"hicache-ratio", "hicache-size"}) {
    if (reader.has(name) && !reader.has("enable-hierarchical-cache"))
      reader.fail(name, "--enable-hierarchical-cache beside it", "none");
  }
}

void read_api(FlagReader& reader, Config& config) {
  ApiConfig& api = config.api;
  reader.text("host", api.host);
  reader.integer("port", 0, 65535, api.port);
  api.admin_host = api.host;
  reader.text("admin-host", api.admin_host);
  if (reader.has("admin-port")) {
    reader.integer("admin-port", 0, 65535, api.admin_port.emplace());
  }
  reader.text("api-key", api.api_key);
  reader.text("api-key-file", config.api_key_file);
  reader.text("traffic-config", config.traffic_file);
  reader.list("cors-origins", api.cors_origins);
  reader.integer("max-connections", 1, 1'000'000, api.limits.connections_max);
  reader.toggle("strict-model-name", api.strict_model_name);
  api.served_model_name = config.model.served_name;
  api.separates_reasoning = reader.has("reasoning-parser");
  std::string special = "parse";
  reader.text("prompt-special-tokens", special);
  api.raw_prompts_may_hold_special_tokens = special == "parse";
  reader.integer("stream-interval", 1, 1'000'000, api.stream_interval);
}

void read_rank(FlagReader& reader, Config& config) {
  RankOptions& rank = config.rank;
  reader.toggle("rank-processes", rank.uses_processes);
  reader.text("group-secret-file", rank.secret_file);
  reader.text("record-plans", rank.record_plans);
  reader.integer("rank", 0, 4095, rank.rank);
  reader.text("rank-board", rank.board);
  std::vector<std::string> by_hand;
  reader.list("ranks-by-hand", by_hand);
  for (const std::string& text : by_hand) {
    int32_t number = -1;
    const char* end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data(), end, number);
    if (parsed.ec != std::errc{} || parsed.ptr != end || number < 1) {
      reader.fail("ranks-by-hand", "ranks of this node other than 0", text);
    }
    rank.ranks_by_hand.push_back(number);
  }
}

void read_logging(FlagReader& reader, Config& config) {
  const std::initializer_list<std::pair<std::string_view, LogLevel>> levels = {
      {"debug", LogLevel::debug},
      {"info", LogLevel::info},
      {"warning", LogLevel::warning},
      {"error", LogLevel::error},
      {"critical", LogLevel::error}};
  reader.choice("log-level", levels, config.log_level);
  LogLevel http_level = LogLevel::warning;
  reader.choice("log-level-http", levels, http_level);
  config.api.logs_access = http_level <= LogLevel::info || reader.has("log-requests");
  reader.integer("decode-log-interval", 1, 1'000'000'000, config.decode_log_interval);
}

void read_engine(FlagReader& reader, Config& config) {
  EngineConfig& engine = config.engine;
  reader.integer("max-running-requests", 1, 4096, engine.max_running_requests);
  reader.integer("max-queued-requests", 1, 1'000'000, engine.max_queued_requests);
  if (reader.has("max-queue-wait-ms")) {
    double wait_ms = 0.0;
    reader.number("max-queue-wait-ms", 0, 1e9, wait_ms);
    engine.max_queue_wait_s = wait_ms * 1e-3;
  }
  reader.integer("chunked-prefill-size", -1, 1 << 20, engine.chunked_prefill_tokens);
  reader.integer("max-prefill-tokens", 1, 1 << 24, engine.max_prefill_tokens);
  if (reader.has("target-step-time-ms")) {
    reader.number("target-step-time-ms", 0, 1e6, engine.target_step_ms);
    if (engine.target_step_ms == 0.0)
      engine.max_decode_stretch = 0.0;
  }
  reader.number("request-timeout", 0.001, 1e6, engine.request_timeout_s);
  reader.choice("schedule-policy",
                {{"lpm", SchedulePolicy::lpm},
                 {"fcfs", SchedulePolicy::fcfs},
                 {"random", SchedulePolicy::random},
                 {"dfs-weight", SchedulePolicy::dfs_weight},
                 {"priority", SchedulePolicy::priority}},
                engine.policy);
  reader.choice("radix-eviction-policy",
                {{"lru", EvictionPolicy::lru},
                 {"lfu", EvictionPolicy::lfu},
                 {"priority", EvictionPolicy::priority}},
                engine.eviction);
  engine.enable_radix_cache = !reader.has("disable-radix-cache");
  if (reader.has("random-seed")) {
    reader.integer(
        "random-seed", 0, std::numeric_limits<int64_t>::max(), config.random_seed.emplace());
    engine.policy_seed = *config.random_seed;
    config.api.random_seed = config.random_seed;
  }
  reader.number("schedule-conservativeness", 0, 100, engine.schedule_conservativeness);
  reader.number("watchdog-timeout", 0.1, 1e6, config.watchdog_timeout_s);
  config.api.step_timeout_s = config.watchdog_timeout_s;
  reader.number("shutdown-grace", 0, 1e6, config.shutdown_grace_s);
}

void read_commands(FlagReader& reader, Config& config) {
  GenerateOptions& generate = config.generate;
  reader.integer("max-new-tokens", 1, 1 << 24, generate.max_new_tokens);
  double temperature = generate.temperature;
  double top_p = generate.top_p;
  reader.number("temperature", 0, 1e6, temperature);
  reader.number("top-p", 1e-6, 1, top_p);
  generate.temperature = static_cast<float>(temperature);
  generate.top_p = static_cast<float>(top_p);
  reader.integer("seed", 0, std::numeric_limits<int64_t>::max(), generate.seed);
  reader.toggle("raw", generate.is_raw);
  reader.text("output-dir", config.shard.output_dir);
  reader.text("bench-output", config.bench.output);
  reader.number("bench-seconds", 0.1, 3600, config.bench.seconds);
  ServeLoad& load = config.bench.load;
  reader.text("base-url", load.base_url);
  if (reader.has("served-model-name")) {
    load.model = config.model.served_name;
  }
  load.api_key = config.api.api_key;
  reader.number("request-rate", 1e-6, 1e6, load.requests_per_s);
  reader.integer("num-prompts", 1, 10'000'000, load.num_prompts);
  reader.integer("random-input-len", 1, 1 << 20, load.input_words);
  reader.integer("random-output-len", 1, 1 << 20, load.output_tokens);
  load.seed = config.random_seed.value_or(load.seed);
  reader.integers("batch", 1, 4096, config.bench.batches);
  reader.integers("prefill", 1, 1 << 20, config.bench.prefills);
  reader.integer("prefix", 0, 1 << 20, config.bench.prefix);
  reader.integer("context", 1, 1 << 20, config.bench.context);
  reader.integer("as-rank", 0, 4095, config.bench.as_rank);
  reader.choice("routing",
                {{"auto", BenchRouting::automatic},
                 {"model", BenchRouting::model},
                 {"uniform", BenchRouting::uniform}},
                config.bench.routing);
}

void read_simulate(FlagReader& reader, Config& config) {
  SimulateOptions& simulate = config.simulate;
  reader.number("duration", 1, 1e6, simulate.duration_s);
  reader.number("request-rate", 1e-6, 1e6, simulate.requests_per_s);
  reader.number("length-scale", 1e-4, 100, simulate.length_scale);
  reader.number("host-step-us", 0, 1e6, simulate.host_step_us);
  reader.number("slo-ttft-ms", 0.001, 1e9, simulate.slo_ttft_ms);
  reader.number("slo-tpot-ms", 0.001, 1e9, simulate.slo_tpot_ms);
  reader.text("step-table", simulate.step_table);
  reader.text("output", simulate.output);
  reader.text("plot", simulate.plot);
  reader.text("write-trace", simulate.trace_output);
  reader.text("write-requests", simulate.requests_output);
}

constexpr std::string_view kKernelFamily = "HADAL_KERNEL_FAMILY";

Status read_kernel_family(const Environment& environment, Config& config) {
  const auto value = environment.get(kKernelFamily);
  if (!value) {
    return ok_status();
  }
  for (const KernelFamily family :
       {KernelFamily::automatic, KernelFamily::sm80, KernelFamily::sm90a}) {
    if (*value == to_string(family)) {
      config.runner.kernel_family = family;
      return ok_status();
    }
  }
  return usage_error(std::string(kKernelFamily) + ": expected one of auto,sm80,sm90a, got '" +
                     *value + "'");
}

Status read_layout(FlagReader& reader, const Environment& environment, Config& config) {
  LayoutFlags flags;
  reader.integer("tp-size", 1, 4096, flags.tp_size);
  if (reader.has("nnodes")) {
    reader.integer("nnodes", 1, 4096, flags.num_nodes.emplace());
  }
  if (reader.has("node-rank")) {
    reader.integer("node-rank", 0, 4095, flags.node_rank.emplace());
  }
  if (reader.has("dist-init-addr")) {
    reader.text("dist-init-addr", flags.address.emplace());
  }
  HADAL_RETURN_IF_ERROR(reader.status());
  auto layout = resolve_layout(flags, environment);
  if (!layout) {
    return layout.error();
  }
  config.layout = layout.value();
  config.layout.ep_size = reader.has("enable-ep-moe") ? config.layout.tp_size : 1;
  reader.integer("ep-size", 1, 4096, config.layout.ep_size);
  if (config.layout.tp_size % config.layout.ep_size != 0) {
    reader.fail("ep-size",
                "a divisor of --tp-size " + std::to_string(config.layout.tp_size),
                std::to_string(config.layout.ep_size));
  }
  reader.choice("all-reduce",
                {{"flat", AllReduce::flat}, {"hier", AllReduce::hier}},
                config.layout.all_reduce);
  reader.integer("dist-timeout", 1, 1'000'000, config.layout.rendezvous_timeout_s);
  return reader.status();
}

/// cuda_only flags that the CUDA backend follows, or whose wish it always fulfils.
constexpr std::string_view kFollowedOnCuda =
    "enable-nccl-nvls,disable-cuda-graph,disable-cuda-graph-padding,cuda-graph-max-bs,"
    "cuda-graph-bs,disable-custom-all-reduce,fp8-activations";

}  // namespace

Status set_device(Config& config, DeviceType device) {
  config.runner.device = device;
  const bool is_cuda = device == DeviceType::cuda;
  if (is_cuda && config.runner.cpu_mode == CpuMode::exact) {
    return usage_error("--cpu-mode exact: expected --device cpu, got --device cuda");
  }
  if (!is_cuda && config.runner.kernel_family != KernelFamily::automatic) {
    config.notes.push_back(std::string(kKernelFamily) + " has no effect on the CPU backend");
  }
  for (const auto& [name, texts] : config.given) {
    const bool is_cuda_only = find_flag(name)->handling == FlagHandling::cuda_only;
    if (is_cuda_only && !is_cuda) {
      config.notes.push_back("--" + name + " has no effect on the CPU backend");
    } else if (is_cuda_only && !list_contains(kFollowedOnCuda, name)) {
      config.warnings.push_back("--" + name + " is ignored: the CUDA backend has nothing to tune");
    } else if (is_cuda && (name == "cpu-threads" || name == "all-reduce")) {
      config.notes.push_back("--" + name + " has no effect on the CUDA backend");
    }
  }
  return ok_status();
}

Result<Config> build_config(const FlagValues& values,
                            const FlagValues& file_values,
                            const Environment& environment,
                            FlagCommands command) {
  FlagValues merged = values;
  for (const auto& [name, texts] : file_values) {
    merged.try_emplace(name, texts);
  }
  Config config;
  config.given = merged;
  HADAL_RETURN_IF_ERROR(apply_handling(merged, config));
  FlagReader reader(merged);
  read_model(reader, config);
  read_runner(reader, config);
  read_api(reader, config);
  read_rank(reader, config);
  read_logging(reader, config);
  read_engine(reader, config);
  read_commands(reader, config);
  read_simulate(reader, config);
  HADAL_RETURN_IF_ERROR(reader.status());
  HADAL_RETURN_IF_ERROR(read_layout(reader, environment, config));
  HADAL_RETURN_IF_ERROR(read_kernel_family(environment, config));
  if (config.model.query.name.empty() && !config.runner.null_step_us && command != kDoctor &&
      command != kBench && command != kSimulate) {  // bench looks at what it is to measure
    return usage_error("--model-path is required (or --runner null:STEP_US)");
  }
  if (command == kShard && config.shard.output_dir.empty()) {
    return usage_error("--output-dir is required: the directory to write");
  }
  if (config.api.admin_port == config.api.port && config.api.port != 0 &&
      config.api.admin_host == config.api.host) {
    return usage_error("--admin-port: expected another port than --port");
  }
  return config;
}

}  // namespace hadal
