// Reading and writing traces. A trace is a file that someone hands over: every number is bounded
// before it is used.
#include <cmath>
#include <limits>
#include <optional>

#include <nlohmann/json.hpp>

#include <hadal/sim/trace.h>

#include "random.h"

namespace hadal::sim {
namespace {

using nlohmann::json;

constexpr int32_t kMooncakeBlockTokens = 512;
constexpr int64_t kMaxTokens = int64_t{1} << 24U;
constexpr double kMaxSeconds = 1e9;
constexpr size_t kMaxRequests = 10'000'000;

/// Reads the fields of one line; the first wrong one is kept.
class LineReader {
 public:
  LineReader(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  double seconds(const char* name, double unit) {
    const json* value = find(name);
    if (value == nullptr)
      return 0.0;
    const double number = value->is_number() ? value->get<double>() * unit : -1.0;
    if (!(number >= 0.0 && number <= kMaxSeconds)) {
      fail(name, "a time from 0 to 1e9 seconds", *value);
      return 0.0;
    }
    return number;
  }

  int64_t integer(const char* name, int64_t low, int64_t high, int64_t otherwise) {
    const json* value = find(name);
    return value == nullptr ? otherwise : integer_of(name, *value, low, high);
  }

  int64_t integer_of(const char* name, const json& value, int64_t low, int64_t high) {
    if (value.is_number_unsigned() ? value.get<uint64_t>() <= static_cast<uint64_t>(high)
                                   : value.is_number_integer()) {
      if (const auto number = value.get<int64_t>(); number >= low && number <= high)
        return number;
    }
    fail(name, "an integer from " + std::to_string(low) + " to " + std::to_string(high), value);
    return low;
  }

  uint64_t seed_of(const char* name, const json& value) {
    if (value.is_number_unsigned())
      return value.get<uint64_t>();
    fail(name, "an unsigned integer", value);
    return 0;
  }

  std::string text(const char* name) {
    const json* value = find(name);
    if (value == nullptr)
      return {};
    if (!value->is_string() || value->get_ref<const std::string&>().size() > 256) {
      fail(name, "a string of at most 256 bytes", *value);
      return {};
    }
    return value->get<std::string>();
  }

  /// Null when it is absent; an error when it is required or no array.
  const json* array(const char* name) {
    const json* value = find(name);
    if (value == nullptr || !value->is_array()) {
      fail(name, "an array", value == nullptr ? json() : *value);
      return nullptr;
    }
    return value;
  }

  void require(bool holds, const char* name, const std::string& expected) {
    if (!holds)
      fail(name, expected, object_.contains(name) ? object_[name] : json());
  }

  const std::optional<Error>& error() const { return error_; }

 private:
  const json* find(const char* name) const {
    const auto found = object_.find(name);
    return found == object_.end() ? nullptr : &*found;
  }

  void fail(const char* name, const std::string& expected, const json& got) {
    std::string shown = got.is_null() ? "nothing" : got.dump();
    if (shown.size() > 60)
      shown = shown.substr(0, 60) + "...";
    if (!error_)
      error_ = Error{ErrorCode::invalid_argument,
                     where_ + ": " + name + ": expected " + expected + ", got " + shown};
  }

  const json& object_;
  std::string where_;
  std::optional<Error> error_;
};

SimRequest read_mooncake(LineReader& reader, uint64_t index) {
  SimRequest request;
  request.arrival_s = reader.seconds("timestamp", 1e-3);
  request.tenant = reader.text("tenant");
  const auto input_tokens = static_cast<int32_t>(reader.integer("input_length", 1, kMaxTokens, 0));
  request.output_tokens = static_cast<int32_t>(reader.integer("output_length", 0, kMaxTokens, 0));
  reader.require(input_tokens > 0, "input_length", "at least 1");
  request.output_tokens = std::max(request.output_tokens, 1);
  request.max_new_tokens = request.output_tokens;
  request.output_seed = mix(index ^ 0x6D6F6F6EU);
  const json* ids = reader.array("hash_ids");
  if (ids == nullptr)
    return request;
  const int32_t num_blocks = (input_tokens + kMooncakeBlockTokens - 1) / kMooncakeBlockTokens;
  reader.require(ids->size() == static_cast<size_t>(num_blocks),
                 "hash_ids",
                 std::to_string(num_blocks) + " ids for " + std::to_string(input_tokens) +
                     " tokens in blocks of 512");
  int32_t rest = input_tokens;
  for (const json& id : *ids) {
    const int64_t hash = reader.integer_of("hash_ids", id, 0, std::numeric_limits<int64_t>::max());
    const int32_t count = std::min(rest, kMooncakeBlockTokens);
    if (count > 0)
      request.prompt.push_back({mix(static_cast<uint64_t>(hash) ^ 0x6861736800U), 0, count});
    rest -= count;
  }
  return request;
}

SimRequest read_own(LineReader& reader, size_t index) {
  SimRequest request;
  request.arrival_s = reader.seconds("arrival_s", 1.0);
  request.after =
      static_cast<int32_t>(reader.integer("after", -1, static_cast<int64_t>(index) - 1, -1));
  request.tenant = reader.text("tenant");
  request.priority = static_cast<int32_t>(reader.integer("priority", -1'000'000, 1'000'000, 0));
  int64_t num_tokens = 0;
  if (const json* segments = reader.array("prompt")) {
    for (const json& segment : *segments) {
      reader.require(segment.is_array() && segment.size() == 3, "prompt", "[seed, begin, count]");
      if (reader.error())
        return request;
      const auto begin =
          static_cast<int32_t>(reader.integer_of("prompt", segment[1], 0, kMaxTokens));
      const auto count =
          static_cast<int32_t>(reader.integer_of("prompt", segment[2], 1, kMaxTokens));
      request.prompt.push_back({reader.seed_of("prompt", segment[0]), begin, count});
      num_tokens += count;
    }
  }
  reader.require(num_tokens > 0 && num_tokens <= kMaxTokens, "prompt", "1 to 16777216 tokens");
  if (const json* output = reader.array("output")) {
    reader.require(output->size() == 2, "output", "[seed, count]");
    if (reader.error())
      return request;
    request.output_seed = reader.seed_of("output", (*output)[0]);
    request.output_tokens =
        static_cast<int32_t>(reader.integer_of("output", (*output)[1], 1, kMaxTokens));
  }
  request.max_new_tokens = static_cast<int32_t>(
      reader.integer("max_new_tokens", request.output_tokens, kMaxTokens, request.output_tokens));
  return request;
}

}  // namespace

TokenId token_of(uint64_t seed, int32_t index) {
  const uint64_t hash = mix(seed + static_cast<uint64_t>(index) * 0xD1B54A32D192ED03U);
  return 1 + static_cast<TokenId>((hash >> 32U) * (kVocabSize - 1) >> 32U);
}

void append_tokens(const TokenSegment& segment, std::vector<TokenId>& out) {
  for (int32_t i = 0; i < segment.count; ++i)
    out.push_back(token_of(segment.seed, segment.begin + i));
}

int32_t SimRequest::num_prompt_tokens() const {
  int32_t count = 0;
  for (const TokenSegment& segment : prompt)
    count += segment.count;
  return count;
}

Result<Trace> read_trace(std::string_view jsonl, std::string name) {
  Trace trace;
  trace.name = std::move(name);
  int64_t line_number = 0;
  while (!jsonl.empty()) {
    const size_t end = std::min(jsonl.find('\n'), jsonl.size());
    const std::string_view line = jsonl.substr(0, end);
    jsonl.remove_prefix(std::min(end + 1, jsonl.size()));
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos)
      continue;
    const std::string where = trace.name + " line " + std::to_string(line_number);
    const json object = json::parse(line, nullptr, false);
    if (!object.is_object())
      return Error{ErrorCode::invalid_argument, where + ": expected one JSON object"};
    if (trace.requests.size() >= kMaxRequests)
      return Error{ErrorCode::invalid_argument, where + ": expected at most 10000000 requests"};
    LineReader reader(object, where);
    const size_t index = trace.requests.size();
    trace.requests.push_back(object.contains("hash_ids") ? read_mooncake(reader, index)
                                                         : read_own(reader, index));
    if (reader.error())
      return *reader.error();
  }
  if (trace.requests.empty())
    return Error{ErrorCode::invalid_argument, trace.name + ": expected at least one request"};
  return trace;
}

std::string write_trace(const Trace& trace) {
  std::string text;
  for (const SimRequest& request : trace.requests) {
    nlohmann::ordered_json object;
    object["arrival_s"] = std::round(request.arrival_s * 1e6) / 1e6;
    if (request.after >= 0)
      object["after"] = request.after;
    if (!request.tenant.empty())
      object["tenant"] = request.tenant;
    auto& prompt = object["prompt"] = nlohmann::ordered_json::array();
    for (const TokenSegment& segment : request.prompt)
      prompt.push_back({segment.seed, segment.begin, segment.count});
    object["output"] = {request.output_seed, request.output_tokens};
    if (request.max_new_tokens != request.output_tokens)
      object["max_new_tokens"] = request.max_new_tokens;
    if (request.priority != 0)
      object["priority"] = request.priority;
    text += object.dump() + "\n";
  }
  return text;
}

}  // namespace hadal::sim
