// What all nodes of a group must have in common, as named fields, so that a difference can be named
// before the first step instead of found in wrong answers.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <hadal/base/result.h>

namespace hadal {

/// A flag with its value, or a file with its digest.
struct IdentityField {
  std::string name;
  std::string value;
};

using Identity = std::vector<IdentityField>;

/// One line that names the first field that differs, with both values; nullopt when none does.
std::optional<std::string> first_difference(const Identity& ours, const Identity& theirs);

/// Digests of what a model directory holds: config.json, generation_config.json, the tokenizer's
/// files, the headers of all safetensors files, and the names and sizes of these files. Tensor data
/// is never read. `with_weights` false (dummy weights) leaves the safetensors files out.
/// not_found or data_loss name the file.
Result<Identity> model_identity(const std::filesystem::path& model_dir, bool with_weights);

}  // namespace hadal
