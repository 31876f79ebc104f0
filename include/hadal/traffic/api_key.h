// An API key and what its holder may use.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace hadal {

/// How urgent a key's requests are; also the order in which overload refuses them, last first.
enum class TrafficClass : uint8_t { interactive, normal, batch };

/// "interactive", "default", "batch".
std::string_view class_name(TrafficClass traffic_class);
/// False when there is no class of that name.
bool parse_class(std::string_view name, TrafficClass& out);

/// What a class multiplies a key's weight by: with work for both, a class gets four times what the
/// next one gets, and the last is never starved.
double class_weight(TrafficClass traffic_class);
/// GenerateRequest::priority of requests that name none.
int32_t class_priority(TrafficClass traffic_class);

struct ApiKeyLimits {
  double requests_per_minute = 0;  ///< 0 = any, as the next two
  double tokens_per_minute = 0;    ///< prompt and generated
  int32_t concurrency = 0;         ///< requests at once
};

struct ApiKey {
  std::string name;    ///< of the tenant: in logs, metrics and fair shares
  std::string secret;  ///< what "Authorization: Bearer" carries
  double weight = 1.0;
  TrafficClass traffic_class = TrafficClass::normal;
  ApiKeyLimits limits;
};

}  // namespace hadal
