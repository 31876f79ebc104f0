// Model-based property tests of the scheduler and the radix cache.
//
//   sched_property_test                     10,000 seeds of each machine (1,000 under sanitizers)
//   sched_property_test --seeds 500 --first 20'000 --machine cache
//   sched_property_test --machine scheduler --seed 4711     one seed; shrinks and prints a failure
//
// Seeds run in a child process: a broken rule aborts it, whatever it was (HADAL_CHECK, a rule of
// the model, a signal, a hang), and the parent knows the seed. It then drops operations for as long
// as the failure stays, and prints what is left.
#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "property_machine.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace hadal {
namespace {

#ifdef HADAL_SANITIZED
constexpr uint32_t kDefaultSeeds = 1'000;
constexpr unsigned kHangSeconds = 120;
#else
constexpr uint32_t kDefaultSeeds = 10'000;
constexpr unsigned kHangSeconds = 30;
#endif

/// What the child tells before it may die.
struct Shared {
  uint32_t seed = 0;
  Coverage coverage{};
};

struct Outcome {
  bool failed = false;
  std::string text;  ///< what the child printed last, and how it ended
};

struct Options {
  uint32_t first = 0;
  uint32_t num_seeds = kDefaultSeeds;
  bool is_single = false;
  bool shrinks = true;
  std::string machine;
};

Shared& shared() {
  static Shared* const memory = [] {
    void* const mapped =
        mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
      std::perror("mmap");
      std::exit(2);
    }
    return new (mapped) Shared;
  }();
  return *memory;
}

std::string read_all(int descriptor) {
  std::string text;
  char buffer[4096];
  for (ssize_t size = 0; (size = read(descriptor, buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(size));
    if (text.size() > 64 * 1024)
      text.erase(0, text.size() - 32 * 1024);
  }
  return text;
}

/// Runs `work` in a child; failed unless it returns.
Outcome run_in_child(const std::function<void()>& work) {
  int ends[2];
  if (pipe(ends) != 0) {
    std::perror("pipe");
    std::exit(2);
  }
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    work();
    std::exit(0);
  }
  close(ends[1]);
  Outcome outcome;
  outcome.text = read_all(ends[0]);
  close(ends[0]);
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) {
    std::perror("fork");
    std::exit(2);
  }
  outcome.failed = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
  if (WIFSIGNALED(status))
    outcome.text += WTERMSIG(status) == SIGALRM
                        ? "hangs\n"
                        : "signal " + std::to_string(WTERMSIG(status)) + "\n";
  return outcome;
}

void run_operations(const PropertyMachineKind& kind,
                    uint32_t seed,
                    const std::vector<Operation>& operations) {
  alarm(kHangSeconds);
  const auto machine = kind.make(seed);
  for (const Operation& operation : operations)
    machine->apply(operation);
  machine->finish();
  machine->add_coverage(shared().coverage);
}

/// Drops runs of operations, half of the list first and one at last, for as long as it still fails.
std::vector<Operation> shrink(const PropertyMachineKind& kind,
                              uint32_t seed,
                              std::vector<Operation> operations) {
  const auto fails = [&](const std::vector<Operation>& list) {
    return run_in_child([&] { run_operations(kind, seed, list); }).failed;
  };
  for (size_t length = (operations.size() + 1) / 2; length > 0;) {
    bool has_dropped = false;
    for (size_t begin = 0; begin < operations.size();) {
      std::vector<Operation> rest = operations;
      const auto from = rest.begin() + static_cast<ptrdiff_t>(begin);
      rest.erase(from, from + static_cast<ptrdiff_t>(std::min(length, rest.size() - begin)));
      if (fails(rest)) {
        operations = std::move(rest);
        has_dropped = true;
      } else {
        begin += length;
      }
    }
    if (!has_dropped || length > 1)
      length /= 2;
  }
  return operations;
}

