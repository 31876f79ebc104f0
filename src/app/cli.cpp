// CLI11 holds commands, help and value counts; names are resolved before it, as argparse would.
#include "cli.h"

#include <algorithm>
#include <sstream>

#include <CLI/CLI.hpp>

#include "version.h"

namespace hadal {

namespace {

struct CommandSpec {
  FlagCommands bit;
  const char* name;
  const char* help;
};

constexpr CommandSpec kCommands[] = {
    {kServe, "serve", "Serve a model over the OpenAI HTTP API"},
    {kGenerate, "generate", "Answer one prompt on standard output"},
    {kCheck, "check", "Validate model and configuration, print the memory plan, start nothing"},
    {kBench, "bench", "Measure the engine's throughput and print JSON"},
    {kRank, "rank", "Run one rank of a node; `hadal serve` starts them itself"},
    {kReplay, "replay", "Run a recorded plan stream again on one rank and compare the tokens"},
    {kShard, "shard", "Write the model cut for --tp and --ep-size, checksummed, for fast loading"},
    {kDoctor,
     "doctor",
     "Find what is wrong with this node and its links, before any weight is read"},
    {kSimulate, "simulate", "Replay a trace or a workload on the scheduler and a modelled device"},
};

const char* group_title(FlagGroup group) {
  switch (group) {
    case FlagGroup::hadal:
      return "hadal";
    case FlagGroup::sglang_a:
      return "SGLang v0.4.3";
    case FlagGroup::sglang_b:
      return "Later SGLang";
    case FlagGroup::sglang_c:
      return "SGLang, not applicable";
  }
  return "";
}

const char* kind_name(FlagKind kind) {
  switch (kind) {
    case FlagKind::toggle:
      return "";
    case FlagKind::integer:
      return "INT";
    case FlagKind::number:
      return "NUM";
    case FlagKind::text:
      return "TEXT";
    case FlagKind::path:
      return "PATH";
    case FlagKind::json:
      return "JSON";
    case FlagKind::list:
      return "...";
  }
  return "";
}

std::string help_text(const FlagSpec& flag) {
  const std::string help(flag.help);
  const std::string reason(flag.reason);
  switch (flag.handling) {
    case FlagHandling::honoured:
      return help;
    case FlagHandling::implied:
      return "no effect: " + help;
    case FlagHandling::cuda_only:
      return help + " (no effect on the CPU backend)";
    case FlagHandling::limited:
      return "only " + std::string(flag.accepted) + ": " + reason;
    case FlagHandling::warned:
      return "ignored: " + reason;
    case FlagHandling::refused:
      return "refused: " + reason;
  }
  return help;
}

void add_flags(CLI::App& app, FlagCommands command, FlagValues& values) {
  for (const FlagSpec& flag : flag_table()) {
    if ((flag.commands & command) == 0) {
      continue;
    }
    const std::string name(flag.name);
    const std::string option_name = "--" + name;
    CLI::Option* option = nullptr;
    if (flag.kind == FlagKind::toggle) {
      option = app.add_flag_callback(
          option_name, [&values, name] { values[name] = {"true"}; }, help_text(flag));
    } else if (flag.kind == FlagKind::list) {
      option = app.add_option_function<std::vector<std::string>>(
          option_name,
          [&values, name](const std::vector<std::string>& texts) { values[name] = texts; },
          help_text(flag));
    } else {
      option = app.add_option_function<std::string>(
          option_name,
          [&values, name](const std::string& text) { values[name] = {text}; },
          help_text(flag));
      option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    }
    option->group(group_title(flag.group))->type_name(kind_name(flag.kind));
    if (!flag.default_text.empty()) {
      option->default_str(std::string(flag.default_text));
    }
  }
}

std::string usage() {
  std::string text = "usage: hadal COMMAND [FLAGS], hadal COMMAND --help, hadal --version\n\n";
  for (const CommandSpec& command : kCommands) {
    std::string name = command.name;
    name.resize(10, ' ');
    text += "  " + name + command.help + "\n";
  }
  return text;
}

Result<CommandLine> parse_flags(const CommandSpec& command,
                                std::span<const std::string> arguments) {
  auto canonical = canonical_arguments(arguments, command.bit);
  if (!canonical) {
    return canonical.error();
  }
  CommandLine line;
  line.command = command.bit;
  CLI::App app(command.help, std::string("hadal ") + command.name);
  add_flags(app, command.bit, line.values);
  if (command.bit == kGenerate) {
    app.add_option("prompt", line.words, "the user's message")->required();
  }
  if (command.bit == kReplay) {
    app.add_option("file", line.words, "what --record-plans wrote")->required()->expected(1);
  }
  if (command.bit == kBench) {
    app.add_option("what",
                   line.words,
                   "engine (the default); load: reading a model cold; sched: the scheduler "
                   "simulated; plan: "
                   "the fan-out to rank processes, without a model; step: one rank's steps alone; "
                   "loop: the engine over one rank; serve: load for a running server")
        ->expected(0, 1)
        ->check(CLI::IsMember({"engine", "load", "sched", "plan", "step", "loop", "serve"}));
  }
  if (command.bit == kSimulate) {
    app.add_option("trace", line.words, "a file of JSON lines, or the name of a workload")
        ->required()
        ->expected(1);
  }
  std::vector<std::string> reversed = std::move(canonical).value();
  std::reverse(reversed.begin(), reversed.end());  // CLI11 takes them from the back
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::CallForHelp&) {
    line.immediate_output = app.help();
  } catch (const CLI::ParseError& error) {
    return Error{ErrorCode::invalid_argument,
                 std::string("hadal ") + command.name + ": " + error.what()};
  }
  return line;
}

}  // namespace

std::string version_text() {
  std::ostringstream text;
  text << "hadal " << kVersion << " (" << kCommit << ", " << kCompiler << ", backends: cpu"
       << (kHasCuda ? ", cuda" : "") << ")\n";
  return text.str();
}

Result<CommandLine> parse_command_line(std::span<const std::string> arguments) {
  const std::string first = arguments.empty() ? "" : arguments.front();
  if (first == "--version" || first == "version") {
    CommandLine line;
    line.immediate_output = version_text();
    return line;
  }
  if (first == "--help" || first == "-h" || first == "help") {
    CommandLine line;
    line.immediate_output = usage();
    return line;
  }
  for (const CommandSpec& command : kCommands) {
    if (first == command.name) {
      return parse_flags(command, arguments.subspan(1));
    }
  }
  return Error{ErrorCode::invalid_argument,
               (first.empty() ? std::string("no command") : "unknown command '" + first + "'") +
                   "\n" + usage()};
}

}  // namespace hadal
