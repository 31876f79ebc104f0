// A device and what it offers: memory, streams, prepared weights, and the Ops that run on it.
//
// A backend also declares its numerics (what travels between ops), so that the model is written
// once. The CPU backend runs every op synchronously; its streams only carry the name of an order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include <hadal/backend/weight.h>
#include <hadal/base/result.h>
#include <hadal/tensor/activation.h>
#include <hadal/tensor/tensor.h>

namespace hadal {

class Ops;

enum class MemoryKind : uint8_t { device, pinned_host };

struct MemoryInfo {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};

/// What travels between ops on this backend.
struct Numerics {
  /// Residual stream and every plain tensor between ops: linear outputs, q, latents, partial sums.
  DType plain = DType::f32;
  ActFormat fp8_input = ActFormat::f32;    ///< input of linears with f8_e4m3 weights
  ActFormat plain_input = ActFormat::f32;  ///< input of linears with f32, f16 or bf16 weights

  ActFormat input_of(DType weight_dtype) const {
    return weight_dtype == DType::f8_e4m3 ? fp8_input : plain_input;
  }
};

/// An order of execution. Work given to one stream runs in the order given.
class Stream {
 public:
  virtual ~Stream() = default;
  /// Blocks until all work given so far is done.
  virtual void synchronize() = 0;
};

/// A mark in a stream's order. Made by a backend for its own streams.
class Event {
 public:
  virtual ~Event() = default;
  /// Marks all work given to `stream` so far; again later moves the mark.
  virtual void record(Stream& stream) = 0;
  /// Blocks until the work before the mark is done; returns at once when there is no mark.
  virtual void synchronize() = 0;
  /// Seconds on the device from `earlier`'s mark to this one; both have been passed.
  virtual double seconds_since(const Event& earlier) const = 0;
};

/// Work that was captured once, to be given to a stream as a whole. Reads and writes the same
/// addresses every time, so it lives no longer than they do.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual void launch(Stream& stream) = 0;
};

/// What a device is and can do at best, measured.
struct DeviceCeilings {
  std::string name;               ///< for reports: model, multiprocessors, largest clocks
  double read_bytes_per_s = 0.0;  ///< a kernel that reads memory
  double copy_bytes_per_s = 0.0;  ///< device to device; read and written bytes counted
  double launch_s = 0.0;          ///< an empty kernel after another in a graph
};

/// Owns a block of memory, 256-byte aligned, zeroed. Movable; empty after a move.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::byte* data, int64_t size_bytes, std::function<void(std::byte*)> release);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  std::byte* data() const { return data_; }

  int64_t size_bytes() const { return size_bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
  std::function<void(std::byte*)> release_;
};

/// Largest sizes that ops will see; what Backend::reserve makes room for.
struct OpsLimits {
  int32_t max_step_tokens = 0;
  int32_t max_rows = 0;            ///< batch rows of a step
  int32_t max_context_tokens = 0;  ///< longest sequence
  int32_t num_heads = 0;           ///< of this rank
  int32_t qk_nope_head_dim = 0;
  int32_t qk_rope_head_dim = 0;
  int32_t v_head_dim = 0;
  int32_t kv_lora_rank = 0;
  int32_t vocab_size = 0;
};

