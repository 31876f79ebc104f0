// Making the parts. Loading may take minutes, so it reports how far it is.
#include "assembly.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <utility>

#include <hadal/runtime/wrapped_runner.h>

#include "device.h"
#include "files.h"

namespace hadal {

namespace {

/// Limits of the null runner: large enough that only requests and the scheduler bound a test.
constexpr int32_t kNullPages = 4096;
constexpr int32_t kNullStepTokens = 8192;
constexpr int32_t kNullContext = 32768;

/// A prompt chunk of this many tokens keeps a CPU busy; more would only cost work space.
constexpr int32_t kStepTokensDefault = 2048;

int32_t step_tokens(const Config& config) {
  const int32_t prefill =
      config.engine.max_prefill_tokens > 0 ? config.engine.max_prefill_tokens : kStepTokensDefault;
  const int32_t chunk = config.engine.chunked_prefill_tokens;
  const int32_t useful = chunk > 0 ? std::max(chunk, kStepTokensDefault) : prefill;
  return std::min(prefill, useful) + config.engine.max_running_requests;
}

constexpr std::chrono::seconds kCaptureLogInterval{1};

/// "CUDA graphs captured in 1.20 s, 85.3 MB: batches 1 2 4, sequences up to 4096 163840 tokens".
std::string capture_text(const CaptureReport& report) {
  char text[96];
  std::snprintf(text,
                sizeof text,
                "CUDA graphs captured in %.2f s, %.1f MB: batches",
                report.seconds,
                static_cast<double>(report.bytes) / 1e6);
  std::string line = text;
  for (const int32_t batch : report.batches) {
    line += " " + std::to_string(batch);
  }
  line += ", sequences up to";
  for (const int32_t length : report.lengths) {
    line += " " + std::to_string(length);
  }
  return line + " tokens";
}

/// `--disable-overlap-schedule`: the same runner, but one step at a time.
class SerialRunner final : public WrappedRunner {
 public:
  explicit SerialRunner(std::unique_ptr<Runner> runner)
      : WrappedRunner(std::move(runner)), limits_(WrappedRunner::limits()) {
    limits_.max_steps_in_flight = 1;
  }

  const RunnerLimits& limits() const override { return limits_; }

