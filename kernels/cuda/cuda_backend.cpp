// The CUDA backend: the choice of the device, its memory and streams.
#include <cstring>
#include <string>

#include <hadal/backend/backend.h>

#include "ceilings.h"
#include "cuda_check.h"
#include "cuda_event.h"
#include "cuda_ops.h"
#include "cuda_stream.h"
#include "cuda_weight.h"
#include "probe.h"

namespace hadal {

namespace {

using cuda::describe;
using cuda::DeviceInfo;

constexpr int32_t kLeastCapability = 80;
constexpr int32_t kFp8Capability = 89;
#ifdef HADAL_HAS_SM90A
constexpr bool kHasSm90aKernels = true;
#else
constexpr bool kHasSm90aKernels = false;
#endif

Error unsupported(const std::string& message) {
  return Error{ErrorCode::unsupported, message};
}

int32_t capability_of(const cudaDeviceProp& properties) {
  return properties.major * 10 + properties.minor;
}

std::string name_of(const cudaDeviceProp& properties) {
  return std::string(properties.name) + " (compute capability " + std::to_string(properties.major) +
         "." + std::to_string(properties.minor) + ")";
}

/// Refuses a device that is absent or too old. Makes no context.
Result<cudaDeviceProp> read_properties(int32_t index) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    return unsupported("no usable CUDA device: " +
                       (code == cudaSuccess ? std::string("none found") : describe(code)));
  }
  if (index < 0 || index >= count) {
    return unsupported("expected a CUDA device in 0.." + std::to_string(count - 1) + ", got " +
                       std::to_string(index));
  }
  cudaDeviceProp properties{};
  HADAL_RETURN_IF_ERROR(
      cuda::to_status(cudaGetDeviceProperties(&properties, index), "cannot read the CUDA device"));
  if (capability_of(properties) < kLeastCapability) {
    return unsupported("expected a GPU of compute capability 8.0 or later, got " +
                       name_of(properties));
  }
  return properties;
}