/// Thread-safe except where said. One per device; outlives all it makes.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual Device device() const = 0;
  virtual Numerics numerics() const = 0;
  /// resource_exhausted says how many bytes were asked for and are free.
  virtual Result<Buffer> allocate(int64_t size_bytes, MemoryKind kind) = 0;
  virtual std::unique_ptr<Stream> create_stream() = 0;
  virtual std::unique_ptr<Event> create_event() = 0;
  /// Same dtype and shape, dense rows; host and device in any combination. The bytes of a host
  /// `src` must stay until the stream has passed.
  virtual void copy(TensorView dst, ConstTensorView src, Stream& stream) = 0;
  virtual MemoryInfo memory_info() const = 0;
  /// Makes the device form of a weight; `source` may be dropped afterwards. invalid_argument names
  /// what does not fit; resource_exhausted when memory is short. At load, one thread.
  virtual Result<std::unique_ptr<Weight>> prepare_weight(const WeightSource& source) = 0;
  /// Once, after the weights and before memory is planned: scratch that ops need for these sizes.
  virtual Status reserve(const OpsLimits& limits) = 0;
  /// What reserve would allocate. Pure arithmetic.
  virtual int64_t reserve_bytes(const OpsLimits& limits) const = 0;
  /// The ops of this backend; one step at a time.
  virtual Ops& ops() = 0;

  /// Of prompts: the chunk for which both forms of attention take as long after a much longer
  /// prefix, as measured (cheaper_form() of a plan); 0 = the non-absorbed one always.
  virtual int32_t absorbed_chunk_tokens() const { return 0; }

  /// Whether `capture` works. Without it every step is given op by op.
  virtual bool has_graphs() const { return false; }

  /// Runs `work`, which gives ops and copies to `stream` and waits for nothing: they are kept
  /// instead of executed. unsupported without has_graphs; resource_exhausted or unavailable when
  /// the device refuses.
  virtual Result<std::unique_ptr<Graph>> capture(Stream& stream, const std::function<void()>& work);

  /// Whether prepare_weight makes parts that are `generated`; otherwise their values must be there.
  virtual bool generates_weights() const { return false; }

  /// Takes about a second and some memory. unsupported where the app measures the host.
  virtual Result<DeviceCeilings> measure_ceilings();
};

enum class CpuMode : uint8_t {
  exact,  ///< float32 compute on dequantised weights, plain code: the reference
  fast,   ///< vector kernels chosen at run time
};

enum class CpuIsa : uint8_t { generic, avx2, avx512 };

struct CpuBackendConfig {
  CpuMode mode = CpuMode::fast;
  /// Fast mode takes the best instruction set that the processor has, up to this one.
  CpuIsa max_isa = CpuIsa::avx512;
  /// Threads that compute, the caller included; 0 = the hardware's.
  int32_t num_threads = 0;
  /// Rounds the inputs of FP8 linears to E4M3 with 1 x 128 scales, as the reference does on GPUs.
  bool e4m3_activations = false;
};

/// Which CUDA kernels run.
enum class KernelFamily : uint8_t {
  automatic,  ///< sm90a where GPU and build have it, otherwise sm80
  sm80,       ///< portable: every GPU from compute capability 8.0 on, Hopper included
  sm90a,      ///< with instructions that Hopper (9.0) alone has
};

struct CudaBackendConfig {
  int32_t device_index = 0;
  KernelFamily kernel_family = KernelFamily::automatic;
  bool sync_every_op = false;  ///< for debugging: errors surface at their op
  /// Rounds the inputs of FP8 linears to E4M3 with 1 x 128 scales where the GPU has FP8 units
  /// (compute capability 8.9 and later); otherwise they stay BF16, which is nearer to float32.
  bool e4m3_activations = false;
};

/// A GPU as its driver describes it.
struct CudaDevice {
  std::string name;
  int32_t compute_capability = 0;  ///< 90 for 9.0
  int64_t total_bytes = 0;
  KernelFamily kernel_family = KernelFamily::sm80;  ///< what runs there, never automatic
};

/// "auto", "sm80", "sm90a".
std::string_view to_string(KernelFamily family);

/// What runs on `device` (its name and compute capability) in a build that has sm90a kernels or
/// not. unsupported names the device on which `wanted` cannot run.
Result<KernelFamily> choose_kernel_family(KernelFamily wanted,
                                          const CudaDevice& device,
                                          bool has_sm90a);

std::unique_ptr<Backend> make_cpu_backend(const CpuBackendConfig& config);
/// unsupported when hadal was built without CUDA, or says why the device cannot be used.
Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendConfig& config);
/// The same errors, but for what only a context tells; makes none, so it takes no device memory.
Result<CudaDevice> find_cuda_device(int32_t device_index,
                                    KernelFamily kernel_family = KernelFamily::automatic);

}  // namespace hadal
