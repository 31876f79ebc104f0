// The executable: parse, dispatch, exit code.
#include <cstdio>

#include "api_key_file.h"
#include "cli.h"
#include "commands.h"
#include "device.h"
#include "exit_code.h"
#include "files.h"
#include "traffic_file.h"

namespace hadal {

namespace {

int fail(int code, const std::string& message) {
  std::fprintf(stderr, "hadal: %s\n", message.c_str());
  return code;
}

Result<FlagValues> read_config_file(const CommandLine& line) {
  const auto found = line.values.find("config");
  if (found == line.values.end()) {
    return FlagValues{};
  }
  const std::string& path = found->second.back();
  auto text = read_small_file(path, 1 << 20);
  if (!text) {
    return Error{text.error().code, "--config: " + text.error().message};
  }
  return parse_config_file(text.value(), path, line.command);
}

/// Commands that run or plan a model on a device of choice.
bool has_device(FlagCommands command) {
  return command == kServe || command == kGenerate || command == kCheck || command == kRank ||
         command == kReplay;
}

/// The files that rank 0 goes by.
Status read_traffic(Config& config) {
  if (config.layout.node_rank > 0 || config.rank.rank > 0) {
    return ok_status();
  }
  HADAL_RETURN_IF_ERROR(apply_traffic_file(config));
  if (config.api_key_file.empty()) {
    return ok_status();
  }
  auto keys = load_api_keys(config.api_key_file);
  if (!keys) {
    return keys.error();
  }
  config.api.keys = std::move(keys).value();
  return ok_status();
}

int run(const std::vector<std::string>& arguments) {
  auto line = parse_command_line(arguments);
  if (!line) {
    return fail(kExitUsage, line.error().message);
  }
  if (line.value().immediate_output) {
    std::fputs(line.value().immediate_output->c_str(), stdout);
    return kExitOk;
  }
  auto file_values = read_config_file(line.value());
  if (!file_values) {
    return fail(kExitUsage, file_values.error().message);
  }
  const Environment environment = read_environment();
  const std::vector<std::string>& words = line.value().words;
  const FlagCommands command = line.value().command;
  const bool is_sched_bench = command == kBench && !words.empty() && words.front() == "sched";
  const bool is_serve_bench = command == kBench && !words.empty() && words.front() == "serve";
  const bool is_plan_bench = command == kBench && !words.empty() && words.front() == "plan";
  auto config = build_config(line.value().values,
                             file_values.value(),
                             environment,
                             is_sched_bench ? kSimulate : command);  // neither reads a model
  if (!config) {
    return fail(kExitUsage, config.error().message);
  }
  set_log_level(config.value().log_level);
  if (has_device(command)) {
    if (Status device = resolve_device(config.value()); !device) {
      return fail(kExitUsage, device.error().message);
    }
  }
  if (command == kServe || command == kCheck || command == kRank) {
    if (Status traffic = read_traffic(config.value()); !traffic) {
      return fail(kExitUsage, traffic.error().message);
    }
  }
  for (const std::string& warning : config.value().warnings) {
    log_warning(warning);
  }
  switch (command) {
    case kServe:
      return run_serve(config.value(), environment);
    case kGenerate:
      return run_generate(config.value(), environment, words.front());
    case kCheck:
      return run_check(config.value(), environment);
    case kBench:
      return is_sched_bench   ? run_bench_sched(config.value())
             : is_plan_bench  ? run_bench_plan(config.value())
             : is_serve_bench ? run_bench_serve(config.value())
                              : run_bench(config.value(), environment, words);
    case kRank:
      return run_rank(config.value(), environment);
    case kReplay:
      return run_replay(config.value(), environment, words.front());
    case kShard:
      return run_shard(config.value(), environment);
    case kDoctor:
      return run_doctor(config.value(), environment);
    case kSimulate:
      return run_simulate(config.value(), words.front());
    case kAllCommands:
      break;
  }
  return fail(kExitInternal, "a command without code");
}

}  // namespace

}  // namespace hadal

int main(int argc, char** argv) {
  return hadal::run({argv + 1, argv + argc});
}
