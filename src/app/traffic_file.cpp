// See traffic_file.h. The README's section on traffic shows the file with its defaults.
#include "traffic_file.h"

#include <nlohmann/json.hpp>

#include "api_key_file.h"
#include "files.h"
#include "json_fields.h"

namespace hadal {

namespace {

using nlohmann::json;

constexpr int64_t kFileBytesMax = 1 << 20;
constexpr double kDay = 86'400;
constexpr double kQuickHangSeconds = 10;  ///< a step of a GPU, or of no model, takes no seconds

void read_gates(JsonFields& fields, const std::string& where, Config& config, std::string& error) {
  HttpLimits& limits = config.api.limits;
  const auto is_free = [&](const char* flag) { return !config.given.contains(flag); };
  JsonFields accept(fields.object("accept"), where + "accept", error);
  int32_t connections = limits.connections_max;
  accept.number("connections", 1, 1e6, connections);
  if (is_free("max-connections"))
    limits.connections_max = connections;
  accept.number("idle_s", 1, kDay, limits.idle_timeout_s);
  accept.check_names();

  JsonFields bytes(fields.object("bytes"), where + "bytes", error);
  bytes.number("head", 1024, 1 << 20, limits.header_bytes_max);
  bytes.number("head_fields", 8, 10'000, limits.header_fields_max);
  bytes.number("head_s", 0.1, kDay, limits.header_timeout_s);
  bytes.number("body", 1024, 1 << 30, limits.body_bytes_max);
  bytes.number("body_s", 0.1, kDay, limits.body_timeout_s);
  bytes.number("all_bodies", 1024, 1e12, limits.buffered_body_bytes_max);
  bytes.check_names();

  JsonFields identity(fields.object("anonymous"), where + "anonymous", error);
  read_key_limits(identity, config.api.traffic.anonymous);
  identity.check_names();

  JsonFields queue(fields.object("queue"), where + "queue", error);
  EngineConfig& engine = config.engine;
  int32_t requests = engine.max_queued_requests;
  double wait_s = engine.max_queue_wait_s;
  queue.number("requests", 1, 1e6, requests);
  queue.number("tokens", 1, 1e12, engine.max_queued_tokens);
  queue.number("wait_s", 0, kDay, wait_s);
  queue.check_names();
  if (is_free("max-queued-requests"))
    engine.max_queued_requests = requests;
  if (is_free("max-queue-wait-ms"))
    engine.max_queue_wait_s = wait_s;

  JsonFields text(fields.object("text"), where + "text", error);
  text.number("waiting", 1, 1e6, limits.text_jobs_max);
  text.number("threads", 1, 1024, config.api.text_threads);
  text.check_names();
}

/// Numbers that rise (or fall) from one to the next.
template <class Numbers>
void read_steps(JsonFields& fields, const char* name, size_t count_max, Numbers& out) {
  const json* list = fields.list(name);
  if (list == nullptr)
    return;
  double last = 0;
  bool is_good = list->size() <= count_max;
  for (const json& item : *list) {
    const double number = item.is_number() ? item.get<double>() : -1;
    is_good = is_good && number > last && number <= 10;
    last = number;
  }
  if (!is_good) {
    fields.fail(std::string(name) + ": expected at most " + std::to_string(count_max) +
                " rising numbers");
    return;
  }
  if constexpr (requires { out.resize(1); }) {
    out.resize(list->size());
  } else if (list->size() != out.size()) {
    fields.fail(std::string(name) + ": expected " + std::to_string(out.size()) + " numbers");
    return;
  }
  for (size_t i = 0; i < list->size(); ++i)
    out[i] = (*list)[i].template get<double>();
}

void read_policies(JsonFields& fields,
                   const std::string& where,
                   TrafficConfig& traffic,
                   std::string& error) {
  JsonFields ladder(fields.object("ladder"), where + "ladder", error);
  ladder.toggle("enabled", traffic.ladder.is_enabled);
  read_steps(ladder, "enter", kLadderLevels, traffic.ladder.enter);
  ladder.number("leave_below", 0, 1, traffic.ladder.leave_below);
  ladder.number("leave_after_s", 0, kDay, traffic.ladder.leave_after_s);
  ladder.number("memory_s", 0.01, kDay, traffic.ladder.memory_s);
  ladder.number("default_max_tokens", 1, 1e9, traffic.ladder.default_max_tokens);
  ladder.check_names();

  JsonFields breaker(fields.object("breaker"), where + "breaker", error);
  breaker.number("hang_s", 0, kDay, traffic.breaker.hang_s);
  breaker.number("hang_steps", 1, 1e6, traffic.breaker.hang_steps);
  breaker.number("cooldown_s", 0.01, kDay, traffic.breaker.cooldown_s);
  breaker.number("cooldown_max_s", 0.01, kDay, traffic.breaker.cooldown_max_s);
  breaker.number("canary_deadline_s", 0.01, kDay, traffic.breaker.canary_deadline_s);
  breaker.number("passes", 1, 100, traffic.breaker.passes);
  read_steps(breaker, "ramp", 16, traffic.breaker.ramp);
  breaker.number("ramp_step_s", 0.01, kDay, traffic.breaker.ramp_step_s);
  breaker.check_names();

  JsonFields quarantine(fields.object("quarantine"), where + "quarantine", error);
  quarantine.number("failures", 0, 100, traffic.quarantine.failures);
  quarantine.number("seconds", 1, kDay, traffic.quarantine.seconds);
  quarantine.check_names();
}

}  // namespace

Status apply_traffic_text(std::string_view text, std::string_view origin, Config& config) {
  Config changed = config;
  if (config.runner.null_step_us || config.runner.device == DeviceType::cuda)
    changed.api.traffic.breaker.hang_s = kQuickHangSeconds;
  auto parsed = parse_json_object(text, origin);
  if (!parsed)
    return parsed.error();
  std::string error;
  const std::string where = std::string(origin) + ": ";
  JsonFields fields(parsed.value(), std::string(origin), error);
  read_gates(fields, where, changed, error);
  read_policies(fields, where, changed.api.traffic, error);
  fields.check_names();
  if (!error.empty())
    return Error{ErrorCode::invalid_argument, error};
  config = std::move(changed);
  return ok_status();
}

Status apply_traffic_file(Config& config) {
  if (config.traffic_file.empty())
    return apply_traffic_text("{}", "defaults", config);
  auto text = read_small_file(config.traffic_file, kFileBytesMax);
  if (!text)
    return Error{ErrorCode::invalid_argument, "--traffic-config: " + text.error().message};
  return apply_traffic_text(
      text.value(), "--traffic-config " + config.traffic_file.string(), config);
}

}  // namespace hadal
