// See thread_pool.h.
#include "thread_pool.h"

#include <hadal/base/check.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hadal::cpu {

namespace {

constexpr int32_t kSpins = 600;       ///< about 30 us of pauses before a worker sleeps
constexpr int32_t kJoinSpins = 4000;  ///< before the caller starts to yield its core
constexpr uint64_t kCountMask = 0xffffffffULL;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int32_t num_threads) : num_threads_(num_threads) {
  HADAL_CHECK(num_threads >= 1, "a thread pool has at least its caller");
  threads_.reserve(static_cast<size_t>(num_threads - 1));
  for (int32_t thread = 1; thread < num_threads; ++thread) {
    threads_.emplace_back([this, thread] { work(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
}

bool ThreadPool::run_one(int32_t thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while ((ticket & kCountMask) != 0) {
    if (ticket_.compare_exchange_weak(
            ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      // The loop cannot end before this task does, so its function and context stay put.
      function_(context_, static_cast<int64_t>((ticket & kCountMask) - 1), thread);
      pending_.fetch_sub(1, std::memory_order_acq_rel);
      return true;
    }
  }
  return false;
}

void ThreadPool::work(int32_t thread) {
  while (true) {
    const uint32_t seen = wake_.load();
    bool worked = false;
    for (int32_t spin = 0; spin < kSpins; ++spin) {
      if (run_one(thread)) {
        worked = true;
        break;
      }
      pause_briefly();
    }
    if (worked) {
      continue;
    }
    if (stopping_.load()) {
      return;
    }
    wake_.wait(seen);
  }
}

void ThreadPool::run_erased(int64_t num_tasks, Function function, const void* context) {
  HADAL_CHECK(num_tasks <= static_cast<int64_t>(kCountMask), "too many tasks in one loop");
  function_ = function;
  context_ = context;
  pending_.store(num_tasks, std::memory_order_relaxed);
  const uint64_t epoch = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store((epoch << 32) | static_cast<uint64_t>(num_tasks), std::memory_order_release);
  wake_.fetch_add(1);
  wake_.notify_all();
  while (run_one(0)) {
  }
  int32_t spins = 0;
  while (pending_.load(std::memory_order_acquire) != 0) {
    if (++spins < kJoinSpins) {
      pause_briefly();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace hadal::cpu
