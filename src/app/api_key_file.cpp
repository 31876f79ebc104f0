// Strict, because a misspelt limit is no limit, and a file without keys would open the server.
#include "api_key_file.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include <nlohmann/json.hpp>

#include "files.h"

namespace hadal {

namespace {

using nlohmann::json;

constexpr int kDepthMax = 8;
constexpr int64_t kFileBytesMax = 1 << 20;
constexpr size_t kKeysMax = 4096;
constexpr size_t kSecretBytesMin = 8;
constexpr size_t kSecretBytesMax = 512;

/// Reads one entry; the first thing that is wrong is kept.
class KeyReader {
 public:
  KeyReader(const json& entry, std::string where) : entry_(entry), where_(std::move(where)) {}

  const std::string& error() const { return error_; }

  void fail(const std::string& what) {
    if (error_.empty())
      error_ = where_ + ": " + what;
  }

  std::string text(const char* name) {
    const json* value = find(name);
    if (value == nullptr || !value->is_string()) {
      fail(std::string(name) + ": expected a string");
      return {};
    }
    return value->get<std::string>();
  }

  double number(const char* name, double low, double high, double if_absent) {
    const json* value = find(name);
    if (value == nullptr || value->is_null())
      return if_absent;
    const double number = value->is_number() ? value->get<double>() : std::nan("");
    if (!(number >= low && number <= high)) {
      fail(std::string(name) + ": expected a number in " + json(low).dump() + ".." +
           json(high).dump());
      return if_absent;
    }
    return number;
  }

  bool has(const char* name) { return find(name) != nullptr; }

  void check_names() {
    for (const auto& [name, value] : entry_.items()) {
      if (!known_.contains(name))
        fail("unknown member '" + name + "'");
    }
  }

 private:
  const json* find(const char* name) {
    known_.insert(name);
    const auto found = entry_.find(name);
    return found == entry_.end() ? nullptr : &*found;
  }

  const json& entry_;
  std::string where_;
  std::string error_;
  std::set<std::string> known_;
};

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

ApiKey read_key(KeyReader& reader) {
  constexpr double kMost = 1e12;
  ApiKey key;
  key.name = reader.text("name");
  if (!is_name(key.name))
    reader.fail("name: expected 1 to 64 of letters, digits, '-', '_', '.'");
  key.secret = reader.text("key");
  if (!is_secret(key.secret))
    reader.fail("key: expected 8 to 512 visible ASCII characters");
  key.weight = reader.number("weight", 0.01, 1000, 1.0);
  if (reader.has("class") && !parse_class(reader.text("class"), key.traffic_class))
    reader.fail("class: expected interactive, default or batch");
  key.limits.requests_per_minute = reader.number("requests_per_minute", 0, kMost, 0);
  key.limits.tokens_per_minute = reader.number("tokens_per_minute", 0, kMost, 0);
  key.limits.concurrency = static_cast<int32_t>(reader.number("concurrency", 0, 1'000'000, 0));
  reader.check_names();
  return key;
}

}  // namespace

Result<std::vector<ApiKey>> parse_api_keys(std::string_view text, std::string_view origin) {
  const auto fail = [&](const std::string& what) {
    return Error{ErrorCode::invalid_argument, std::string(origin) + ": " + what};
  };
  bool too_deep = false;
  const auto depth_guard = [&](int depth, json::parse_event_t, json&) {
    too_deep = too_deep || depth > kDepthMax;
    return depth <= kDepthMax;
  };
  const json document = json::parse(text, depth_guard, /*allow_exceptions=*/false);
  if (too_deep || !document.is_object() || document.size() != 1 || !document.contains("keys") ||
      !document["keys"].is_array())
    return fail("expected {\"keys\": [...]} as JSON");
  const json& entries = document["keys"];
  if (entries.empty() || entries.size() > kKeysMax)
    return fail("expected 1 to " + std::to_string(kKeysMax) + " keys, found " +
                std::to_string(entries.size()));
  std::vector<ApiKey> keys;
  std::set<std::string> names;
  std::set<std::string> secrets;
  for (const json& entry : entries) {
    const std::string where = "key " + std::to_string(keys.size() + 1);
    if (!entry.is_object())
      return fail(where + ": expected an object");
    KeyReader reader(entry, where);
    keys.push_back(read_key(reader));
    if (!names.insert(keys.back().name).second)
      reader.fail("the name is another key's, too");
    if (!secrets.insert(keys.back().secret).second)
      reader.fail("it is the same as another key");
    if (!reader.error().empty())
      return fail(reader.error());
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
