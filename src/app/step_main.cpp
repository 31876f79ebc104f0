// `hadal bench step` as an executable of its own, for GPU machines that lack the libraries of the
// server (scripts/bench-gpu.sh). Takes the same flags.
#include <cstdio>

#include "bench_step.h"
#include "cli.h"
#include "exit_code.h"

namespace hadal {

namespace {

int run(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"bench", "step"});
  const auto fail = [](const Error& error) {
    std::fprintf(stderr, "hadal_step: %s\n", error.message.c_str());
    return kExitUsage;
  };
  const auto line = parse_command_line(arguments);
  if (!line) {
    return fail(line.error());
  }
  if (line.value().immediate_output) {
    std::fputs(line.value().immediate_output->c_str(), stdout);
    return kExitOk;
  }
  const Environment environment = read_environment();
  const auto config = build_config(line.value().values, {}, environment, kBench);
  if (!config) {
    return fail(config.error());
  }
  for (const std::string& warning : config.value().warnings) {
    std::fprintf(stderr, "hadal_step: %s\n", warning.c_str());
  }
  return run_bench_step(config.value(), environment);
}

}  // namespace

}  // namespace hadal

int main(int argc, char** argv) {
  return hadal::run({argv + 1, argv + argc});
}
