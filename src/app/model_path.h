// From `--model-path` to a directory: a directory as it is, or `org/name` in the local Hugging Face
// cache. hadal downloads nothing.
#pragma once

#include <filesystem>
#include <string>

#include <hadal/base/result.h>

#include "environment.h"

namespace hadal {

struct ModelQuery {
  std::string name;                         ///< directory, or org/name
  std::string revision = "main";            ///< branch or commit, cache only
  std::filesystem::path download_dir = {};  ///< cache root; empty = $HF_HOME/hub or ~/.cache/...
};

/// not_found tells every place that was looked at.
Result<std::filesystem::path> find_model_dir(const ModelQuery& query,
                                             const Environment& environment);

}  // namespace hadal
