// Events of one HTTP request's choices on their way from the engine thread to the session.
//
// Its length is bounded by what was asked for: one event per token and choice, plus the last ones.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <hadal/engine/engine.h>

namespace hadal::api {

class TokenQueue {
 public:
  struct Item {
    size_t choice = 0;
    TokenEvent event;
  };

  /// `wake` is called on the pushing thread, under the queue's lock, when the queue stops being
  /// empty; it must not call back.
  explicit TokenQueue(std::function<void()> wake) : wake_(std::move(wake)) {}

  void push(size_t choice, TokenEvent event) noexcept;
  std::vector<Item> take();
  /// Later events are dropped and `wake` is never called again.
  void close();

 private:
  std::mutex mutex_;
  std::function<void()> wake_;
  std::vector<Item> items_;
  bool is_closed_ = false;
};

/// The sink of one choice.
class QueueSink final : public TokenSink {
 public:
  QueueSink(std::shared_ptr<TokenQueue> queue, size_t choice)
      : queue_(std::move(queue)), choice_(choice) {}

  void on_event(TokenEvent event) noexcept override { queue_->push(choice_, std::move(event)); }

 private:
  std::shared_ptr<TokenQueue> queue_;
  size_t choice_;
};

}  // namespace hadal::api
