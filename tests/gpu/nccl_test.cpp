// NCCL with one rank: every collective, alone and in a CUDA graph, the two-level composition over
// it, and an abort that ends quickly and stays. Passes without a GPU, saying so.
#include <chrono>
#include <cstring>
#include <numeric>
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
