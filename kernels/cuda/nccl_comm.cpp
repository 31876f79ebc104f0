// NCCL behind the Communicator. The communicator is non-blocking: a call returns ncclInProgress
// until its connections stand, so every wait here has a deadline and sees an abort. It is aborted,
// never destroyed: destroying waits for peers that may be gone.
//
// NCCL's calls on one communicator do not run side by side; a mutex keeps abort and the watching
// thread off a call in progress. No call holds it long, since none blocks.
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <nccl.h>

#include <hadal/base/clock.h>
#include <hadal/comm/nccl_communicator.h>

#include "cuda_stream.h"

namespace hadal::cuda {

namespace {

constexpr auto kWatchPeriod = std::chrono::milliseconds(100);
constexpr auto kProgressPeriod = std::chrono::microseconds(50);

static_assert(sizeof(NcclId) == NCCL_UNIQUE_ID_BYTES);

/// Multicast hangs on machines whose fabric manager is not set up for it, so it is off unless asked
/// for. NCCL reads this once, before the first communicator.
void decide_nvls(bool enabled) {
  static std::once_flag once;
  std::call_once(once, [&] { ::setenv("NCCL_NVLS_ENABLE", enabled ? "1" : "0", 1); });
}

Error nccl_error(ncclResult_t code, ncclComm_t comm, const std::string& what) {
  const char* last = ncclGetLastError(comm);
  std::string text = "NCCL: " + what + ": " + ncclGetErrorString(code);
  if (last != nullptr && *last != '\0') {
    text += std::string(" (") + last + ")";
  }
  return Error{ErrorCode::unavailable, text};
}

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::i32:
      return ncclInt32;
    default:
      break;
  }
  HADAL_CHECK(false, "NCCL sum of " + std::string(to_string(dtype)));
  return ncclInt8;
}

size_t bytes_of(const ConstTensorView& view) {
  HADAL_CHECK(view.strides == dense_strides(view.shape), "a collective needs a dense tensor");
  HADAL_CHECK(view.device.type == DeviceType::cuda, "NCCL takes device memory only");
  return static_cast<size_t>(view.shape.numel() * size_of(view.dtype));
}

class NcclComm final : public NcclCommunicator {
 public:
  explicit NcclComm(const NcclCommConfig& config) : config_(config) {}

  ~NcclComm() override {
    {
      const std::lock_guard lock(mutex_);
      is_closing_ = true;
      end_locked();
    }
    closing_.notify_all();
    watcher_ = std::jthread();
    for (void* memory : memories_) {
      (void)ncclMemFree(memory);
    }
  }

  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  Status connect() {
    HADAL_RETURN_IF_ERROR(to_status(cudaSetDevice(config_.device_index),
                                    "device " + std::to_string(config_.device_index)));
    ncclUniqueId id;
    std::memcpy(&id, config_.id.data(), sizeof id);
    ncclConfig_t options = NCCL_CONFIG_INITIALIZER;
    options.blocking = 0;
    call("connect " + std::to_string(config_.world_size) + " ranks", [&] {
      return ncclCommInitRankConfig(&comm_, config_.world_size, id, config_.rank, &options);
    });
    HADAL_RETURN_IF_ERROR(poll_error());
    watcher_ = std::jthread([this] { watch(); });
    return ok_status();
  }

  int32_t rank() const override { return config_.rank; }

  int32_t world_size() const override { return config_.world_size; }

  void all_reduce_sum(TensorView inout, Stream& stream) override {
    bytes_of(inout);
    call("all_reduce", [&] {
      return ncclAllReduce(inout.data,
                           inout.data,
                           static_cast<size_t>(inout.shape.numel()),
                           nccl_type(inout.dtype),
                           ncclSum,
                           comm_,
                           handle_of(stream));
    });
  }

  void reduce_scatter_sum(ConstTensorView in, TensorView out, Stream& stream) override {
    HADAL_CHECK(bytes_of(in) == bytes_of(out) * static_cast<size_t>(world_size()),
                "reduce_scatter: in is not world_size x out");
    call("reduce_scatter", [&] {
      return ncclReduceScatter(in.data,
                               out.data,
                               static_cast<size_t>(out.shape.numel()),
                               nccl_type(in.dtype),
                               ncclSum,
                               comm_,
                               handle_of(stream));
    });
  }

  void all_gather(ConstTensorView in, TensorView out, Stream& stream) override {
    const size_t bytes = bytes_of(in);
    HADAL_CHECK(bytes_of(out) == bytes * static_cast<size_t>(world_size()),
                "all_gather: out is not world_size x in");
    call("all_gather", [&] {
      return ncclAllGather(in.data, out.data, bytes, ncclInt8, comm_, handle_of(stream));
    });
  }

  void broadcast(TensorView inout, int32_t root, Stream& stream) override {
    HADAL_CHECK(root >= 0 && root < world_size(), "broadcast: root is outside the world");
    const size_t bytes = bytes_of(inout);
    call("broadcast", [&] {
      return ncclBroadcast(inout.data, inout.data, bytes, ncclInt8, root, comm_, handle_of(stream));
    });
  }

  Status poll_error() override {
    const std::lock_guard lock(mutex_);
    look_locked();
    return error_ ? Status(*error_) : ok_status();
  }

  void abort() noexcept override {
    fail(Error{ErrorCode::cancelled, "the group of ranks was aborted"});
  }

