// Ranks as processes: the same bits as threads on any number of nodes, and an end with the rank
// named when one dies, hangs, leaves, is aborted or loses step.
#include <chrono>
#include <thread>

#include "catch.h"
#include "comm_values.h"
#include "forked_ranks.h"

namespace hadal {

namespace {

using namespace testing;
using Catch::Matchers::Contains;

#ifdef HADAL_SANITIZED
constexpr int kSlowness = 3;
constexpr size_t kCounts[] = {30, 1100};
#else
constexpr int kSlowness = 1;
constexpr size_t kCounts[] = {1, 30, 257, 3000};
#endif

/// Every collective once, checked by the rank itself; empty when all is right.
std::string check_collectives(Communicator& comm, size_t count) {
  const int32_t world = comm.world_size();
  const int32_t rank = comm.rank();
  const auto ranks = static_cast<size_t>(world);
  NullStream stream;
  std::vector<float> sum = values_of(rank, count);
  comm.all_reduce_sum(view_of(sum, DType::f32), stream);
  if (sum != sums_of(world, count)) {
    return "all_reduce of f32 is wrong";
  }
  std::vector<uint16_t> bf16 = to_bf16(values_of(rank, count));
  comm.all_reduce_sum(view_of(bf16, DType::bf16), stream);
  if (bf16 != bf16_sums_of(world, count)) {
    return "all_reduce of bf16 is wrong";
  }
  std::vector<int32_t> numbers(count, rank + 1);
  comm.all_reduce_sum(view_of(numbers, DType::i32), stream);
  if (numbers != std::vector<int32_t>(count, world * (world + 1) / 2)) {
    return "all_reduce of i32 is wrong";
  }
  std::vector<float> whole = values_of(rank, count * ranks);
  const std::vector<float> all_sums = sums_of(world, count * ranks);
  const auto begin =
      all_sums.begin() + static_cast<std::ptrdiff_t>(rank * static_cast<int32_t>(count));
  const std::vector<float> expected(begin, begin + static_cast<std::ptrdiff_t>(count));
  std::vector<float> part(count);
  comm.reduce_scatter_sum(view_of(whole, DType::f32), view_of(part, DType::f32), stream);
  if (part != expected) {
    return "reduce_scatter is wrong";
  }
  std::vector<uint16_t> half_whole = to_bf16(whole);
  std::vector<uint16_t> half_part(count);
  comm.reduce_scatter_sum(
      view_of(half_whole, DType::bf16), view_of(half_part, DType::bf16), stream);
  if (half_part[count - 1] !=
      bf16_sums_of(world, count * ranks)[static_cast<size_t>(rank + 1) * count - 1]) {
    return "reduce_scatter of bf16 is wrong";
  }
  std::vector<int32_t> mine(count, rank * 10);
  std::vector<int32_t> all(count * ranks);
  comm.all_gather(view_of(mine, DType::i32), view_of(all, DType::i32), stream);
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i] != static_cast<int32_t>(i / count) * 10) {
      return "all_gather is wrong";
    }
  }
  for (int32_t root = 0; root < world; ++root) {
    std::vector<int32_t> word(count, rank == root ? 100 + root : -1);
    comm.broadcast(view_of(word, DType::i32), root, stream);
    if (word != std::vector<int32_t>(count, 100 + root)) {
      return "broadcast from " + std::to_string(root) + " is wrong";
    }
  }
  const Status status = comm.poll_error();
  return status ? std::string() : status.error().message;
}

/// Waits in all_reduce until it fails; the reason.
std::string wait_for_failure(Communicator& comm) {
  NullStream stream;
  std::vector<float> data(8, 1.0F);
  Status status = comm.poll_error();
  for (int i = 0; i < 1000 && status; ++i) {
    comm.all_reduce_sum(view_of(data, DType::f32), stream);
    status = comm.poll_error();
  }
  return status ? "no failure"
                : std::to_string(static_cast<int>(status.error().code)) + ": " +
                      status.error().message;
}

std::string code_text(ErrorCode code) {
  return std::to_string(static_cast<int>(code)) + ": ";
}

}  // namespace

