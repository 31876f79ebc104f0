// From flags to a validated Config, the manifest of the LWS deployment included.
#include "config.h"

#include "catch.h"
#include "cli.h"

using namespace hadal;

namespace {

using Words = std::vector<std::string>;

Result<Config> configure(Words words, const Environment& environment = {}) {
  words.insert(words.begin(), "serve");
  auto line = parse_command_line(words);
  if (!line) {
    return line.error();
  }
  return build_config(line.value().values, {}, environment);
}

std::string config_error(const Words& words, const Environment& environment = {}) {
  auto config = configure(words, environment);
  REQUIRE_FALSE(config);
  return config.error().message;
}

Words manifest(const std::string& node_rank) {
  return {"--model-path",
          "/mnt/catcat_data/model/DeepSeek-R1",
          "--served-model-name",
          "deepseek-r1",
          "--tp",
          "16",
          "--dist-init-addr",
          "sglang-0.sglang.default:20000",
          "--nnodes",
          "2",
          "--node-rank",
          node_rank,
          "--trust-remote-code",
          "--context-length",
          "131072",
          "--enable-metrics",
          "--host",
          "0.0.0.0",
          "--port",
          "8000"};
}

Environment lws(const std::string& hostname) {
  return Environment{{{"LWS_LEADER_ADDRESS", "sglang-0.sglang.default"}, {"LWS_GROUP_SIZE", "2"}},
                     hostname};
}

}  // namespace

TEST_CASE("config: the LWS manifest's argument list is understood", "[app]") {
  auto config = configure(manifest("1"));
  REQUIRE(config);
  const Config& value = config.value();
  CHECK(value.model.query.name == "/mnt/catcat_data/model/DeepSeek-R1");
  CHECK(value.model.served_name == "deepseek-r1");
  CHECK(value.model.context_length == 131072);
  CHECK(value.layout.tp_size == 16);
  CHECK(value.layout.num_nodes == 2);
  CHECK(value.layout.node_rank == 1);
  CHECK(value.layout.ranks_per_node() == 8);
  CHECK(value.layout.rendezvous_host == "sglang-0.sglang.default");
  CHECK(value.layout.rendezvous_port == 20000);
  CHECK(value.api.host == "0.0.0.0");
  CHECK(value.api.port == 8000);
  CHECK(value.warnings.empty());
}

TEST_CASE("config: the served name defaults to the model path", "[app]") {
  auto config = configure({"--model", "/m/name"});
  REQUIRE(config);
  CHECK(config.value().model.served_name == "/m/name");
  CHECK(config.value().api.port == 30000);
}

TEST_CASE("config: LeaderWorkerSet's environment gives the layout when flags do not", "[app]") {
  const Words words = {"--model", "m", "--tp", "4"};
  auto leader = configure(words, lws("sglang-0"));
  REQUIRE(leader);
  CHECK(leader.value().layout.node_rank == 0);
  CHECK(leader.value().layout.rendezvous_host == "sglang-0.sglang.default");
  CHECK(leader.value().layout.rendezvous_port == 20000);
  auto worker = configure(words, lws("sglang-0-1"));
  REQUIRE(worker);
  CHECK(worker.value().layout.node_rank == 1);
  Environment indexed = lws("elsewhere");
  indexed.variables["LWS_WORKER_INDEX"] = "1";
  CHECK(configure(words, indexed).value().layout.node_rank == 1);
  CHECK(configure({"--model", "m", "--nnodes", "1"}, indexed).value().layout.num_nodes == 1);
  CHECK(config_error(words, lws("elsewhere")).find("which one this is") != std::string::npos);
  indexed.variables["LWS_GROUP_SIZE"] = "two";
  CHECK(config_error(words, indexed) == "LWS_GROUP_SIZE: expected a number, got 'two'");
}

TEST_CASE("config: an impossible layout is refused", "[app]") {
  CHECK(config_error({"--model", "m", "--tp", "3", "--nnodes", "2", "--dist-init-addr", "h:1"}) ==
        "--node-rank: 2 nodes, and neither the flag, LWS_WORKER_INDEX nor the host name says "
        "which one this is");
  CHECK(config_error({"--model",
                      "m",
                      "--tp",
                      "3",
                      "--nnodes",
                      "2",
                      "--node-rank",
                      "0",
                      "--dist-init-addr",
                      "h:1"}) == "--tp-size: 3 ranks do not divide over 2 nodes");
  CHECK(config_error({"--model", "m", "--tp", "2", "--nnodes", "2", "--node-rank", "2"}) ==
        "--node-rank: expected 0..1, got 2");
  CHECK(config_error({"--model", "m", "--tp", "2", "--nnodes", "2", "--node-rank", "0"}) ==
        "--dist-init-addr: 2 nodes need the host:port of node 0");
  for (const char* address : {"host", ":1", "host:0", "host:65536", "host:x"}) {
    CHECK(config_error({"--model", "m", "--dist-init-addr", address}).find("expected host:port") !=
          std::string::npos);
  }
  CHECK(config_error({"--model", "m", "--tp", "4", "--ep-size", "3"}) ==
        "--ep-size: expected a divisor of --tp-size 4, got '3'");
  CHECK(configure({"--model", "m", "--tp", "4", "--enable-ep-moe"}).value().layout.ep_size == 4);
  CHECK(configure({"--model", "m"}).value().layout.all_reduce == AllReduce::hier);
  CHECK(configure({"--model", "m", "--all-reduce", "flat"}).value().layout.all_reduce ==
        AllReduce::flat);
  CHECK_FALSE(config_error({"--model", "m", "--all-reduce", "ring"}).empty());
}

