// From the configuration to the parts that commands share: runner, tokenizer, chat template.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include <hadal/base/result.h>
#include <hadal/runtime/model_runner.h>
#include <hadal/runtime/runner.h>
#include <hadal/text/chat_template.h>
#include <hadal/text/tokenizer.h>

#include "config.h"
#include "generation_config.h"

namespace hadal {

/// What turns messages into ids and ids into text.
struct TextParts {
  Tokenizer tokenizer;
  ChatTemplate chat_template;
};

/// How the runner is made; `model_dir` as find_model_dir() gave it.
ModelRunnerConfig runner_config(const Config& config, const std::filesystem::path& model_dir);

/// Called with the name of each part of a start when it is done.
using PhaseFn = std::function<void(const std::string&)>;

/// Shows in the log how far loading and the capture of graphs are, and tells `on_phase`, which may
/// be empty.
void report_start(ModelRunnerConfig& config, const PhaseFn& on_phase);

/// The model's runner, or the null runner with limits of a large model. Shows loading progress in
/// the log. A null runner's vocabulary is `null_vocab_size`.
Result<std::unique_ptr<Runner>> make_runner(const Config& config,
                                            const std::filesystem::path& model_dir,
                                            int32_t null_vocab_size,
                                            const PhaseFn& on_phase = {});

/// unsupported when `--quantization fp8` meets a checkpoint in another format.
Status check_quantization(const Config& config, const std::filesystem::path& model_dir);

/// From `--tokenizer-path` or the model directory, and `--chat-template`.
Result<TextParts> load_text_parts(const Config& config, const std::filesystem::path& model_dir);

/// The ids that end an answer: the file's, or without any the tokenizer's end of sequence.
std::vector<TokenId> stop_tokens(const GenerationConfig& config, const Tokenizer& tokenizer);

/// Why a layout of several nodes is not served.
Error multi_node_error(const LayoutOptions& layout);

/// Memory that the kernel would give out now.
int64_t available_memory_bytes();

}  // namespace hadal