TEST_CASE("process ranks: every collective has the bits of threads", "[comm]") {
  struct Case {
    int32_t world;
    int32_t node_size;
    AllReduce all_reduce;
  };

  for (const Case& c : {Case{2, 2, AllReduce::hier},
                        Case{3, 3, AllReduce::hier},
                        Case{4, 2, AllReduce::hier},
                        Case{4, 2, AllReduce::flat},
                        Case{6, 3, AllReduce::flat},
                        Case{3, 1, AllReduce::hier},
                        Case{6, 2, AllReduce::hier}}) {
    INFO(c.world << " ranks, " << c.node_size << " a node, "
                 << (c.all_reduce == AllReduce::flat ? "flat" : "hier"));
    ForkedRanks ranks({.world_size = c.world,
                       .node_size = c.node_size,
                       .all_reduce = c.all_reduce,
                       .slot_bytes = 4096},
                      [](Communicator& comm) {
                        // Less than a cache line, odd, and several pieces of shared memory.
                        for (const size_t count : kCounts) {
                          std::string text = check_collectives(comm, count);
                          if (!text.empty()) {
                            return text + " with " + std::to_string(count) + " elements";
                          }
                        }
                        return std::string();
                      });
    CHECK(ranks.reports() == std::vector<std::string>(static_cast<size_t>(c.world)));
  }
}

TEST_CASE("process ranks: sixteen on a busy machine", "[comm]") {
  ForkedRanks ranks({.world_size = 16, .node_size = 8}, [](Communicator& comm) {
    NullStream stream;
    const std::vector<float> expected = sums_of(16, 512);
    const std::vector<float> mine = values_of(comm.rank(), 512);
    for (int i = 0; i < 60; ++i) {
      std::vector<float> data = mine;
      comm.all_reduce_sum(view_of(data, DType::f32), stream);
      if (data != expected) {
        return std::string("wrong sum");
      }
    }
    return std::string();
  });
  CHECK(ranks.reports() == std::vector<std::string>(16));
}

