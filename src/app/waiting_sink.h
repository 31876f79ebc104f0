// Events of one sequence, handed from the engine thread to a thread that waits for them.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>

#include <hadal/engine/engine.h>

namespace hadal {

/// Bounded by the sequence itself: at most max_new_tokens + 1 events are ever pushed.
class WaitingSink final : public TokenSink {
 public:
  void on_event(TokenEvent event) noexcept override {
    {
      const std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
    }
    ready_.notify_one();
  }

  /// Blocks for the next event. After the one with `finish` none follows.
  TokenEvent next() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return !events_.empty(); });
    TokenEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<TokenEvent> events_;
};

}  // namespace hadal
