// Strict, because a misspelt limit is no limit, and a file without keys would open the server.
#include "api_key_file.h"

#include <algorithm>
#include <set>
#include <string>

#include "files.h"
#include "json_fields.h"

namespace hadal {

namespace {

using nlohmann::json;

constexpr int64_t kFileBytesMax = 1 << 20;
constexpr size_t kKeysMax = 4096;
constexpr size_t kSecretBytesMin = 8;
constexpr size_t kSecretBytesMax = 512;

bool is_name(const std::string& text) {
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  });
}

bool is_secret(const std::string& text) {
  return text.size() >= kSecretBytesMin && text.size() <= kSecretBytesMax &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7F; });
}

}  // namespace

void read_key_limits(JsonFields& fields, ApiKey& key) {
  constexpr double kMost = 1e12;
  fields.number("weight", 0.01, 1000, key.weight);
  if (fields.has("class") && !parse_class(fields.text("class"), key.traffic_class))
    fields.fail("class: expected interactive, default or batch");
  fields.number("requests_per_minute", 0, kMost, key.limits.requests_per_minute);
  fields.number("tokens_per_minute", 0, kMost, key.limits.tokens_per_minute);
  fields.number("concurrency", 0, 1'000'000, key.limits.concurrency);
}

namespace {

ApiKey read_key(JsonFields& reader) {
  ApiKey key;
  key.name = reader.text("name");
  if (!is_name(key.name))
    reader.fail("name: expected 1 to 64 of letters, digits, '-', '_', '.'");
  key.secret = reader.text("key");
  if (!is_secret(key.secret))
    reader.fail("key: expected 8 to 512 visible ASCII characters");
  read_key_limits(reader, key);
  reader.check_names();
  return key;
}

}  // namespace

Result<std::vector<ApiKey>> parse_api_keys(std::string_view text, std::string_view origin) {
  const auto fail = [&](const std::string& what) {
    return Error{ErrorCode::invalid_argument, std::string(origin) + ": " + what};
  };
  auto parsed = parse_json_object(text, origin);
  if (!parsed)
    return parsed.error();
  const json& document = parsed.value();
  if (document.size() != 1 || !document.contains("keys") || !document["keys"].is_array())
    return fail("expected {\"keys\": [...]} and nothing else");
  const json& entries = document["keys"];
  if (entries.empty() || entries.size() > kKeysMax)
    return fail("expected 1 to " + std::to_string(kKeysMax) + " keys, found " +
                std::to_string(entries.size()));
  std::vector<ApiKey> keys;
  std::set<std::string> names;
  std::set<std::string> secrets;
  for (const json& entry : entries) {
    const std::string where = "key " + std::to_string(keys.size() + 1);
    std::string error;
    JsonFields reader(entry, where, error);
    if (!error.empty())
      return fail(error);
    keys.push_back(read_key(reader));
    if (!names.insert(keys.back().name).second)
      reader.fail("the name is another key's, too");
    if (!secrets.insert(keys.back().secret).second)
      reader.fail("it is the same as another key");
    if (!error.empty())
      return fail(error);
  }
  return keys;
}

Result<std::vector<ApiKey>> load_api_keys(const std::filesystem::path& path) {
  auto text = read_small_file(path, kFileBytesMax);
  if (!text)
    return Error{ErrorCode::invalid_argument, "--api-key-file: " + text.error().message};
  return parse_api_keys(text.value(), "--api-key-file " + path.string());
}

}  // namespace hadal