TEST_CASE("config: refused flags are all named, with reasons", "[app]") {
  auto config = configure({"--model",
                           "m",
                           "--disable-mla",
                           "--lora-paths",
                           "a",
                           "b",
                           "--delete-ckpt-after-loading",
                           "--dp",
                           "2"});
  REQUIRE_FALSE(config);
  CHECK(config.error().code == ErrorCode::unsupported);
  const std::string& message = config.error().message;
  CHECK(message.find("--disable-mla is refused: MLA is the only attention") != message.npos);
  CHECK(message.find("--lora-paths a b is refused: ") != message.npos);
  CHECK(message.find("--delete-ckpt-after-loading is refused: ") != message.npos);
  CHECK(message.find("--dp-size 2 is refused: ") != message.npos);
}

TEST_CASE("config: limited flags take their one value", "[app]") {
  CHECK(configure({"--model",
                   "m",
                   "--dp",
                   "1",
                   "--page-size",
                   "64",
                   "--dtype",
                   "bfloat16",
                   "--schedule-conservativeness",
                   "1.0"}));
  CHECK(config_error({"--model", "m", "--page-size", "16"}).find("pages hold 64 tokens") !=
        std::string::npos);
  CHECK(config_error({"--model", "m", "--schedule-policy", "best"}) ==
        "--schedule-policy: expected one of lpm,random,fcfs,dfs-weight,priority, got 'best'");
}

TEST_CASE("config: the family of kernels comes from the environment", "[app]") {
  const auto with = [](const char* value) {
    Environment environment;
    environment.variables["HADAL_KERNEL_FAMILY"] = value;
    return environment;
  };
  const Words words = {"--model", "m"};
  CHECK(configure(words).value().runner.kernel_family == KernelFamily::automatic);
  CHECK(configure(words, with("")).value().runner.kernel_family == KernelFamily::automatic);
  CHECK(configure(words, with("auto")).value().runner.kernel_family == KernelFamily::automatic);
  CHECK(configure(words, with("sm80")).value().runner.kernel_family == KernelFamily::sm80);
  CHECK(config_error(words, with("sm75")) ==
        "HADAL_KERNEL_FAMILY: expected one of auto,sm80,sm90a, got 'sm75'");
  Config config = configure(words, with("sm90a")).value();
  CHECK(config.runner.kernel_family == KernelFamily::sm90a);
  REQUIRE(set_device(config, DeviceType::cpu));
  CHECK(config.notes == Words{"HADAL_KERNEL_FAMILY has no effect on the CPU backend"});
}

TEST_CASE("config: KV pages in every spelling, E5M2 refused by name", "[app]") {
  const auto kv_dtype = [](const char* word) {
    return configure({"--model", "m", "--kv-cache-dtype", word}).value().runner.kv_dtype;
  };
  CHECK(kv_dtype("auto") == KvDtype::automatic);
  CHECK(kv_dtype("bf16") == KvDtype::bf16);
  CHECK(kv_dtype("bfloat16") == KvDtype::bf16);
  CHECK(kv_dtype("fp8_e4m3") == KvDtype::fp8_e4m3);
  CHECK(config_error({"--model", "m", "--kv-cache-dtype", "fp8_e5m2"}) ==
        "--kv-cache-dtype: expected one of auto,bf16,bfloat16,fp8_e4m3,float32, got 'fp8_e5m2'");
}

TEST_CASE("config: list C gives one warning line each", "[app]") {
  auto config = configure({"--model",
                           "m",
                           "--attention-backend",
                           "fa3",
                           "--enable-torch-compile",
                           "--disable-cuda-graph"});
  REQUIRE(config);
  CHECK(config.value().warnings.size() == 2);
  CHECK(config.value().runner.plans_ahead);
}

