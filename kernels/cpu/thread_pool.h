// The threads that compute: one parallel loop at a time, with little cost a loop.
//
// A loop is published as one 64-bit ticket, (epoch, tasks left). Claiming a task is a compare and
// swap on it, so a thread that wakes late can only ever claim from the loop that is running, and
// nobody waits for sleepers. Threads spin for some tens of microseconds after a loop and then sleep
// in the kernel, so an idle server costs nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace hadal::cpu {

class ThreadPool {
 public:
  /// num_threads includes the thread that calls run; >= 1.
  explicit ThreadPool(int32_t num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int32_t num_threads() const { return num_threads_; }

  /// Calls body(task, thread) for every task in 0..num_tasks, in any order, on any thread; returns
  /// when all are done. One caller at a time; not from inside a body.
  template <class Body>
  void run(int64_t num_tasks, const Body& body) {
    if (num_threads_ == 1 || num_tasks <= 1) {
      for (int64_t task = 0; task < num_tasks; ++task) {
        body(task, 0);
      }
      return;
    }
    run_erased(
        num_tasks,
        [](const void* context, int64_t task, int32_t thread) {
          (*static_cast<const Body*>(context))(task, thread);
        },
        &body);
  }

 private:
  using Function = void (*)(const void* context, int64_t task, int32_t thread);

  void run_erased(int64_t num_tasks, Function function, const void* context);
  void work(int32_t thread);
  bool run_one(int32_t thread);

  const int32_t num_threads_;
  Function function_ = nullptr;
  const void* context_ = nullptr;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> pending_{0};
  alignas(64) std::atomic<uint32_t> wake_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::jthread> threads_;
};

}  // namespace hadal::cpu
