// The file of `--api-key-file`: who may call, and how much.
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

#include <hadal/base/result.h>
#include <hadal/traffic/api_key.h>

namespace hadal {

class JsonFields;

/// {"keys": [{"name", "key", "weight", "class", "requests_per_minute", "tokens_per_minute",
/// "concurrency"}, ...]}, all but name and key optional; 1 to 4096 keys. invalid_argument says what
/// was wrong where, never a key; `origin` names the text.
Result<std::vector<ApiKey>> parse_api_keys(std::string_view text, std::string_view origin);
Result<std::vector<ApiKey>> load_api_keys(const std::filesystem::path& path);

/// Weight, class and limits, each optional.
void read_key_limits(JsonFields& fields, ApiKey& key);

}  // namespace hadal
