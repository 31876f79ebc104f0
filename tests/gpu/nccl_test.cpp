// NCCL with one rank: every collective, alone and in a CUDA graph, the two-level composition over
// it, and an abort that ends quickly and stays. With two GPUs, ranks that are threads. Passes
// without a GPU, saying so.
#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#include <cuda_runtime_api.h>

#include <hadal/comm/nccl_communicator.h>
#include <hadal/comm/process_communicator.h>

#include "catch.h"
#include "cuda_stream.h"

namespace hadal {
namespace {

bool has_gpu() {
  int count = 0;
  const bool found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  if (!found) {
    WARN("skipped: no GPU");
  }
  return found;
}

std::unique_ptr<NcclCommunicator> make_alone() {
  const auto id = make_nccl_id();
  INFO((id ? std::string() : id.error().message));
  REQUIRE(id);
  auto comm = make_nccl_communicator({.id = id.value()});
  INFO((comm ? std::string() : comm.error().message));
  REQUIRE(comm);
  return std::move(comm).value();
}

const Device kDevice{DeviceType::cuda, 0};

/// A device array of floats 0, 1, 2, ... in the communicator's memory.
TensorView make_floats(NcclCommunicator& comm, int64_t count) {
  auto memory = comm.allocate_symmetric(count * static_cast<int64_t>(sizeof(float)));
  INFO((memory ? std::string() : memory.error().message));
  REQUIRE(memory);
  std::vector<float> host(static_cast<size_t>(count));
  std::iota(host.begin(), host.end(), 0.0F);
  HADAL_CUDA_CHECK(
      cudaMemcpy(memory.value(), host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice));
  return make_view(memory.value(), DType::f32, Shape{count}, kDevice);
}

std::vector<float> host_of(const TensorView& view) {
  std::vector<float> values(static_cast<size_t>(view.shape.numel()));
  HADAL_CUDA_CHECK(
      cudaMemcpy(values.data(), view.data, values.size() * sizeof(float), cudaMemcpyDeviceToHost));
  return values;
}

}  // namespace

TEST_CASE("NCCL: one rank's collectives are the identity, in graphs as well", "[gpu]") {
  if (!has_gpu()) {
    return;
  }
  auto comm = make_alone();
  cuda::CudaStream stream(0);
  const TensorView data = make_floats(*comm, 7168);
  const TensorView other = make_floats(*comm, 7168);
  const std::vector<float> expected = host_of(data);
  const auto run = [&] {
    comm->all_reduce_sum(data, stream);
    comm->all_gather(data, other, stream);
    comm->reduce_scatter_sum(other, data, stream);
    comm->broadcast(data, 0, stream);
  };
  run();
  stream.synchronize();
  CHECK(host_of(data) == expected);
  CHECK(host_of(other) == expected);

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  HADAL_CUDA_CHECK(cudaStreamBeginCapture(stream.handle(), cudaStreamCaptureModeThreadLocal));
  run();
  HADAL_CUDA_CHECK(cudaStreamEndCapture(stream.handle(), &graph));
  HADAL_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  for (int i = 0; i < 10; ++i) {
    HADAL_CUDA_CHECK(cudaGraphLaunch(executable, stream.handle()));
  }
  stream.synchronize();
  CHECK(host_of(data) == expected);
  CHECK(comm->poll_error());
  HADAL_CUDA_CHECK(cudaGraphExecDestroy(executable));
  HADAL_CUDA_CHECK(cudaGraphDestroy(graph));
}

TEST_CASE("NCCL: two levels of one rank each compose", "[gpu]") {
  if (!has_gpu()) {
    return;
  }
  auto memory_owner = make_alone();
  cuda::CudaStream stream(0);
  const TensorView data = make_floats(*memory_owner, 1024);
  const auto both = make_two_level_communicator(make_alone(), make_alone(), AllReduce::hier);
  both->all_reduce_sum(data, stream);
  both->all_gather(data, data, stream);
  both->broadcast(data, 0, stream);
  stream.synchronize();
  CHECK(host_of(data)[1023] == 1023.0F);
  CHECK(both->poll_error());
}

TEST_CASE("NCCL: an abort ends within three seconds and is remembered", "[gpu]") {
  if (!has_gpu()) {
    return;
  }
  auto comm = make_alone();
  cuda::CudaStream stream(0);
  const TensorView data = make_floats(*comm, 1024);
  comm->all_reduce_sum(data, stream);
  const auto begin = std::chrono::steady_clock::now();
  comm->fail(Error{ErrorCode::unavailable, "injected"});
  stream.synchronize();
  comm->all_reduce_sum(data, stream);
  stream.synchronize();
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(3));
  const Status status = comm->poll_error();
  REQUIRE_FALSE(status);
  CHECK(status.error().message == "injected");
}

