// generation_config.json: the checkpoint's own sampling defaults and stop tokens.
#pragma once

#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include <hadal/base/result.h>
#include <hadal/text/token.h>

namespace hadal {

struct GenerationConfig {
  std::vector<TokenId> eos_token_ids;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;
  std::optional<double> repetition_penalty;
};

/// data_loss names the field that is not what it should be. `do_sample: false` means temperature 0.
Result<GenerationConfig> parse_generation_config(std::string_view json);

/// The file of a model directory; one without it has no defaults. Errors name the file.
Result<GenerationConfig> load_generation_config(const std::filesystem::path& model_dir);

}  // namespace hadal