 private:
  RunnerLimits limits_;
};

/// The null runner as a large model would look to the scheduler.
NullRunnerConfig null_runner_config(const Config& config, int32_t vocab_size) {
  NullRunnerConfig result;
  result.step_us = *config.runner.null_step_us;
  RunnerLimits& limits = result.limits;
  const int64_t pages = config.runner.kv_tokens_max / kPageTokens;
  limits.num_pages =
      pages > 0 ? static_cast<int32_t>(std::min<int64_t>(pages, 1 << 24)) : kNullPages;
  limits.max_step_tokens = kNullStepTokens;
  limits.max_slots = config.engine.max_running_requests;
  limits.max_context_tokens =
      config.model.context_length > 0 ? config.model.context_length : kNullContext;
  limits.vocab_size = vocab_size;
  limits.max_steps_in_flight = 2;
  return result;
}

}  // namespace

ModelRunnerConfig runner_config(const Config& config, const std::filesystem::path& model_dir) {
  ModelRunnerConfig result;
  result.model_dir = model_dir;
  result.load_format = config.model.load_format;
  result.device = config.runner.device;
  result.base_gpu_id = config.runner.base_gpu_id;
  result.kernel_family = config.runner.kernel_family;
  result.enable_nccl_nvls = config.runner.enable_nccl_nvls;
  result.e4m3_activations =
      config.runner.device == DeviceType::cuda && config.runner.fp8_activations;
  result.cpu_mode = config.runner.cpu_mode;
  result.is_deterministic = config.runner.is_deterministic;
  result.num_threads = config.runner.cpu_threads;
  result.kv_dtype = config.runner.kv_dtype;
  result.tp = config.layout.tp_size;
  result.ep = config.layout.ep_size;
  result.context_length = config.model.context_length;
  result.max_total_tokens = config.runner.kv_tokens_max;
  result.memory_fraction = config.runner.memory_fraction;
  result.host_cache_ratio = config.runner.host_cache_ratio;
  result.host_cache_bytes = config.runner.host_cache_gb * 1'000'000'000;
  result.graphs = config.runner.graphs;
  result.max_slots = config.engine.max_running_requests;
  result.max_step_tokens = step_tokens(config);
  return result;
}

void report_start(ModelRunnerConfig& config, const PhaseFn& on_phase) {
  const auto end_phase = [on_phase](const char* name) {
    if (on_phase) {
      on_phase(name);
    }
  };
  config.progress = [](const LoadProgress& progress) {
    log_info("Loading: " + progress_text(progress));
  };
  config.on_loaded = [end_phase](const LoadReport& report) {
    char text[64];
    std::snprintf(text,
                  sizeof text,
                  "Weights are in after %.2f s, %.2f GB of files",
                  report.seconds,
                  static_cast<double>(report.file_bytes) / 1e9);
    log_info(text);
    end_phase("weights");
  };
  config.on_prepared = [end_phase] { end_phase("KV pool"); };
  config.on_capture = [last = system_clock().now()](size_t done, size_t all) mutable {
    const TimePoint now = system_clock().now();
    if (now - last >= kCaptureLogInterval) {
      last = now;
      log_info("CUDA graphs: " + std::to_string(done) + " of " + std::to_string(all));
    }
  };
  config.on_captured = [end_phase](const CaptureReport& report) {
    if (!report.batches.empty()) {
      log_info(capture_text(report));
      end_phase("CUDA graphs");
    }
  };
}

Status check_quantization(const Config& config, const std::filesystem::path& model_dir) {
  if (!config.model.requires_fp8) {
    return ok_status();
  }
  auto model = load_deepseek_config(model_dir);
  if (!model) {
    return model.error();
  }
  if (!model.value().is_fp8) {
    return Error{ErrorCode::unsupported,
                 "--quantization fp8: expected an FP8 checkpoint; " + model_dir.string() +
                     " is not, and hadal does not quantise"};
  }
  return ok_status();
}

Result<std::unique_ptr<Runner>> make_runner(const Config& config,
                                            const std::filesystem::path& model_dir,
                                            int32_t null_vocab_size,
                                            const PhaseFn& on_phase) {
  std::unique_ptr<Runner> runner;
  if (config.runner.null_step_us) {
    runner = make_null_runner(null_runner_config(config, null_vocab_size));
    const auto& fault = config.runner.null_fault;
    if (fault && fault->rank == std::max(config.rank.rank, 0)) {
      runner = plant_fault(std::move(runner), *fault);
    }
  } else {
    HADAL_RETURN_IF_ERROR(check_quantization(config, model_dir));
    log_info("Device: " + device_text(config));
    ModelRunnerConfig model_config = runner_config(config, model_dir);
    report_start(model_config, on_phase);
    auto made = make_model_runner(model_config);
    if (!made) {
      return made.error();
    }
    runner = std::move(made).value();
  }
  if (!config.runner.plans_ahead) {
    runner = std::make_unique<SerialRunner>(std::move(runner));
  }
  return runner;
}

Result<TextParts> load_text_parts(const Config& config, const std::filesystem::path& model_dir) {
  const std::filesystem::path dir =
      config.model.tokenizer_path.empty() ? model_dir : config.model.tokenizer_path;
  auto tokenizer = Tokenizer::load(dir);
  if (!tokenizer) {
    return tokenizer.error();
  }
  if (config.model.chat_template.empty()) {
    auto chat_template = ChatTemplate::load(dir);
    if (!chat_template) {
      return chat_template.error();
    }
    return TextParts{std::move(tokenizer).value(), std::move(chat_template).value()};
  }
  auto source = read_small_file(config.model.chat_template, 1 << 20);
  if (!source) {
    return Error{source.error().code, "--chat-template: " + source.error().message};
  }
  auto chat_template = ChatTemplate::parse(source.value());
  if (!chat_template) {
    return Error{chat_template.error().code,
                 config.model.chat_template.string() + ": " + chat_template.error().message};
  }
  return TextParts{std::move(tokenizer).value(), std::move(chat_template).value()};
}

std::vector<TokenId> stop_tokens(const GenerationConfig& config, const Tokenizer& tokenizer) {
  std::vector<TokenId> ids = config.eos_token_ids;
  auto eos = tokenizer.eos_id();
  if (!eos) {
    eos = tokenizer.added_token("<｜end▁of▁sentence｜>");
  }
  if (ids.empty() && eos) {
    ids.push_back(*eos);
  }
  return ids;
}

Error multi_node_error(const LayoutOptions& layout) {
  return Error{ErrorCode::unsupported,
               "--nnodes " + std::to_string(layout.num_nodes) +
                   ": this version runs all ranks in one process on one node"};
}

int64_t available_memory_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string name;
  int64_t kilobytes = 0;
  std::string unit;
  while (meminfo >> name >> kilobytes) {
    std::getline(meminfo, unit);
    if (name == "MemAvailable:") {
      return kilobytes * 1024;
    }
  }
  return 0;
}

}  // namespace hadal
