// The CPU backend: host memory, synchronous streams, and the choice of kernels.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <thread>

#include <hadal/backend/backend.h>

#include "cpu_ops.h"

namespace hadal {

namespace {

constexpr int64_t kBufferAlignment = 256;

struct CpuStream final : Stream {
  void synchronize() override {}
};

/// Everything given to a stream is done on return.
class CpuEvent final : public Event {
 public:
  void record(Stream& /*stream*/) override { time_ = std::chrono::steady_clock::now(); }

  void synchronize() override {}

  double seconds_since(const Event& earlier) const override {
    const auto& begin = static_cast<const CpuEvent&>(earlier);
    return std::chrono::duration<double>(time_ - begin.time_).count();
  }

 private:
  std::chrono::steady_clock::time_point time_;
};

/// MemAvailable and MemTotal; zeros where there is no /proc.
MemoryInfo read_memory_info() {
  MemoryInfo info;
  std::FILE* file = std::fopen("/proc/meminfo", "r");
  if (file == nullptr) {
    return info;
  }
  char line[256];
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    long long kibibytes = 0;
    if (std::sscanf(line, "MemTotal: %lld", &kibibytes) == 1) {
      info.total_bytes = kibibytes * 1024;
    } else if (std::sscanf(line, "MemAvailable: %lld", &kibibytes) == 1) {
      info.free_bytes = kibibytes * 1024;
    }
  }
  std::fclose(file);
  return info;
}

int32_t thread_count(const CpuBackendConfig& config) {
  if (config.num_threads > 0) {
    return config.num_threads;
  }
  return std::max(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
}

/// Projecting up runs at the speed of matrix products, absorbed pairs at two thirds of it.
constexpr int32_t kAbsorbedChunkTokens = 128;

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuBackendConfig& config)
      : config_(config),
        ops_(config.mode == CpuMode::exact ? cpu::generic_kernels()
                                           : cpu::best_kernels(config.max_isa),
             thread_count(config),
             config.e4m3_activations) {}

  Device device() const override { return Device{}; }

  Numerics numerics() const override {
    Numerics numerics;
    numerics.fp8_input = config_.e4m3_activations ? ActFormat::e4m3 : ActFormat::f32;
    return numerics;
  }

  Result<Buffer> allocate(int64_t size_bytes, MemoryKind /*kind*/) override {
    HADAL_CHECK(size_bytes >= 0, "allocate: a negative size");
    const auto padded = static_cast<size_t>(size_bytes + kBufferAlignment);
    // calloc leaves untouched pages to the kernel, so a large cache costs memory only as it fills.
    void* base = std::calloc(padded, 1);
    if (base == nullptr) {
      return Error{ErrorCode::resource_exhausted,
                   "cannot allocate " + std::to_string(size_bytes) +
                       " bytes of memory; free: " + std::to_string(memory_info().free_bytes)};
    }
    void* aligned = base;
    size_t space = padded;
    std::align(kBufferAlignment, static_cast<size_t>(size_bytes), aligned, space);
    return Buffer(static_cast<std::byte*>(aligned), size_bytes, [base](std::byte* /*data*/) {
      std::free(base);
    });
  }

  std::unique_ptr<Stream> create_stream() override { return std::make_unique<CpuStream>(); }

  std::unique_ptr<Event> create_event() override { return std::make_unique<CpuEvent>(); }

  void copy(TensorView dst, ConstTensorView src, Stream& /*stream*/) override {
    HADAL_CHECK(dst.dtype == src.dtype && dst.shape == src.shape, "copy: dtype or shape differ");
    HADAL_CHECK(ConstTensorView(dst).has_dense_rows() && src.has_dense_rows(),
                "copy: rows are not dense");
    if (src.shape.numel() == 0) {
      return;
    }
    const int64_t rows = src.shape[0];
    const int64_t size = size_of(src.dtype);
    const auto row_bytes = static_cast<size_t>(src.shape.numel() / rows * size);
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(dst.data + row * dst.strides[0] * size,
                  src.data + row * src.strides[0] * size,
                  row_bytes);
    }
  }

  MemoryInfo memory_info() const override { return read_memory_info(); }

  Result<std::unique_ptr<Weight>> prepare_weight(const WeightSource& source) override {
    try {
      return cpu::prepare_cpu_weight(source);
    } catch (const std::bad_alloc&) {
      return Error{ErrorCode::resource_exhausted,
                   "no memory for a weight; free: " + std::to_string(memory_info().free_bytes)};
    }
  }

  /// The rest of the scratch grows on first use and then stays.
  Status reserve(const OpsLimits& limits) override {
    try {
      ops_.reserve(limits);
    } catch (const std::bad_alloc&) {
      return Error{ErrorCode::resource_exhausted,
                   "no memory for attention scratch at " +
                       std::to_string(limits.max_context_tokens) +
                       " tokens of context; free: " + std::to_string(memory_info().free_bytes)};
    }
    return ok_status();
  }

  int64_t reserve_bytes(const OpsLimits& limits) const override {
    return cpu::CpuOps::reserve_bytes(limits);
  }

  Ops& ops() override { return ops_; }

  /// The reference keeps one form.
  int32_t absorbed_chunk_tokens() const override {
    return config_.mode == CpuMode::exact ? 0 : kAbsorbedChunkTokens;
  }

 private:
  CpuBackendConfig config_;
  cpu::CpuOps ops_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const CpuBackendConfig& config) {
  return std::make_unique<CpuBackend>(config);
}

}  // namespace hadal
