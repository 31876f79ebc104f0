// Reports name what made them, so that a number can be repeated.
#include "bench_report.h"

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "machine_roof.h"
#include "version.h"

namespace hadal {

namespace {

using nlohmann::json;

/// Of a path on this machine the last part: the rest says nothing about the measurement.
std::string told_value(const std::string& value) {
  const std::filesystem::path path(value);
  return path.is_absolute() ? path.filename().string() : value;
}

std::string command_text(const Config& config, std::string text) {
  for (const auto& [name, values] : config.given) {
    const FlagSpec* flag = find_flag(name);
    text += " --" + name;
    if (flag != nullptr && flag->kind != FlagKind::toggle) {
      text += " " + told_value(values.back());
    }
  }
  return text;
}

}  // namespace

json bench_header(const Config& config, const std::string& command) {
  return {{"version", kVersion},
          {"commit", kCommit},
          {"compiler", kCompiler},
          {"command", command_text(config, command)},
          {"machine", machine_name()}};
}

Status print_report(const Config& config, const json& report) {
  const std::string text = report.dump(2) + "\n";
  std::fputs(text.c_str(), stdout);
  if (!config.bench.output.empty() && !(std::ofstream(config.bench.output) << text)) {
    return Error{ErrorCode::not_found, "cannot write " + config.bench.output.string()};
  }
  return ok_status();
}

}  // namespace hadal
