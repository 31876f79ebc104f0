// Built with -O3 and contraction, so that the multiply-add loop is the machine's and not the
// build's.
#include "machine_roof.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <thread>
#include <vector>

namespace hadal {

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kReadBytes = size_t{192} << 20;  // per thread, well beyond any cache
constexpr int kChains = 12;                       // hides the latency of a multiply-add
constexpr int64_t kFmaRounds = 20'000'000;

/// Runs `work` on all threads at once; the longest time in seconds, best of three.
double best_time(int32_t num_threads, const std::function<void(int32_t)>& work) {
  double best = 1e30;
  for (int attempt = 0; attempt < 3; ++attempt) {
    const auto start = Clock::now();
    {
      std::vector<std::jthread> threads;
      for (int32_t i = 0; i < num_threads; ++i) {
        threads.emplace_back([&work, i] { work(i); });
      }
    }
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

#if defined(__x86_64__)
#define HADAL_CLONES __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define HADAL_CLONES
#endif

HADAL_CLONES uint64_t sum_words(const uint64_t* words, size_t count) {
  std::array<uint64_t, 32> sums{};
  for (size_t i = 0; i + 32 <= count; i += 32) {
    for (size_t j = 0; j < 32; ++j) {
      sums[j] += words[i + j];
    }
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) {
    total += sum;
  }
  return total;
}

constexpr int kLanes = 16;

HADAL_CLONES float multiply_add(int64_t rounds, float factor) {
  float chains[kChains][kLanes];
  for (auto& chain : chains) {
    std::fill(chain, chain + kLanes, factor);
  }
  for (int64_t round = 0; round < rounds; ++round) {
    for (auto& chain : chains) {
      for (float& value : chain) {
        value = value * factor + 1e-9F;
      }
    }
  }
  float total = 0;
  for (const auto& chain : chains) {
    for (const float value : chain) {
      total += value;
    }
  }
  return total;
}

}  // namespace

MachineRoof measure_roof(int32_t num_threads) {
  const auto threads = static_cast<size_t>(std::max(num_threads, 1));
  std::vector<std::vector<uint64_t>> buffers(threads);
  std::vector<uint64_t> sums(threads);
  std::vector<float> products(threads);
  best_time(num_threads, [&](int32_t i) {  // each thread touches its own pages first
    buffers[static_cast<size_t>(i)].assign(kReadBytes / 8, 1);
  });
  MachineRoof roof;
  const double read_s = best_time(num_threads, [&](int32_t i) {
    const auto index = static_cast<size_t>(i);
    sums[index] = sum_words(buffers[index].data(), buffers[index].size());
  });
  roof.read_gb_per_s = static_cast<double>(threads * kReadBytes) / read_s / 1e9;
  const double fma_s = best_time(num_threads, [&](int32_t i) {
    products[static_cast<size_t>(i)] = multiply_add(kFmaRounds, 0.999F);
  });
  const double operations =
      2.0 * kChains * kLanes * static_cast<double>(kFmaRounds) * static_cast<double>(threads);
  roof.f32_gflop_per_s = operations / fma_s / 1e9;
  // The results are used, so the loops cannot be left out.
  if (sums[0] == 0 || products[0] < 0) {
    roof = {};
  }
  return roof;
}

int32_t hardware_threads() {
  return static_cast<int32_t>(std::max(1U, std::thread::hardware_concurrency()));
}

std::string machine_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  std::string name = "unknown processor";
  std::string extensions;
  while (std::getline(cpuinfo, line)) {
    const size_t colon = line.find(": ");
    if (colon == std::string::npos) {
      continue;
    }
    if (line.starts_with("model name")) {
      name = line.substr(colon + 2);
    } else if (line.starts_with("flags")) {
      const std::string flags = line.substr(colon + 1) + " ";
      for (const char* extension : {"avx2", "avx512f", "avx512_bf16", "amx_tile"}) {
        if (flags.find(" " + std::string(extension) + " ") != std::string::npos) {
          extensions += " " + std::string(extension);
        }
      }
      break;
    }
  }
  return name + ", " + std::to_string(hardware_threads()) + " threads" +
         (extensions.empty() ? "" : "," + extensions);
}

}  // namespace hadal