void report_failure(const PropertyMachineKind& kind, uint32_t seed) {
  const std::vector<Operation> all = kind.generate(seed, kind.num_operations);
  const std::vector<Operation> operations = shrink(kind, seed, all);
  const Outcome outcome = run_in_child([&] { run_operations(kind, seed, operations); });
  std::printf("machine %s, seed %u: %zu of %zu operations still fail:\n",
              std::string(kind.name).c_str(),
              seed,
              operations.size(),
              all.size());
  for (const Operation& operation : operations)
    std::printf("  %s\n", kind.describe(operation).c_str());
  std::printf("%sreplay: sched_property_test --machine %s --seed %u\n",
              outcome.text.c_str(),
              std::string(kind.name).c_str(),
              seed);
}

bool run_machine(const PropertyMachineKind& kind, const Options& options) {
  shared() = Shared{};
  const uint32_t end = options.first + options.num_seeds;
  const Outcome outcome = run_in_child([&] {
    for (uint32_t seed = options.first; seed < end; ++seed) {
      shared().seed = seed;
      run_operations(kind, seed, kind.generate(seed, kind.num_operations));
    }
  });
  if (outcome.failed && !options.shrinks) {
    std::printf("machine %s, seed %u: %s",
                std::string(kind.name).c_str(),
                shared().seed,
                outcome.text.c_str());
    return false;
  }
  if (outcome.failed) {
    report_failure(kind, shared().seed);
    return false;
  }
  std::printf("machine %s: %u seeds from %u, %d operations each",
              std::string(kind.name).c_str(),
              options.num_seeds,
              options.first,
              kind.num_operations);
  bool is_covered = true;
  for (size_t i = 0; i < kind.coverage_names.size(); ++i) {
    if (kind.coverage_names[i].empty())
      continue;
    const int64_t count = shared().coverage[i];
    std::printf(
        ", %lld %s", static_cast<long long>(count), std::string(kind.coverage_names[i]).c_str());
    is_covered = is_covered && count > static_cast<int64_t>(options.num_seeds) / 100;
  }
  std::printf("\n");
  if (!is_covered && !options.is_single) {
    std::printf("the operations no longer reach what they are to test\n");
    return false;
  }
  return true;
}

std::optional<Options> parse(std::vector<std::string> arguments) {
  Options options;
  options.shrinks = std::erase(arguments, "--no-shrink") == 0;
  for (size_t i = 0; i + 1 < arguments.size(); i += 2) {
    const std::string& value = arguments[i + 1];
    uint32_t number = 0;
    const char* const last = value.data() + value.size();
    const auto parsed = std::from_chars(value.data(), last, number);
    const bool is_number = parsed.ec == std::errc{} && parsed.ptr == last;
    if (arguments[i] == "--machine" && (value == "scheduler" || value == "cache")) {
      options.machine = value;
    } else if (arguments[i] == "--seed" && is_number) {
      options.first = number;
      options.num_seeds = 1;
      options.is_single = true;
    } else if (arguments[i] == "--first" && is_number) {
      options.first = number;
    } else if (arguments[i] == "--seeds" && is_number && number > 0) {
      options.num_seeds = number;
    } else {
      return std::nullopt;
    }
  }
  return arguments.size() % 2 == 0 ? std::optional(options) : std::nullopt;
}

int run(const std::vector<std::string>& arguments) {
  const std::optional<Options> options = parse(arguments);
  if (!options) {
    std::fprintf(stderr,
                 "usage: sched_property_test [--machine scheduler|cache] [--seed N] "
                 "[--first N] [--seeds COUNT] [--no-shrink]\n");
    return 2;
  }
  bool is_good = true;
  for (const PropertyMachineKind* kind : {&kCacheMachine, &kSchedulerMachine}) {
    if (options->machine.empty() || options->machine == kind->name)
      is_good = run_machine(*kind, *options) && is_good;
  }
  return is_good ? 0 : 1;
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  return hadal::run({argv + 1, argv + argc});
}
