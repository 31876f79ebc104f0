// Thread communicators: every rank gets the result in the order of the tree, in any interleaving,
// and an abort frees the ranks that wait.
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include <hadal/comm/communicator.h>

#include "catch.h"
#include "comm_values.h"

namespace hadal {

namespace {

using namespace testing;

void on_all_ranks(std::vector<std::unique_ptr<Communicator>>& comms,
                  const std::function<void(Communicator&)>& body) {
  std::vector<std::jthread> threads;
  threads.reserve(comms.size());
  for (auto& comm : comms) {
    threads.emplace_back([&body, &comm] { body(*comm); });
  }
}

}  // namespace

TEST_CASE("ThreadCommunicator: sums add neighbours first, the same on every rank", "[comm]") {
  for (const int32_t world : {1, 2, 3, 4, 7}) {
    auto comms = make_thread_communicators(world);
    const size_t count = 259;
    const std::vector<float> expected = sums_of(world, count);
    std::vector<std::vector<float>> results(static_cast<size_t>(world));
    on_all_ranks(comms, [&](Communicator& comm) {
      NullStream stream;
      for (int repeat = 0; repeat < 50; ++repeat) {
        std::vector<float> data = values_of(comm.rank(), count);
        comm.all_reduce_sum(view_of(data, DType::f32), stream);
        results[static_cast<size_t>(comm.rank())] = std::move(data);
      }
    });
    for (const auto& result : results) {
      CHECK(result == expected);
    }
  }
}

TEST_CASE("ThreadCommunicator: bf16 sums in float32 and rounds once; i32 sums exactly", "[comm]") {
  auto comms = make_thread_communicators(4);
  std::vector<uint16_t> sums(4);
  std::vector<int32_t> counts(4);
  on_all_ranks(comms, [&](Communicator& comm) {
    NullStream stream;
    // 1 + 3 x 2^-9: each addend alone would be rounded away.
    std::vector<uint16_t> data{f32_to_bf16(comm.rank() == 0 ? 1.0F : 0x1p-9F)};
    comm.all_reduce_sum(view_of(data, DType::bf16), stream);
    std::vector<int32_t> numbers{comm.rank() * 100};
    comm.all_reduce_sum(view_of(numbers, DType::i32), stream);
    sums[static_cast<size_t>(comm.rank())] = data[0];
    counts[static_cast<size_t>(comm.rank())] = numbers[0];
  });
  CHECK(sums == std::vector<uint16_t>(4, f32_to_bf16(1.0F + 3.0F * 0x1p-9F)));
  CHECK(counts == std::vector<int32_t>(4, 600));
}

TEST_CASE("ThreadCommunicator: gathers and broadcasts mix in any order", "[comm]") {
  auto comms = make_thread_communicators(4);
  std::vector<int> mistakes(4, 0);
  on_all_ranks(comms, [&](Communicator& comm) {
    NullStream stream;
    int& wrong = mistakes[static_cast<size_t>(comm.rank())];
    for (int32_t round = 0; round < 100; ++round) {
      std::vector<int32_t> mine{comm.rank() + round, -comm.rank()};
      std::vector<int32_t> all(8);
      comm.all_gather(view_of(mine, DType::i32), view_of(all, DType::i32), stream);
      for (int32_t rank = 0; rank < 4; ++rank) {
        wrong += all[static_cast<size_t>(rank) * 2] != rank + round ? 1 : 0;
        wrong += all[static_cast<size_t>(rank) * 2 + 1] != -rank ? 1 : 0;
      }
      std::vector<int32_t> word{comm.rank() == round % 4 ? round : -1};
      comm.broadcast(view_of(word, DType::i32), round % 4, stream);
      wrong += word[0] != round ? 1 : 0;
      std::vector<int32_t> parts{1, 2, 3, round};
      std::vector<int32_t> part(1);
      comm.reduce_scatter_sum(view_of(parts, DType::i32), view_of(part, DType::i32), stream);
      wrong += part[0] != 4 * (comm.rank() == 3 ? round : comm.rank() + 1) ? 1 : 0;
    }
    wrong += comm.poll_error() ? 0 : 1;
  });
  CHECK(mistakes == std::vector<int>(4, 0));
}

TEST_CASE("ThreadCommunicator: an abort frees waiting ranks and is remembered", "[comm]") {
  auto comms = make_thread_communicators(2);
  {
    std::jthread waiting([&] {
      NullStream stream;
      std::vector<float> data(4, 1.0F);
      comms[0]->all_reduce_sum(view_of(data, DType::f32), stream);  // rank 1 never comes
      comms[0]->all_reduce_sum(view_of(data, DType::f32), stream);  // returns at once
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    comms[1]->abort();
  }
  for (auto& comm : comms) {
    const Status status = comm->poll_error();
    REQUIRE_FALSE(status);
    CHECK(status.error().code == ErrorCode::cancelled);
  }
}

TEST_CASE("SelfCommunicator: collectives are the identity", "[comm]") {
  const auto comm = make_self_communicator();
  NullStream stream;
  std::vector<float> data{1.0F, 2.0F};
  std::vector<float> out(2);
  comm->all_reduce_sum(view_of(data, DType::f32), stream);
  comm->all_gather(view_of(data, DType::f32), view_of(out, DType::f32), stream);
  comm->broadcast(view_of(data, DType::f32), 0, stream);
  comm->reduce_scatter_sum(view_of(data, DType::f32), view_of(data, DType::f32), stream);
  CHECK(out == std::vector<float>{1.0F, 2.0F});
  CHECK(data == out);
  CHECK(comm->world_size() == 1);
  CHECK(comm->poll_error());
}

TEST_CASE("loopback: sums keep this rank's part, gathers repeat it", "[comm]") {
  const auto backend = make_cpu_backend({.num_threads = 1});
  const auto stream = backend->create_stream();
  for (const int32_t world : {2, 3, 16}) {
    const auto comm = make_loopback_communicator(*backend, world - 1, world);
    CHECK(comm->rank() == world - 1);
    CHECK(comm->world_size() == world);
    std::vector<float> part{1.0F, 2.0F, 3.0F};
    comm->all_reduce_sum(view_of(part, DType::f32), *stream);
    CHECK(part == std::vector<float>{1.0F, 2.0F, 3.0F});
    std::vector<float> all(3 * static_cast<size_t>(world), -1.0F);
    comm->all_gather(view_of(part, DType::f32), view_of(all, DType::f32), *stream);
    for (size_t i = 0; i < all.size(); ++i) {
      CHECK(all[i] == part[i % 3]);
    }
    for (size_t i = 0; i < all.size(); ++i) {
      all[i] = static_cast<float>(i);
    }
    comm->reduce_scatter_sum(view_of(all, DType::f32), view_of(part, DType::f32), *stream);
    CHECK(part[0] == static_cast<float>(3 * (world - 1)));
  }
}

}  // namespace hadal