TEST_CASE("config: which decode batches get CUDA graphs", "[app]") {
  const GraphConfig usual = configure({"--model", "m"}).value().runner.graphs;
  CHECK(usual.is_enabled);
  CHECK(usual.pads);
  CHECK(usual.max_batch == 0);
  CHECK(usual.batches.empty());
  Config config = configure({"--model",
                             "m",
                             "--disable-cuda-graph",
                             "--disable-cuda-graph-padding",
                             "--cuda-graph-max-bs",
                             "64",
                             "--cuda-graph-bs",
                             "1",
                             "32"})
                      .value();
  CHECK_FALSE(config.runner.graphs.is_enabled);
  CHECK_FALSE(config.runner.graphs.pads);
  CHECK(config.runner.graphs.max_batch == 64);
  CHECK(config.runner.graphs.batches == std::vector<int32_t>{1, 32});
  REQUIRE(set_device(config, DeviceType::cuda));
  CHECK(config.warnings.empty());
  CHECK(config_error({"--model", "m", "--cuda-graph-bs", "1", "x"}) ==
        "--cuda-graph-bs: expected integers in 1..4096, got 'x'");
}

TEST_CASE("config: the device decides which flags do nothing, and says so", "[app]") {
  const Words words = {"--model",
                       "m",
                       "--device",
                       "cuda",
                       "--base-gpu-id",
                       "3",
                       "--cpu-threads",
                       "2",
                       "--fp8-activations",
                       "--deterministic",
                       "--enable-p2p-check",
                       "--enable-nccl-nvls"};
  Config config = configure(words).value();
  CHECK(config.runner.device_choice == DeviceChoice::cuda);
  CHECK(config.runner.base_gpu_id == 3);
  CHECK(config.runner.fp8_activations);
  CHECK(config.runner.is_deterministic);
  CHECK(config.notes.empty());
  Config on_gpu = config;
  REQUIRE(set_device(on_gpu, DeviceType::cuda));
  CHECK(on_gpu.runner.device == DeviceType::cuda);
  CHECK(on_gpu.notes == Words{"--cpu-threads has no effect on the CUDA backend"});
  REQUIRE(on_gpu.warnings.size() == 1);
  CHECK(on_gpu.warnings.front().starts_with("--enable-p2p-check is ignored: "));
  REQUIRE(set_device(config, DeviceType::cpu));
  CHECK(config.notes == Words{"--enable-nccl-nvls has no effect on the CPU backend",
                              "--enable-p2p-check has no effect on the CPU backend",
                              "--fp8-activations has no effect on the CPU backend"});
  CHECK(config.warnings.empty());

  CHECK(configure({"--model", "m"}).value().runner.device_choice == DeviceChoice::automatic);
  CHECK(config_error({"--model", "m", "--device", "gpu"}) ==
        "--device: expected one of auto,cpu,cuda, got 'gpu'");
  Config exact = configure({"--model", "m", "--cpu-mode", "exact"}).value();
  CHECK_FALSE(set_device(exact, DeviceType::cuda));
}

TEST_CASE("config: values are in range", "[app]") {
  CHECK(config_error({"--model", "m", "--port", "-1"}) ==
        "--port: expected an integer in 0..65535, got '-1'");
  CHECK(config_error({"--model", "m", "--port", "99999999999999999999"}).find("--port") == 0);
  CHECK(config_error({"--model", "m", "--mem-fraction-static", "1.5"})
            .find("--mem-fraction-static: expected a number in") == 0);
  CHECK(config_error({}) == "--model-path is required (or --runner null:STEP_US)");
  CHECK(config_error({"--runner", "nul:5"}) ==
        "--runner: expected model or null:STEP_US, got 'nul:5'");
  CHECK(config_error({"--runner", "null:-1"}).find("microseconds") != std::string::npos);
  CHECK(configure({"--runner", "null:250"}).value().runner.null_step_us == 250);
  const auto planted = configure({"--runner", "null:250,token@3:40"}).value().runner;
  CHECK(planted.null_step_us == 250);
  REQUIRE(planted.null_fault);
  CHECK(planted.null_fault->kind == FaultKind::token);
  CHECK(planted.null_fault->rank == 3);
  CHECK(planted.null_fault->step_id == 40);
  const auto passing = configure({"--runner", "null:250,hang@0:40:2.5"}).value().runner.null_fault;
  REQUIRE(passing);
  CHECK(passing->kind == FaultKind::hang);
  CHECK(passing->step_id == 40);
  CHECK(passing->seconds == 2.5);
  for (const char* bad : {"null:1,",
                          "null:1,hang@1:2:",
                          "null:1,hang@1:2:0",
                          "null:1,token@1:2:3",
                          "null:1,hang",
                          "null:1,hang@1",
                          "null:1,die@1:2",
                          "null:1,hang@-1:2",
                          "null:1,hang@1:2x",
                          "null:1,hang:1@2"}) {
    CHECK(config_error({"--runner", bad}).find("hang@RANK:STEP") != std::string::npos);
  }
  CHECK(config_error({"--model", "m", "--admin-port", "30000"}) ==
        "--admin-port: expected another port than --port");
}