namespace {

/// A rank that is a thread with a GPU of its own; Catch stays on the main thread.
struct ThreadRank {
  std::unique_ptr<NcclCommunicator> comm;
  std::unique_ptr<cuda::CudaStream> stream;
  TensorView data;   ///< 1024 floats: 1 + rank
  TensorView parts;  ///< two of them
  std::string error;

  void make(const NcclId& id, int32_t rank) {
    auto made = make_nccl_communicator(
        {.id = id, .rank = rank, .world_size = 2, .device_index = rank, .deadline_ms = 60000});
    if (!made) {
      error = made.error().message;
      return;
    }
    comm = std::move(made).value();
    stream = std::make_unique<cuda::CudaStream>(rank);
    const std::vector<float> values(1024, static_cast<float>(1 + rank));
    void* memory = nullptr;
    HADAL_CUDA_CHECK(cudaMalloc(&memory, 3 * 4096));
    HADAL_CUDA_CHECK(cudaMemcpy(memory, values.data(), 4096, cudaMemcpyHostToDevice));
    const Device device{DeviceType::cuda, rank};
    auto* bytes = static_cast<std::byte*>(memory);
    data = make_view(bytes, DType::f32, Shape{1024}, device);
    parts = make_view(bytes + 4096, DType::f32, Shape{2, 1024}, device);
  }
};

template <class Work>
void on_two_threads(const Work& work) {
  std::jthread other([&] { work(1); });
  work(0);
}

}  // namespace

TEST_CASE("NCCL: ranks as threads sum, gather, and are freed of a rank that does not come",
          "[gpu]") {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count < 2) {
    WARN("skipped: fewer than two GPUs");
    return;
  }
  const auto id = make_nccl_id();
  REQUIRE(id);
  std::vector<ThreadRank> ranks(2);
  on_two_threads([&](int32_t r) { ranks[static_cast<size_t>(r)].make(id.value(), r); });
  REQUIRE(ranks[0].error.empty());
  REQUIRE(ranks[1].error.empty());
  on_two_threads([&](int32_t r) {
    ThreadRank& rank = ranks[static_cast<size_t>(r)];
    for (int i = 0; i < 10; ++i) {
      rank.comm->all_gather(rank.data, rank.parts, *rank.stream);
      rank.comm->all_reduce_sum(rank.data, *rank.stream);
    }
    rank.stream->synchronize();
  });
  // Sums double after the first, which makes 3; the last gather saw what the ninth sum left.
  for (ThreadRank& rank : ranks) {
    CHECK(rank.comm->poll_error());
    CHECK(host_of(rank.data) == std::vector<float>(1024, 3.0F * 512));
    CHECK(host_of(rank.parts) == std::vector<float>(2048, 3.0F * 256));
  }

  const auto begin = std::chrono::steady_clock::now();
  std::jthread waiting([&] {
    ranks[1].comm->all_reduce_sum(ranks[1].data, *ranks[1].stream);
    ranks[1].stream->synchronize();
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  for (ThreadRank& rank : ranks) {
    rank.comm->fail(Error{ErrorCode::unavailable, "injected"});
  }
  waiting.join();
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(10));
  CHECK_FALSE(ranks[1].comm->poll_error());
}

TEST_CASE("NCCL: a missing rank ends at the deadline", "[gpu]") {
  if (!has_gpu()) {
    return;
  }
  const auto id = make_nccl_id();
  REQUIRE(id);
  const auto begin = std::chrono::steady_clock::now();
  const auto comm =
      make_nccl_communicator({.id = id.value(), .rank = 0, .world_size = 2, .deadline_ms = 1000});
  REQUIRE_FALSE(comm);
  CHECK(comm.error().code == ErrorCode::unavailable);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(10));
}

}  // namespace hadal
