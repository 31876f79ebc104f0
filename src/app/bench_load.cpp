// `hadal bench load`: a cold load beside a plain cold read of the same bytes.
//
// Both begin with the files dropped from the page cache, and how much stayed in it is part of the
// report: a number measured warm is none. The read is one thread with pread, in the order of the
// files, as cat would. Pairs alternate, so that a disk that changes its mind changes both.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <tuple>

#include "assembly.h"
#include "bench_report.h"
#include "exit_code.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace hadal {

namespace {

using nlohmann::json;
using Seconds = std::chrono::duration<double>;

constexpr int kPairs = 3;
constexpr int64_t kReadBytes = int64_t{8} << 20;

int fail(int code, const Error& error) {
  std::fprintf(stderr, "hadal bench load: %s\n", error.message.c_str());
  return code;
}

class Descriptor {
 public:
  explicit Descriptor(const std::filesystem::path& path)
      : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}

  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  ~Descriptor() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }

  int fd() const { return fd_; }

 private:
  int fd_;
};

/// Pages of the file in the page cache, in bytes.
int64_t resident_bytes(const Descriptor& file, int64_t size_bytes) {
  const auto size = static_cast<size_t>(size_bytes);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.fd(), 0);
  if (data == MAP_FAILED) {
    return 0;
  }
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages((size + page - 1) / page);
  int64_t resident = 0;
  if (::mincore(data, size, pages.data()) == 0) {
    resident = std::accumulate(pages.begin(), pages.end(), int64_t{0}, [](int64_t sum, auto bits) {
      return sum + (bits & 1);
    });
  }
  ::munmap(data, size);
  return resident * static_cast<int64_t>(page);
}

/// The share of the files that stayed in memory although it was asked to go.
double drop_caches(const LoadPlan& plan) {
  int64_t resident = 0;
  int64_t total = 0;
  for (const StoredFile& file : plan.files) {
    const Descriptor open_file(file.path);
    ::fsync(open_file.fd());  // dirty pages cannot be dropped
    ::posix_fadvise(open_file.fd(), 0, 0, POSIX_FADV_DONTNEED);
    resident += file.size_bytes > 0 ? resident_bytes(open_file, file.size_bytes) : 0;
    total += file.size_bytes;
  }
  return static_cast<double>(resident) / static_cast<double>(std::max<int64_t>(total, 1));
}

/// Seconds for the plan's bytes, file by file.
Result<double> plain_read(const LoadPlan& plan) {
  std::vector<FileRange> reads = plan.reads;
  std::sort(reads.begin(), reads.end(), [](const FileRange& a, const FileRange& b) {
    return std::tie(a.file, a.begin) < std::tie(b.file, b.begin);
  });
  std::vector<std::unique_ptr<Descriptor>> files;
  for (const StoredFile& file : plan.files) {
    files.push_back(std::make_unique<Descriptor>(file.path));
  }
  std::vector<std::byte> buffer(static_cast<size_t>(kReadBytes));
  const TimePoint start = system_clock().now();
  for (const FileRange& range : reads) {
    const auto file = static_cast<size_t>(range.file);
    for (int64_t at = range.begin; at < range.end;) {
      const auto size = static_cast<size_t>(std::min(range.end - at, kReadBytes));
      const ssize_t count = ::pread(files[file]->fd(), buffer.data(), size, at);
      if (count <= 0) {
        return Error{ErrorCode::data_loss, "cannot read " + plan.files[file].path.string()};
      }
      at += count;
    }
  }
  return Seconds(system_clock().now() - start).count();
}

struct Pair {
  double read_s = 0;
  double load_s = 0;
  int64_t bytes_read = 0;
  double resident_fraction = 0;  ///< the worse of both
};

Result<Pair> measure_pair(const ModelRunnerConfig& config, const LoadPlan& plan) {
  Pair pair;
  pair.resident_fraction = drop_caches(plan);
  const auto read = plain_read(plan);
  if (!read) {
    return read.error();
  }
  pair.read_s = read.value();
  pair.resident_fraction = std::max(pair.resident_fraction, drop_caches(plan));
  ModelRunnerConfig counted = config;
  const TimePoint start = system_clock().now();
  counted.on_loaded = [&](const LoadReport& report) {
    pair.load_s = Seconds(system_clock().now() - start).count();  // headers and all
    pair.bytes_read = report.bytes_read;
  };
  const auto runner = make_model_runner(counted);
  if (!runner) {
    return runner.error();
  }
  return pair;
}

json pair_json(const Pair& pair, int64_t bytes) {
  const auto rate = [&](double seconds) { return static_cast<double>(bytes) / seconds / 1e9; };
  return {{"read_s", pair.read_s},
          {"read_gb_per_s", rate(pair.read_s)},
          {"load_s", pair.load_s},
          {"load_gb_per_s", rate(pair.load_s)},
          {"load_over_read", pair.read_s / pair.load_s},
          {"bytes_read_by_load", pair.bytes_read},
          {"cached_before_fraction", pair.resident_fraction}};
}

}  // namespace

int run_bench_load(const Config& config, const Environment& environment) {
  if (config.layout.num_nodes > 1) {
    return fail(kExitUsage, multi_node_error(config.layout));
  }
  if (config.runner.null_step_us || config.model.load_format == LoadFormat::dummy) {
    return fail(kExitUsage, Error{ErrorCode::unsupported, "there are no files to load"});
  }
  auto model_dir = find_model_dir(config.model.query, environment);
  if (!model_dir) {
    return fail(model_exit_code(model_dir.error()), model_dir.error());
  }
  const ModelRunnerConfig runner = runner_config(config, model_dir.value());
  const auto plan = plan_model_load(runner);
  if (!plan) {
    return fail(model_exit_code(plan.error()), plan.error());
  }
  const int64_t bytes = total_bytes(plan.value().reads);
  json pairs = json::array();
  std::vector<double> ratios;
  for (int i = 0; i < kPairs; ++i) {
    const auto pair = measure_pair(runner, plan.value());
    if (!pair) {
      return fail(model_exit_code(pair.error()), pair.error());
    }
    ratios.push_back(pair.value().read_s / pair.value().load_s);
    pairs.push_back(pair_json(pair.value(), bytes));
    std::fprintf(stderr, "%s\n", pairs.back().dump().c_str());
  }
  std::sort(ratios.begin(), ratios.end());
  json report = bench_header(config, "hadal bench load");
  report["ranks"] = config.layout.tp_size;
  report["files"] = plan.value().files.size();
  report["bytes"] = bytes;
  report["pairs"] = pairs;
  report["load_over_read_median"] = ratios[ratios.size() / 2];
  if (Status written = print_report(config, report); !written) {
    return fail(kExitUsage, written.error());
  }
  return kExitOk;
}

}  // namespace hadal
