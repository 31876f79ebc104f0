// A sink that keeps every event and can be waited for.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <hadal/engine/engine.h>

namespace hadal {

class CollectingSink final : public TokenSink {
 public:
  void on_event(TokenEvent event) noexcept override {
    const std::lock_guard lock(mutex_);
    num_terminal_ += event.finish ? 1 : 0;
    events_.push_back(std::move(event));
    changed_.notify_all();
  }

  /// False when no terminal event came within 20 s.
  bool wait_finished() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return num_terminal_ > 0; });
  }

  bool wait_for_tokens(size_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(
        lock, std::chrono::seconds(20), [&] { return events_.size() >= count; });
  }

  std::vector<TokenEvent> events() const {
    const std::lock_guard lock(mutex_);
    return events_;
  }

  std::vector<TokenId> tokens() const {
    std::vector<TokenId> out;
    for (const TokenEvent& event : events()) {
      if (event.token)
        out.push_back(*event.token);
    }
    return out;
  }

  int num_terminal() const {
    const std::lock_guard lock(mutex_);
    return num_terminal_;
  }

  TokenEvent last() const { return events().back(); }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<TokenEvent> events_;
  int num_terminal_ = 0;
};

}  // namespace hadal