TEST_CASE("config: a target step time replaces the stretch, and 0 takes both away", "[app]") {
  const auto engine_of = [](Words words) { return configure(std::move(words)).value().engine; };
  CHECK(engine_of({"--model", "m"}).max_decode_stretch == 1.8);
  CHECK(engine_of({"--model", "m", "--target-step-time-ms", "40"}).target_step_ms == 40.0);
  CHECK(engine_of({"--model", "m", "--target-step-time-ms", "0"}).max_decode_stretch == 0.0);
  CHECK(engine_of({"--model", "m", "--request-timeout", "2.5"}).request_timeout_s == 2.5);
}

TEST_CASE("config: the host tier of the cache", "[app]") {
  const auto runner_of = [](Words words) { return configure(std::move(words)).value().runner; };
  CHECK(runner_of({"--model", "m"}).host_cache_ratio == 0.0);
  CHECK(runner_of({"--model", "m", "--enable-hierarchical-cache"}).host_cache_ratio == 2.0);
  CHECK(runner_of({"--model", "m", "--enable-hierarchical-cache", "--hicache-ratio", "3.5"})
            .host_cache_ratio == 3.5);
  CHECK(runner_of({"--model", "m", "--enable-hierarchical-cache", "--hicache-size", "40"})
            .host_cache_gb == 40);
  CHECK(config_error({"--model", "m", "--hicache-size", "40"}).find("--hicache-size: expected") ==
        0);
  CHECK(config_error({"--model", "m", "--enable-hierarchical-cache", "--disable-radix-cache"}) !=
        "");
  CHECK(config_error({"--model", "m", "--hicache-storage-path", "/x"}).find("disk") !=
        std::string::npos);
  CHECK(configure({"--model", "m", "--radix-eviction-policy", "lfu"}).value().engine.eviction ==
        EvictionPolicy::lfu);
}

TEST_CASE("config: the command line wins over the file", "[app]") {
  auto file = parse_config_file(R"({"model_path": "f", "port": 1, "tp": 2})", "c", kServe);
  REQUIRE(file);
  auto line = parse_command_line(Words{"serve", "--port", "2"});
  REQUIRE(line);
  auto config = build_config(line.value().values, file.value(), {});
  REQUIRE(config);
  CHECK(config.value().api.port == 2);
  CHECK(config.value().layout.tp_size == 2);
  CHECK(config.value().model.query.name == "f");
}

TEST_CASE("config: doctor takes the manifest's flags, and needs no model", "[app]") {
  Words words = manifest("1");
  words.insert(words.begin(), "doctor");
  auto line = parse_command_line(words);
  REQUIRE(line);
  CHECK(line.value().command == kDoctor);
  CHECK(build_config(line.value().values, {}, {}, kDoctor));
  line = parse_command_line(Words{"doctor"});
  REQUIRE(line);
  CHECK(build_config(line.value().values, {}, {}, kDoctor));
  CHECK_FALSE(build_config(line.value().values, {}, {}, kServe));
}

TEST_CASE("config: simulate takes the scheduler's flags and its own, and needs no model", "[app]") {
  auto line = parse_command_line(Words{"simulate",
                                       "agents",
                                       "--max-total-tokens",
                                       "6400",
                                       "--schedule-policy",
                                       "fcfs",
                                       "--request-rate",
                                       "2.5",
                                       "--slo-ttft-ms=500"});
  REQUIRE(line);
  CHECK(line.value().command == kSimulate);
  CHECK(line.value().words == Words{"agents"});
  auto config = build_config(line.value().values, {}, {}, kSimulate);
  REQUIRE(config);
  CHECK(config.value().runner.kv_tokens_max == 6400);
  CHECK(config.value().engine.policy == SchedulePolicy::fcfs);
  CHECK(config.value().simulate.requests_per_s == 2.5);
  CHECK(config.value().simulate.slo_ttft_ms == 500);
  CHECK_FALSE(parse_command_line(Words{"simulate"}));
  CHECK_FALSE(parse_command_line(Words{"simulate", "agents", "--tp", "16"}));
  CHECK_FALSE(parse_command_line(Words{"serve", "--request-rate", "2"}));
}

TEST_CASE("config: shard needs a directory to write", "[app]") {
  auto line = parse_command_line(Words{"shard", "--model", "m", "--output-dir", "out"});
  REQUIRE(line);
  auto config = build_config(line.value().values, {}, {}, kShard);
  REQUIRE(config);
  CHECK(config.value().shard.output_dir == "out");
  line = parse_command_line(Words{"shard", "--model", "m"});
  REQUIRE(line);
  config = build_config(line.value().values, {}, {}, kShard);
  REQUIRE_FALSE(config);
  CHECK(config.error().message.find("--output-dir") != std::string::npos);
}