TEST_CASE("process ranks: a killed rank is named on every other one within a second", "[comm]") {
  for (const int32_t victim : {0, 3}) {
    ForkedRanks ranks({.world_size = 4, .node_size = 2}, [&](Communicator& comm) {
      if (comm.rank() == victim) {
        std::this_thread::sleep_for(std::chrono::seconds(100));
      }
      return wait_for_failure(comm);
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    ranks.signal(victim, SIGKILL);
    const auto begin = std::chrono::steady_clock::now();
    for (int32_t rank = 0; rank < 4; ++rank) {
      const std::string text = ranks.report(rank);
      INFO("rank " << rank << " says " << text);
      if (rank == victim) {
        CHECK(text == "signal 9");
        continue;
      }
      CHECK(text.starts_with(code_text(ErrorCode::unavailable)));
      // The counterpart and the neighbour see it themselves; the last hears from one of them.
      const int32_t neighbour = victim ^ 1;
      const int32_t counterpart = victim ^ 2;
      if (rank == neighbour || rank == counterpart) {
        CHECK_THAT(text, Contains("rank " + std::to_string(victim)));
      }
    }
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(1) * kSlowness);
  }
}

TEST_CASE("process ranks: a stopped rank is named once the deadline is over", "[comm]") {
  for (const int32_t node_size : {3, 1}) {
    ForkedRanks ranks({.world_size = 3, .node_size = node_size, .deadline_ms = 400 * kSlowness},
                      [&](Communicator& comm) {
                        if (comm.rank() == 1) {
                          ::raise(SIGSTOP);
                        }
                        return wait_for_failure(comm);
                      });
    for (const int32_t rank : {0, 2}) {
      const std::string text = ranks.report(rank);
      INFO("nodes of " << node_size << ": " << text);
      CHECK(text.starts_with(code_text(ErrorCode::unavailable)));
      CHECK_THAT(text,
                 Contains("rank 1 d") || Contains("rank 0 closed") || Contains("rank 2 closed"));
    }
  }
}

TEST_CASE("process ranks: abort from another thread frees all ranks", "[comm]") {
  for (const int32_t aborting : {0, 3}) {
    ForkedRanks ranks({.world_size = 4, .node_size = 2}, [&](Communicator& comm) {
      if (comm.rank() != aborting) {
        return wait_for_failure(comm);
      }
      // Its neighbour and counterpart wait for it; it waits for nobody.
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      comm.abort();
      comm.abort();
      return wait_for_failure(comm);
    });
    for (int32_t rank = 0; rank < 4; ++rank) {
      const std::string text = ranks.report(rank);
      INFO("rank " << rank << " says " << text);
      const bool in_node = rank / 2 == aborting / 2;
      CHECK(text.starts_with(code_text(in_node ? ErrorCode::cancelled : ErrorCode::unavailable)));
    }
  }
}

TEST_CASE("process ranks: a rank in another collective is told from its peers", "[comm]") {
  for (const int32_t node_size : {2, 1}) {
    ForkedRanks ranks({.world_size = 2, .node_size = node_size}, [](Communicator& comm) {
      NullStream stream;
      std::vector<float> data(comm.rank() == 1 ? 9 : 8, 1.0F);
      comm.all_reduce_sum(view_of(data, DType::f32), stream);
      const Status status = comm.poll_error();
      return status ? "no failure" : status.error().message;
    });
    const std::vector<std::string> texts = ranks.reports();
    const std::string both = texts[0] + texts[1];
    INFO(both);
    CHECK_THAT(both, Contains("all_reduce of 36 bytes") && Contains("all_reduce of 32 bytes"));
    CHECK_THAT(both, Contains("rank 1 brought") || Contains("rank 0 brought"));
  }
}

TEST_CASE("process ranks: configurations that cannot be are refused by name", "[comm]") {
  const auto refused = [](ProcessCommConfig config, const char* says) {
    const auto comm = make_process_communicator(std::move(config));
    REQUIRE_FALSE(comm);
    CHECK(comm.error().code == ErrorCode::invalid_argument);
    CHECK_THAT(comm.error().message, Contains(says));
  };
  const auto memory = create_node_memory(4);
  REQUIRE(memory);
  refused({.rank = 4, .world_size = 4, .node_size = 4, .peer_fds = {}}, "rank 4 is outside");
  refused({.rank = 0, .world_size = 4, .node_size = 3, .peer_fds = {}}, "nodes of 3 ranks");
  refused({.world_size = 2, .node_size = 2, .node_memory_fd = memory.value(), .peer_fds = {}},
          "made for 4 ranks, expected 2");
  refused({.world_size = 2, .node_size = 2, .node_memory_fd = -1, .peer_fds = {}}, "descriptor -1");
  refused({.world_size = 2, .node_size = 1, .peer_fds = {-1}}, "1 peer_fds for 2 nodes");
  refused({.world_size = 2, .node_size = 1, .peer_fds = {-1, -1}}, "peer_fds[1]");
  refused({.world_size = 6, .node_size = 3, .peer_fds = {-1, ::dup(0)}}, "--all-reduce flat");
  ::close(memory.value());
  CHECK_FALSE(create_node_memory(0));
  CHECK_FALSE(create_node_memory(4, 100));
}

TEST_CASE("connect_peers: strangers are dropped, and a missing rank is named", "[comm]") {
  auto listeners = std::vector<PeerListener>();
  for (int i = 0; i < 2; ++i) {
    auto listener = PeerListener::listen_on({"127.0.0.1", 0});
    REQUIRE(listener);
    listeners.push_back(std::move(listener).value());
  }
  PeerConnectConfig config;
  config.world_size = 2;
  config.addresses = {{"127.0.0.1", listeners[0].port()}, {"localhost", listeners[1].port()}};
  config.token.fill(std::byte{7});
  config.deadline_ms = 200;
  const auto alone = connect_peers(config, listeners[0]);
  REQUIRE_FALSE(alone);
  CHECK_THAT(alone.error().message, Contains("rank 1 did not connect to rank 0"));

  config.deadline_ms = 20000;
  Result<std::vector<int>> first = Error{};
  Result<std::vector<int>> second = Error{};
  {
    std::jthread accepting([&] { first = connect_peers(config, listeners[0]); });
    PeerConnectConfig stranger = config;
    stranger.rank = 1;
    stranger.token.fill(std::byte{8});
    stranger.deadline_ms = 300;
    const auto refused = connect_peers(stranger, listeners[1]);
    REQUIRE_FALSE(refused);
    CHECK_THAT(refused.error().message, Contains("is not rank 0 of this group"));
    PeerConnectConfig other = config;
    other.rank = 1;
    second = connect_peers(other, listeners[1]);
  }
  REQUIRE(first);
  REQUIRE(second);
  CHECK(::write(first.value()[1], "x", 1) == 1);
  char byte = 0;
  CHECK(::read(second.value()[0], &byte, 1) == 1);
  ::close(first.value()[1]);
  ::close(second.value()[0]);
}

}  // namespace hadal
