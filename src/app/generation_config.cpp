// Fields are read strictly: a string where a number belongs is an error, not a default.
#include "generation_config.h"

#include <cmath>

#include <nlohmann/json.hpp>

#include "files.h"

namespace hadal {

namespace {

using nlohmann::json;

constexpr int64_t kFileBytesMax = 1 << 20;

Error field_error(const char* name, const char* expected) {
  return Error{ErrorCode::data_loss, std::string(name) + ": expected " + expected};
}

Status read_number(
    const json& object, const char* name, double low, double high, std::optional<double>& out) {
  const auto found = object.find(name);
  if (found == object.end() || found->is_null()) {
    return ok_status();
  }
  if (!found->is_number()) {
    return field_error(name, "a number");
  }
  const double value = found->get<double>();
  if (!std::isfinite(value) || value < low || value > high) {
    return field_error(name, "a number in its range");
  }
  out = value;
  return ok_status();
}

Status read_eos(const json& object, std::vector<TokenId>& out) {
  const auto found = object.find("eos_token_id");
  if (found == object.end() || found->is_null()) {
    return ok_status();
  }
  const json ids = found->is_array() ? *found : json::array({*found});
  if (ids.size() > 256) {
    return field_error("eos_token_id", "at most 256 ids");
  }
  for (const json& id : ids) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
      return field_error("eos_token_id", "an id or a list of ids");
    }
    out.push_back(id.get<TokenId>());
  }
  return ok_status();
}

}  // namespace

Result<GenerationConfig> parse_generation_config(std::string_view text) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return Error{ErrorCode::data_loss, "expected a JSON object"};
  }
  GenerationConfig config;
  HADAL_RETURN_IF_ERROR(read_eos(object, config.eos_token_ids));
  HADAL_RETURN_IF_ERROR(read_number(object, "temperature", 0, 1e6, config.temperature));
  HADAL_RETURN_IF_ERROR(read_number(object, "top_p", 1e-9, 1, config.top_p));
  HADAL_RETURN_IF_ERROR(
      read_number(object, "repetition_penalty", 1e-3, 1e3, config.repetition_penalty));
  std::optional<double> top_k;
  HADAL_RETURN_IF_ERROR(read_number(object, "top_k", -1, 1e9, top_k));
  if (top_k) {
    config.top_k = static_cast<int64_t>(*top_k);
  }
  if (const auto sample = object.find("do_sample"); sample != object.end()) {
    if (!sample->is_boolean()) {
      return field_error("do_sample", "true or false");
    }
    if (!sample->get<bool>()) {
      config.temperature = 0;
    }
  }
  return config;
}

Result<GenerationConfig> load_generation_config(const std::filesystem::path& model_dir) {
  const std::filesystem::path file = model_dir / "generation_config.json";
  std::error_code error;
  if (!std::filesystem::exists(file, error)) {
    return GenerationConfig{};
  }
  auto text = read_small_file(file, kFileBytesMax);
  if (!text) {
    return text.error();
  }
  auto config = parse_generation_config(text.value());
  if (!config) {
    return Error{config.error().code, file.string() + ": " + config.error().message};
  }
  return config;
}

}  // namespace hadal
