// Times the collectives of process ranks on this machine and prints one JSON document.
//
//   comm_bench [ranks] [seconds]        16 ranks at most, 0.1 s a measurement by default
//
// Ranks are forked; "nodes" of a world are separate memories joined over loopback TCP, so those
// numbers bound what a network adds, not what it costs. Each figure is the median over batches of
// the mean time of one collective, seen by rank 0. gb_per_s is the tensor's bytes over that time.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include <hadal/comm/process_communicator.h>

#include "local_world.h"

#include <sys/wait.h>
#include <unistd.h>

namespace {

using namespace hadal;
using nlohmann::json;
using World = hadal::testing::LocalWorldConfig;
using SteadyClock = std::chrono::steady_clock;

struct NullStream final : Stream {
  void synchronize() override {}
};

double seconds_since(SteadyClock::time_point begin) {
  return std::chrono::duration<double>(SteadyClock::now() - begin).count();
}

class Rank {
 public:
  Rank(Communicator& comm, double seconds) : comm_(comm), seconds_(seconds) {}

  json run(const World& world) {
    json results = json::array();
    for (const char* op : {"all_reduce", "reduce_scatter", "all_gather", "broadcast"}) {
      for (const int64_t bytes : {int64_t{4}, int64_t{4096}, int64_t{28672}, int64_t{1} << 20}) {
        const double time = median_time(op, bytes);
        results.push_back({{"op", op},
                           {"ranks", world.world_size},
                           {"ranks_per_node", world.node_size},
                           {"all_reduce", world.all_reduce == AllReduce::flat ? "flat" : "hier"},
                           {"bytes", bytes},
                           {"us", time * 1e6},
                           {"gb_per_s", static_cast<double>(bytes) / time * 1e-9}});
      }
    }
    return results;
  }

 private:
  double median_time(const std::string& op, int64_t bytes) {
    constexpr int kBatches = 5;
    batch_time(op, bytes, 3);
    // Rank 0 decides how many fit into the time.
    std::vector<int32_t> count{static_cast<int32_t>(
        std::clamp(seconds_ / kBatches / batch_time(op, bytes, 3), 3.0, 20000.0))};
    comm_.broadcast(view(count.data(), DType::i32, 1), 0, stream_);
    std::vector<double> times;
    for (int batch = 0; batch < kBatches; ++batch) {
      times.push_back(batch_time(op, bytes, count.front()));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  /// Mean time of one collective over `count`.
  double batch_time(const std::string& op, int64_t bytes, int32_t count) {
    const int64_t floats = bytes / 4;
    const int64_t all = floats * comm_.world_size();
    small_.assign(static_cast<size_t>(floats), 1.0F);
    large_.assign(static_cast<size_t>(all), 1.0F);
    const TensorView part = view(small_.data(), DType::f32, floats);
    const TensorView whole = view(large_.data(), DType::f32, all);
    const auto begin = SteadyClock::now();
    for (int32_t i = 0; i < count; ++i) {
      if (op == "all_reduce") {
        comm_.all_reduce_sum(part, stream_);
      } else if (op == "reduce_scatter") {
        comm_.reduce_scatter_sum(whole, part, stream_);
      } else if (op == "all_gather") {
        comm_.all_gather(part, whole, stream_);
      } else {
        comm_.broadcast(part, 0, stream_);
      }
    }
    return seconds_since(begin) / count;
  }

  template <class T>
  static TensorView view(T* data, DType dtype, int64_t count) {
    return make_view(reinterpret_cast<std::byte*>(data), dtype, Shape{count});
  }

  Communicator& comm_;
  double seconds_;
  NullStream stream_;
  std::vector<float> small_;
  std::vector<float> large_;
};

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "comm_bench: %s\n", what.c_str());
  std::_Exit(1);
}

template <class T>
T expect(Result<T> result) {
  if (!result) {
    fail(result.error().message);
  }
  return std::move(result).value();
}

/// Runs in a child: this rank's part, and for rank 0 the report.
[[noreturn]] void run_rank(const hadal::testing::LocalWorld& world,
                           int32_t rank,
                           double seconds,
                           int report_fd) {
  const auto comm = expect(world.join(rank));
  const std::string text = Rank(*comm, seconds).run(world.config()).dump();
  if (const Status status = comm->poll_error(); !status) {
    fail(status.error().message);
  }
  if (rank == 0 && ::write(report_fd, text.data(), text.size()) < 0) {
    fail("no report");
  }
  std::_Exit(0);
}

json run_world(const World& config, double seconds) {
  const auto world = expect(hadal::testing::LocalWorld::create(config));
  int ends[2];
  if (::pipe(ends) != 0) {
    fail("no pipe");
  }
  std::vector<pid_t> children;
  for (int32_t rank = 0; rank < config.world_size; ++rank) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      run_rank(world, rank, seconds, ends[1]);
    }
    children.push_back(pid);
  }
  ::close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(n));
  }
  ::close(ends[0]);
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    if (status != 0) {
      fail("a rank failed");
    }
  }
  return json::parse(text);
}

}  // namespace

int main(int argc, char** argv) {
  const int32_t max_ranks = argc > 1 ? std::atoi(argv[1]) : 16;
  const double seconds = argc > 2 ? std::atof(argv[2]) : 0.1;
  const World worlds[] = {{2, 2, AllReduce::hier},
                          {4, 4, AllReduce::hier},
                          {4, 2, AllReduce::hier},
                          {4, 2, AllReduce::flat},
                          {8, 8, AllReduce::hier},
                          {16, 16, AllReduce::hier},
                          {16, 8, AllReduce::hier},
                          {16, 8, AllReduce::flat}};
  json results = json::array();
  for (const World& world : worlds) {
    if (world.world_size <= max_ranks) {
      for (json& result : run_world(world, seconds)) {
        std::fprintf(stderr, "%s\n", result.dump().c_str());
        results.push_back(std::move(result));
      }
    }
  }
  const json report = {{"command", "comm_bench " + std::to_string(max_ranks)},
                       {"cores", std::thread::hardware_concurrency()},
                       {"results", results}};
  std::puts(report.dump(2).c_str());
  return 0;
}