/// Reads what kernels depend on, and refuses a device that this build has no code for.
Result<DeviceInfo> open_device(int32_t index) {
  const auto properties = read_properties(index);
  if (!properties) {
    return properties.error();
  }
  HADAL_RETURN_IF_ERROR(cuda::to_status(cudaSetDevice(index), "cannot use the CUDA device"));
  DeviceInfo info;
  info.index = index;
  info.num_multiprocessors = properties.value().multiProcessorCount;
  info.max_shared_bytes = static_cast<int32_t>(properties.value().sharedMemPerBlockOptin);
  info.compute_capability = capability_of(properties.value());
  if (const Status probe = cuda::probe_kernels(); !probe) {
    return unsupported("this build of hadal has no code for " + name_of(properties.value()) + ": " +
                       probe.error().message);
  }
  return info;
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(const DeviceInfo& info, const CudaBackendConfig& config)
      : info_(info),
        has_graphs_(!config.sync_every_op),
        rounds_inputs_(config.e4m3_activations && info.compute_capability >= kFp8Capability),
        ops_(info, config.sync_every_op) {}

  Device device() const override { return Device{DeviceType::cuda, info_.index}; }

  Numerics numerics() const override {
    Numerics numerics;
    numerics.plain = DType::bf16;
    // Before FP8 units rounding the inputs gains nothing.
    numerics.fp8_input = rounds_inputs_ ? ActFormat::e4m3 : ActFormat::bf16;
    numerics.plain_input = ActFormat::bf16;
    return numerics;
  }

  /// Pinned memory is mapped: kernels may use its address as well.
  Result<Buffer> allocate(int64_t size_bytes, MemoryKind kind) override {
    HADAL_CHECK(size_bytes >= 0, "allocate: a negative size");
    if (size_bytes == 0) {
      return Buffer{};
    }
    select();
    const auto size = static_cast<size_t>(size_bytes);
    void* data = nullptr;
    if (kind == MemoryKind::pinned_host) {
      if (const cudaError_t code = cudaHostAlloc(&data, size, cudaHostAllocPortable);
          code != cudaSuccess) {
        return cannot_allocate("pinned host", size_bytes, code);
      }
      std::memset(data, 0, size);
      return Buffer(
          static_cast<std::byte*>(data), size_bytes, [](std::byte* p) { (void)cudaFreeHost(p); });
    }
    if (const cudaError_t code = cudaMalloc(&data, size); code != cudaSuccess) {
      return cannot_allocate("device", size_bytes, code);
    }
    Buffer buffer(
        static_cast<std::byte*>(data), size_bytes, [](std::byte* p) { (void)cudaFree(p); });
    HADAL_RETURN_IF_ERROR(cuda::to_status(cudaMemset(data, 0, size), "allocate"));
    // Streams do not wait for the default stream, so the zeros must be there on return.
    HADAL_RETURN_IF_ERROR(cuda::to_status(cudaStreamSynchronize(nullptr), "allocate"));
    return buffer;
  }

  std::unique_ptr<Stream> create_stream() override {
    return std::make_unique<cuda::CudaStream>(info_.index);
  }

  std::unique_ptr<Event> create_event() override {
    return std::make_unique<cuda::CudaEvent>(info_.index);
  }

  void copy(TensorView dst, ConstTensorView src, Stream& stream) override {
    HADAL_CHECK(dst.dtype == src.dtype && dst.shape == src.shape, "copy: dtype or shape differ");
    HADAL_CHECK(ConstTensorView(dst).has_dense_rows() && src.has_dense_rows(),
                "copy: rows are not dense");
    if (src.shape.numel() == 0) {
      return;
    }
    select();
    const int64_t rows = src.shape[0];
    const int64_t size = size_of(src.dtype);
    const auto row_bytes = static_cast<size_t>(src.shape.numel() / rows * size);
    const auto dst_pitch = static_cast<size_t>(dst.strides[0] * size);
    const auto src_pitch = static_cast<size_t>(src.strides[0] * size);
    const cudaStream_t handle = cuda::handle_of(stream);
    if (rows == 1 || (dst_pitch == row_bytes && src_pitch == row_bytes)) {
      HADAL_CUDA_CHECK(cudaMemcpyAsync(
          dst.data, src.data, row_bytes * static_cast<size_t>(rows), cudaMemcpyDefault, handle));
      return;
    }
    HADAL_CUDA_CHECK(cudaMemcpy2DAsync(dst.data,
                                       dst_pitch,
                                       src.data,
                                       src_pitch,
                                       row_bytes,
                                       static_cast<size_t>(rows),
                                       cudaMemcpyDefault,
                                       handle));
  }

  MemoryInfo memory_info() const override {
    select();
    size_t free = 0;
    size_t total = 0;
    HADAL_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
  }

  Result<std::unique_ptr<Weight>> prepare_weight(const WeightSource& source) override {
    select();
    return cuda::prepare_cuda_weight(*this, source);
  }

  Status reserve(const OpsLimits& limits) override { return ops_.reserve(*this, limits); }

  int64_t reserve_bytes(const OpsLimits& limits) const override {
    return cuda::CudaOps::reserve_bytes(limits);
  }

  Ops& ops() override { return ops_; }

  /// A capture may not wait, as ops do for debugging.
  bool has_graphs() const override { return has_graphs_; }

  Result<std::unique_ptr<Graph>> capture(Stream& stream,
                                         const std::function<void()>& work) override {
    select();
    return cuda::capture_graph(stream, work);
  }

  bool generates_weights() const override { return true; }

  Result<DeviceCeilings> measure_ceilings() override {
    select();
    return cuda::measure_device(*this, info_.index);
  }

 private:
  void select() const { HADAL_CUDA_CHECK(cudaSetDevice(info_.index)); }

  Error cannot_allocate(const char* what, int64_t size_bytes, cudaError_t code) const {
    (void)cudaGetLastError();
    return Error{ErrorCode::resource_exhausted,
                 "cannot allocate " + std::to_string(size_bytes) + " bytes of " + what +
                     " memory; free on the device: " + std::to_string(memory_info().free_bytes) +
                     " (" + describe(code) + ")"};
  }

  const DeviceInfo info_;
  const bool has_graphs_;
  const bool rounds_inputs_;
  cuda::CudaOps ops_;
};

}  // namespace

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendConfig& config) {
  const auto device = find_cuda_device(config.device_index, config.kernel_family);
  if (!device) {
    return device.error();
  }
  auto info = open_device(config.device_index);
  if (!info) {
    return info.error();
  }
  info.value().kernel_family = device.value().kernel_family;
  return std::unique_ptr<Backend>(std::make_unique<CudaBackend>(info.value(), config));
}

Result<CudaDevice> find_cuda_device(int32_t device_index, KernelFamily kernel_family) {
  const auto properties = read_properties(device_index);
  if (!properties) {
    return properties.error();
  }
  CudaDevice device;
  device.name = properties.value().name;
  device.compute_capability = capability_of(properties.value());
  device.total_bytes = static_cast<int64_t>(properties.value().totalGlobalMem);
  const auto family = choose_kernel_family(kernel_family, device, kHasSm90aKernels);
  if (!family) {
    return family.error();
  }
  device.kernel_family = family.value();
  return device;
}

}  // namespace hadal
