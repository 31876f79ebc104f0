// The rows. SGLang's names, defaults and meanings are those of `sglang.launch_server` in v0.4.3.
#include "flag_table.h"

#include <cstdint>

namespace hadal {

namespace {

using K = FlagKind;
using G = FlagGroup;
using H = FlagHandling;

/// Commands that take the whole command line of a manifest.
constexpr uint16_t kServeLike = kServe | kCheck | kDoctor | kRank;

constexpr FlagSpec own(std::string_view name,
                       FlagKind kind,
                       std::string_view default_text,
                       std::string_view help,
                       uint16_t commands = kAllCommands,
                       std::string_view accepted = {}) {
  return FlagSpec{
      name, {}, kind, G::hadal, H::honoured, default_text, accepted, help, {}, commands};
}

constexpr FlagSpec honoured(std::string_view name,
                            FlagKind kind,
                            std::string_view default_text,
                            std::string_view help,
                            std::string_view aliases = {},
                            std::string_view accepted = {}) {
  return FlagSpec{name,
                  aliases,
                  kind,
                  G::sglang_a,
                  H::honoured,
                  default_text,
                  accepted,
                  help,
                  {},
                  kAllCommands};
}

constexpr FlagSpec implied(std::string_view name, FlagKind kind, std::string_view help) {
  return FlagSpec{name, {}, kind, G::sglang_a, H::implied, {}, {}, help, {}, kAllCommands};
}

constexpr FlagSpec cuda_only(std::string_view name, FlagKind kind, std::string_view help) {
  return FlagSpec{name, {}, kind, G::sglang_a, H::cuda_only, {}, {}, help, {}, kAllCommands};
}

constexpr FlagSpec own_cuda_only(std::string_view name, std::string_view help) {
  FlagSpec spec = cuda_only(name, FlagKind::toggle, help);
  spec.group = G::hadal;
  return spec;
}

constexpr FlagSpec limited(std::string_view name,
                           FlagKind kind,
                           std::string_view default_text,
                           std::string_view accepted,
                           std::string_view reason,
                           std::string_view aliases = {}) {
  return FlagSpec{name,
                  aliases,
                  kind,
                  G::sglang_a,
                  H::limited,
                  default_text,
                  accepted,
                  {},
                  reason,
                  kAllCommands};
}

constexpr FlagSpec refused(FlagGroup group,
                           std::string_view name,
                           FlagKind kind,
                           std::string_view reason) {
  return FlagSpec{name, {}, kind, group, H::refused, {}, {}, {}, reason, kAllCommands};
}

constexpr FlagSpec warned(std::string_view name, FlagKind kind, std::string_view reason) {
  return FlagSpec{name, {}, kind, G::sglang_c, H::warned, {}, {}, {}, reason, kAllCommands};
}

constexpr FlagSpec later(FlagSpec spec) {
  spec.group = G::sglang_b;
  return spec;
}

/// Also read by `simulate`.
constexpr FlagSpec simulated(FlagSpec spec) {
  spec.commands |= kSimulate;
  return spec;
}

/// Read by the commands that run or plan a model on a device of choice.
constexpr FlagSpec on_device(FlagSpec spec) {
  spec.commands = kServeLike | kGenerate | kReplay | kBench;
  return spec;
}

constexpr std::string_view kNoSpeculation = "speculative decoding is not built";
constexpr std::string_view kNoLora = "adapters change every answer, and hadal loads none";
constexpr std::string_view kNoSparsity = "hadal has no double-sparsity attention";
constexpr std::string_view kNoTriton = "hadal has no Triton kernels";
constexpr std::string_view kNoDataParallel = "data parallelism is not built";
constexpr std::string_view kNoPipeline = "pipeline parallelism is not built";

constexpr FlagSpec kFlags[] = {
    // hadal's own
    simulated(own("config", K::path, "", "JSON file of flags; the command line wins over it")),
    own("runner",
        K::text,
        "model",
        "model, or null:STEP_US: the whole server without a model; null:STEP_US,hang@RANK:STEP "
        "(for :SECONDS) and token@RANK:STEP plant a fault for tests"),
    own("cpu-mode",
        K::text,
        "fast",
        "fast, or exact: float32 on dequantised weights",
        kAllCommands,
        "fast,exact"),
    own("deterministic",
        K::toggle,
        "",
        "a prompt's numbers never depend on how it was cut into chunks; a few new tokens after a "
        "long cached prefix take longer"),
    own_cuda_only("fp8-activations",
                  "inputs of FP8 linears are rounded to E4M3 (1 x 128 scales) instead of BF16"),
    own("all-reduce",
        K::text,
        "hier",
        "sums over nodes: hier, in the node first, or flat; the same on one node",
        kAllCommands,
        "flat,hier"),
    own("cpu-threads", K::integer, "all cores", "threads of the CPU backend"),
    own("admin-host", K::text, "--host", "address of the admin port", kServeLike),
    own("admin-port",
        K::integer,
        "none",
        "second port: probes and metrics from the first second",
        kServeLike),
    own("cors-origins", K::list, "*", "origins that browsers may call from", kServeLike),
    own("api-key-file",
        K::path,
        "none",
        "JSON file of API keys with weight, class and limits; read again on SIGHUP",
        kServeLike),
    own("traffic-config",
        K::path,
        "none",
        "JSON file of the bounds of gates, ladder, breaker and quarantine",
        kServeLike),
    own("max-connections",
        K::integer,
        "4096",
        "open connections; more wait to be accepted",
        kServeLike),
    own("strict-model-name", K::toggle, "", "404 for requests that name another model", kServeLike),
    own("shutdown-grace",
        K::number,
        "30",
        "seconds that SIGTERM waits for running streams",
        kServeLike),
    own("rank-processes",
        K::toggle,
        "",
        "ranks are processes on one node too; on several nodes they always are",
        kServeLike),
    own("group-secret-file",
        K::path,
        "/etc/hadal/group-secret",
        "secret that the nodes share; needed when they do not meet on a loopback address",
        kServeLike),
    own("record-plans", K::path, "", "write every step's plan and tokens to this file", kServeLike),
    own("ranks-by-hand",
        K::list,
        "",
        "ranks of this node that `hadal rank` starts, under a debugger for instance",
        kServe),
    own("rank", K::integer, "", "the rank to be", kRank),
    own("rank-board", K::path, "", "shared memory of the node, as its supervisor names it", kRank),
    own("prompt-special-tokens",
        K::text,
        "parse",
        "parse or text: whether raw prompts may contain special tokens",
        kServeLike,
        "parse,text"),
    own("target-step-time-ms",
        K::number,
        "1.8 decode steps",
        "prefill fills steps that decode up to this time; 0 = only up to the token limits",
        kServe | kCheck | kSimulate),
    own("max-queue-wait-ms",
        K::number,
        "10000",
        "under lasting overload what would wait longer gets 503; 0 = only max-queued-requests "
        "bounds it",
        kServe | kCheck | kSimulate),
    own("request-timeout",
        K::number,
        "none",
        "seconds after which an unfinished request ends with an error",
        kServe | kCheck | kSimulate),
    own("max-new-tokens", K::integer, "512", "most tokens to generate", kGenerate),
    own("temperature", K::number, "0", "0 is greedy", kGenerate),
    own("top-p", K::number, "1", "nucleus sampling", kGenerate),
    own("seed", K::integer, "0", "with the position, the only source of randomness", kGenerate),
    own("raw", K::toggle, "", "the prompt is raw text: no chat template", kGenerate),
    own("output-dir", K::path, "required", "directory to write, new or empty", kShard),
    own("base-url",
        K::text,
        "http://127.0.0.1:30000",
        "serve: the OpenAI-compatible server to load, over http",
        kBench),
    own("num-prompts", K::integer, "100", "serve: requests to send", kBench),
    own("random-input-len", K::integer, "128", "serve: random words of a prompt", kBench),
    own("random-output-len", K::integer, "64", "serve: tokens to ask for", kBench),
    own("bench-output", K::path, "", "also write the JSON report to this file", kBench),
    own("bench-seconds", K::number, "3", "time of each measurement", kBench),
    own("batch", K::text, "", "step, loop: rows of decode steps, such as 1,8,32", kBench),
    own("prefill", K::text, "", "step: tokens of prompt steps, such as 8192", kBench),
    own("prefix", K::integer, "0", "step: tokens in the cache before a prompt step's", kBench),
    own("context", K::integer, "4096", "step, loop: tokens in the cache of a decoding row", kBench),
    own("as-rank", K::integer, "0", "step, loop: which of the --tp-size ranks is measured", kBench),
    own("routing",
        K::text,
        "auto",
        "step: experts by the model's router, or uniform ones (auto: with dummy weights)",
        kBench,
        "auto,model,uniform"),
    own("comm",
        K::text,
        "loopback",
        "step, loop: collectives; loopback = the other ranks do not exist",
        kBench,
        "loopback"),
    own("duration", K::number, "600", "seconds of arrivals of a workload", kSimulate),
    own("request-rate",
        K::number,
        "the workload's",
        "conversations per second; bench serve: requests per second, 1",
        kSimulate | kBench),
    own("length-scale", K::number, "1", "multiplies every length of a workload", kSimulate),
    own("step-table", K::path, "R1 on 16 H200", "JSON of measured step times", kSimulate),
    own("host-step-us", K::number, "100", "time to plan and commit one step", kSimulate),
    own("slo-ttft-ms", K::number, "2000", "goodput counts requests within it", kSimulate | kBench),
    own("slo-tpot-ms", K::number, "100", "goodput counts requests within it", kSimulate | kBench),
    own("output", K::path, "", "also write the JSON report to this file", kSimulate),
    own("plot", K::path, "", "write an SVG plot to this file", kSimulate),
    own("write-trace", K::path, "", "write the trace that was simulated as JSON lines", kSimulate),
    own("write-requests", K::path, "", "write each request's times as JSON lines", kSimulate),

    // SGLang, list A
    honoured("model-path",
             K::path,
             "required",
             "model directory, or a name in the local HF cache",
             "model"),
    honoured("tokenizer-path", K::path, "--model-path", "directory of tokenizer and template"),
    honoured("served-model-name", K::text, "--model-path", "name in /v1/models and in replies"),
    honoured("host", K::text, "127.0.0.1", "address to serve on"),
    honoured("port", K::integer, "30000", "port to serve on; opens when the model can answer"),
    honoured("tp-size",
             K::integer,
             "1",
             "tensor-parallel ranks over all nodes",
             "tensor-parallel-size,tp"),
    honoured("nnodes", K::integer, "1 or LWS_GROUP_SIZE", "number of nodes"),
    honoured("node-rank", K::integer, "0 or LWS_WORKER_INDEX", "this node's number"),
    honoured("dist-init-addr",
             K::text,
             "LWS_LEADER_ADDRESS:20000",
             "host:port of node 0",
             "nccl-init-addr"),
    implied("trust-remote-code", K::toggle, "hadal never runs code from a checkpoint"),
    simulated(
        honoured("context-length", K::integer, "config.json", "most tokens of prompt plus answer")),
    honoured(
        "mem-fraction-static", K::number, "0.85", "share of free memory for weights and KV pages"),
    simulated(honoured("max-running-requests", K::integer, "256", "most sequences in one step")),
    simulated(
        honoured("max-total-tokens", K::integer, "from memory", "size of the KV pool in tokens")),
    simulated(honoured("chunked-prefill-size",
                       K::integer,
                       "2048",
                       "prefill tokens of one step; -1 = prompts run whole")),
    simulated(honoured(
        "max-prefill-tokens", K::integer, "16384", "the same; a whole prompt alone may exceed it")),
    simulated(honoured("schedule-policy",
                       K::text,
                       "lpm",
                       "order of the queue",
                       "",
                       "lpm,random,fcfs,dfs-weight,priority")),
    simulated(honoured("schedule-conservativeness",
                       K::number,
                       "1.0",
                       "future output reserved at admission; larger = fewer retractions")),
    honoured("stream-interval", K::integer, "1", "tokens in one server-sent event"),
    refused(G::sglang_a, "stream-output", K::toggle, "the native /generate endpoint is not built"),
    simulated(honoured("random-seed", K::integer, "random", "seed of requests that bring none")),
    honoured("watchdog-timeout", K::number, "300", "most seconds that a step may ever take"),
    honoured("download-dir", K::path, "", "root of the HF cache to look --model-path up in"),
    honoured("revision", K::text, "main", "revision in the HF cache"),
    on_device(honoured("device",
                       K::text,
                       "auto",
                       "cuda, cpu, or auto: cuda when a usable GPU is visible",
                       "",
                       "auto,cpu,cuda")),
    honoured("base-gpu-id", K::integer, "0", "the GPU of this node's first rank"),
    simulated(honoured("log-level",
                       K::text,
                       "info",
                       "debug, info, warning or error",
                       "",
                       "debug,info,warning,error,critical")),
    honoured("log-level-http",
             K::text,
             "--log-level",
             "info also logs each request line",
             "",
             "debug,info,warning,error,critical"),
    honoured("log-requests", K::toggle, "", "one line per answered request, without its text"),
    refused(G::sglang_a,
            "show-time-cost",
            K::toggle,
            "it prints SGLang's own code marks; see /metrics"),
    honoured("decode-log-interval", K::integer, "40", "steps between two 'Decode batch' lines"),
    implied("enable-metrics", K::toggle, "/metrics is always on"),
    honoured("api-key", K::text, "none", "bearer token that requests must carry"),
    implied("enable-cache-report", K::toggle, "usage always tells cached_tokens"),
    honoured("chat-template", K::path, "checkpoint's", "Jinja file that replaces the template"),
    honoured("kv-cache-dtype",
             K::text,
             "auto",
             "auto: BF16 pages, float32 with --cpu-mode exact; fp8_e4m3: FP8 latents, BF16 rope",
             "",
             "auto,bf16,bfloat16,fp8_e4m3,float32"),
    limited("quantization",
            K::text,
            "config.json",
            "fp8",
            "weights are used in the format they are stored in"),
    limited("dtype",
            K::text,
            "auto",
            "auto,bfloat16",
            "weights are used in the format they are stored in"),
    honoured("load-format",
             K::text,
             "auto",
             "dummy: weights from the config alone",
             "",
             "auto,safetensors,dummy"),
    refused(G::sglang_a,
            "json-model-override-args",
            K::json,
            "the model is what its config.json says; edit a copy"),
    simulated(honoured("disable-radix-cache", K::toggle, "", "no prefix is reused")),
    cuda_only("disable-cuda-graph", K::toggle, "decode steps run op by op"),
    cuda_only("disable-cuda-graph-padding",
              K::toggle,
              "a step replays a CUDA graph only when its batch is a captured one"),
    cuda_only("cuda-graph-max-bs",
              K::integer,
              "largest decode batch with a CUDA graph: 256, or what runs at once if less"),
    cuda_only(
        "cuda-graph-bs", K::list, "decode batches with CUDA graphs; others are padded to the next"),
    cuda_only("disable-custom-all-reduce", K::toggle, "NCCL for every all-reduce"),
    cuda_only("enable-nccl-nvls", K::toggle, "NVLink SHARP"),
    cuda_only("enable-p2p-check", K::toggle, "test peer access before use"),
    simulated(honoured(
        "disable-overlap-schedule", K::toggle, "", "plan each step after the last one has ended")),
    implied("enable-mixed-chunk", K::toggle, "every step carries all running decodes"),
    refused(G::sglang_a, "enable-dp-attention", K::toggle, kNoDataParallel),
    honoured("enable-ep-moe", K::toggle, "", "cut MoE layers by expert: the same as --ep-size TP"),
    honoured("ep-size",
             K::integer,
             "1",
             "groups of ranks that hold different experts",
             "expert-parallel-size"),
    limited("dp-size", K::integer, "1", "1", kNoDataParallel, "data-parallel-size"),
    limited("load-balance-method", K::text, "round_robin", "round_robin", kNoDataParallel),
    refused(G::sglang_a, "speculative-algorithm", K::text, kNoSpeculation),
    refused(G::sglang_a, "speculative-draft-model-path", K::path, kNoSpeculation),
    refused(G::sglang_a, "speculative-num-steps", K::integer, kNoSpeculation),
    refused(G::sglang_a, "speculative-num-draft-tokens", K::integer, kNoSpeculation),
    refused(G::sglang_a, "speculative-eagle-topk", K::integer, kNoSpeculation),
    refused(G::sglang_a,
            "allow-auto-truncate",
            K::toggle,
            "a prompt that is too long is refused, never cut"),
    refused(G::sglang_a, "skip-tokenizer-init", K::toggle, "requests are text; see /tokenize"),
    limited("tool-call-parser",
            K::text,
            "by the tokenizer",
            "deepseekv3",
            "tool calls are parsed in DeepSeek-V3's format alone"),
    refused(G::sglang_a,
            "grammar-backend",
            K::text,
            "structured output is not built; requests for it get 400"),
    refused(G::sglang_a,
            "constrained-json-whitespace-pattern",
            K::text,
            "structured output is not built; requests for it get 400"),
    honoured(
        "enable-hierarchical-cache", K::toggle, "", "evicted KV pages are kept in host memory"),
    refused(G::sglang_a, "file-storage-pth", K::path, "/v1/files is not built"),
    limited("num-continuous-decode-steps", K::integer, "1", "1", "every step is planned"),
    refused(
        G::sglang_a, "enable-memory-saver", K::toggle, "memory cannot be released and taken back"),
    refused(G::sglang_a,
            "delete-ckpt-after-loading",
            K::toggle,
            "it deletes the model directory, which hadal keeps mapped"),
    implied(
        "enable-nan-detection", K::toggle, "logits that are not finite always fail the request"),

    // SGLang, list B
    later(honoured("dist-timeout", K::integer, "600", "seconds that nodes wait for each other")),
    later(honoured("reasoning-parser",
                   K::text,
                   "none",
                   "deepseek-r1: thoughts as reasoning_content",
                   "",
                   "deepseek-r1")),
    later(limited("pp-size", K::integer, "1", "1", kNoPipeline, "pipeline-parallel-size")),
    later(limited("page-size",
                  K::integer,
                  "64",
                  "64",
                  "pages hold 64 tokens; reuse is exact to the token all the same")),
    later(limited(
        "log-requests-level", K::integer, "0", "0", "the text of requests is never logged")),
    later(honoured("hicache-ratio",
                   K::number,
                   "2.0",
                   "host pages of the radix cache for each page of the KV pool")),
    later(honoured("hicache-size", K::integer, "by ratio", "the same in GB of host memory a node")),
    refused(G::sglang_b, "hicache-storage-path", K::path, "there is no disk tier"),
    refused(G::sglang_b, "hicache-storage-backend", K::text, "there is no disk tier"),
    simulated(later(honoured("radix-eviction-policy",
                             K::text,
                             "lru",
                             "which unused page of the radix cache goes first",
                             "",
                             "lru,lfu,priority"))),
    simulated(
        later(honoured("max-queued-requests", K::integer, "1024", "queue length; more gets 503"))),

    // SGLang, list C
    warned("attention-backend", K::text, "hadal has one attention per backend"),
    warned("sampling-backend", K::text, "hadal has one sampler"),
    warned("enable-flashinfer-mla", K::toggle, "hadal has its own MLA"),
    warned("triton-attention-reduce-in-fp32", K::toggle, kNoTriton),
    warned("triton-attention-num-kv-splits", K::integer, kNoTriton),
    warned("enable-torch-compile", K::toggle, "there is no PyTorch in hadal"),
    warned("torch-compile-max-bs", K::integer, "there is no PyTorch in hadal"),
    warned("disable-outlines-disk-cache", K::toggle, "there is no Outlines in hadal"),
    warned("disable-jump-forward", K::toggle, "there is no jump-forward decoding in hadal"),
    warned("enable-double-sparsity", K::toggle, kNoSparsity),
    warned("ds-channel-config-path", K::path, kNoSparsity),
    warned("ds-heavy-channel-num", K::integer, kNoSparsity),
    warned("ds-heavy-token-num", K::integer, kNoSparsity),
    warned("ds-heavy-channel-type", K::text, kNoSparsity),
    warned("ds-sparse-decode-threshold", K::integer, kNoSparsity),
    warned("cpu-offload-gb", K::integer, "weights are not offloaded"),
    warned("max-loras-per-batch", K::integer, "hadal loads no adapters"),
    warned("prefill-only-one-req", K::toggle, "a step prefills as many prompts as fit"),
    warned("tokenizer-mode", K::text, "hadal has one tokenizer"),
    refused(G::sglang_c, "lora-paths", K::list, kNoLora),
    refused(G::sglang_c, "lora-backend", K::text, kNoLora),
    refused(G::sglang_c, "is-embedding", K::toggle, "hadal generates text and embeds nothing"),
    refused(G::sglang_c, "torchao-config", K::text, "it would quantise the weights again"),
    refused(G::sglang_c, "quantization-param-path", K::path, "KV scales change the answers"),
    refused(G::sglang_c,
            "enable-custom-logit-processor",
            K::toggle,
            "requests cannot bring Python code"),
    refused(G::sglang_c, "return-hidden-states", K::toggle, "replies carry no hidden states"),
    refused(G::sglang_c, "disable-mla", K::toggle, "MLA is the only attention hadal has"),
};

}  // namespace

std::span<const FlagSpec> flag_table() {
  return kFlags;
}

bool list_contains(std::string_view list, std::string_view value) {
  while (!list.empty()) {
    const size_t comma = list.find(',');
    if (list.substr(0, comma) == value) {
      return true;
    }
    if (comma == std::string_view::npos) {
      break;
    }
    list.remove_prefix(comma + 1);
  }
  return false;
}

const FlagSpec* find_flag(std::string_view name) {
  for (const FlagSpec& flag : kFlags) {
    if (flag.name == name || list_contains(flag.aliases, name)) {
      return &flag;
    }
  }
  return nullptr;
}

}  // namespace hadal