  void fail(const Error& reason) noexcept override {
    const std::lock_guard lock(mutex_);
    fail_locked(reason);
  }

  Result<std::byte*> allocate_symmetric(int64_t size_bytes) override {
    HADAL_RETURN_IF_ERROR(to_status(cudaSetDevice(config_.device_index), "symmetric memory"));
    void* memory = nullptr;
    const auto size = static_cast<size_t>(size_bytes);
    if (const ncclResult_t code = ncclMemAlloc(&memory, size); code != ncclSuccess) {
      return Error{ErrorCode::resource_exhausted,
                   nccl_error(code, nullptr, std::to_string(size_bytes) + " bytes").message};
    }
    memories_.push_back(memory);
    HADAL_RETURN_IF_ERROR(to_status(cudaMemset(memory, 0, size), "symmetric memory"));
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
    ncclWindow_t& window = windows_.emplace_back();  // NCCL may write it after an abort
    call("register symmetric memory", [&] {
      return ncclCommWindowRegister(comm_, memory, size, &window, NCCL_WIN_COLL_SYMMETRIC);
    });
#else
    void*& handle = handles_.emplace_back();
    call("register memory", [&] { return ncclCommRegister(comm_, memory, size, &handle); });
#endif
    HADAL_RETURN_IF_ERROR(poll_error());
    return static_cast<std::byte*>(memory);
  }

 private:
  /// Makes one NCCL call and waits until it has taken effect: its work is on the stream then, not
  /// done. Failures are kept for poll_error.
  template <class Call>
  void call(const std::string& what, const Call& make) {
    const TimePoint end = system_clock().now() + std::chrono::milliseconds(config_.deadline_ms);
    {
      const std::lock_guard lock(mutex_);
      if (error_) {
        return;
      }
      const ncclResult_t code = make();
      if (code != ncclSuccess && code != ncclInProgress) {
        fail_locked(nccl_error(code, comm_, what));
        return;
      }
    }
    // Also after ncclSuccess: registering memory goes on in a thread of NCCL's own.
    while (is_in_progress()) {
      if (system_clock().now() > end) {
        fail(Error{ErrorCode::unavailable,
                   "NCCL: " + what + " on rank " + std::to_string(config_.rank) +
                       ": the other ranks did not come within " +
                       std::to_string(config_.deadline_ms) + " ms"});
        return;
      }
      std::this_thread::sleep_for(kProgressPeriod);
    }
  }

  bool is_in_progress() {
    const std::lock_guard lock(mutex_);
    return !error_ && look_locked() == ncclInProgress;
  }

  /// The communicator's state; an error ends it.
  ncclResult_t look_locked() {
    if (error_ || comm_ == nullptr) {
      return ncclSuccess;
    }
    ncclResult_t state = ncclSuccess;
    const ncclResult_t code = ncclCommGetAsyncError(comm_, &state);
    const ncclResult_t found = code != ncclSuccess ? code : state;
    if (found != ncclSuccess && found != ncclInProgress) {
      fail_locked(nccl_error(found, comm_, "rank " + std::to_string(config_.rank)));
    }
    return found;
  }

  void fail_locked(const Error& reason) {
    if (!error_) {
      error_ = reason;
    }
    end_locked();
  }

  void end_locked() {
    if (comm_ != nullptr) {
      (void)ncclCommAbort(comm_);
      comm_ = nullptr;
    }
  }

  void watch() {
    std::unique_lock lock(mutex_);
    while (!is_closing_ && !error_) {
      look_locked();
      closing_.wait_for(lock, kWatchPeriod, [&] { return is_closing_; });
    }
  }

  const NcclCommConfig config_;
  std::mutex mutex_;
  std::condition_variable closing_;
  ncclComm_t comm_ = nullptr;
  std::optional<Error> error_;
  bool is_closing_ = false;
  std::vector<void*> memories_;
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
  std::deque<ncclWindow_t> windows_;  ///< as long as the communicator; addresses stay
#else
  std::deque<void*> handles_;
#endif
  std::jthread watcher_;  ///< last: ends before what it looks at
};

}  // namespace

}  // namespace hadal::cuda

namespace hadal {

Result<NcclId> make_nccl_id() {
  ncclUniqueId id;
  if (const ncclResult_t code = ncclGetUniqueId(&id); code != ncclSuccess) {
    return cuda::nccl_error(code, nullptr, "unique id");
  }
  NcclId bytes;
  std::memcpy(bytes.data(), &id, sizeof id);
  return bytes;
}

Result<std::unique_ptr<NcclCommunicator>> make_nccl_communicator(const NcclCommConfig& config) {
  if (config.world_size < 1 || config.rank < 0 || config.rank >= config.world_size ||
      config.deadline_ms < 1) {
    return Error{ErrorCode::invalid_argument,
                 "NCCL: rank " + std::to_string(config.rank) + " of " +
                     std::to_string(config.world_size) + " within " +
                     std::to_string(config.deadline_ms) + " ms"};
  }
  cuda::decide_nvls(config.enable_nvls);
  auto comm = std::make_unique<cuda::NcclComm>(config);
  HADAL_RETURN_IF_ERROR(comm->connect());
  return std::unique_ptr<NcclCommunicator>(std::move(comm));
}

}  // namespace hadal
