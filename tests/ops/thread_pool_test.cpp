// The thread pool: every task exactly once, in loops of any size, and no work while idle.
#include "thread_pool.h"

#include <atomic>
#include <chrono>
#include <ctime>
#include <thread>
#include <vector>

#include "catch.h"

namespace hadal::test {

TEST_CASE("ThreadPool: every task runs exactly once", "[ops]") {
  for (const int32_t threads : {1, 2, 4}) {
    cpu::ThreadPool pool(threads);
    for (int round = 0; round < 300; ++round) {
      const int64_t tasks = round % 37;
      std::vector<std::atomic<int32_t>> runs(static_cast<size_t>(tasks));
      std::atomic<bool> thread_is_valid{true};
      pool.run(tasks, [&](int64_t task, int32_t thread) {
        ++runs[static_cast<size_t>(task)];
        if (thread < 0 || thread >= threads) {
          thread_is_valid = false;
        }
      });
      for (const auto& count : runs) {
        REQUIRE(count.load() == 1);
      }
      REQUIRE(thread_is_valid.load());
      if (round % 100 == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));  // workers fall asleep
      }
    }
  }
}

TEST_CASE("ThreadPool: idle workers use no processor time", "[ops]") {
  cpu::ThreadPool pool(3);
  pool.run(100, [](int64_t /*task*/, int32_t /*thread*/) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const double used = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  CHECK(used < 0.002);  // 1 % of a core
}

}  // namespace hadal::test
