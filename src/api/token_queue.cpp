// A vector under a mutex; the session takes all of it at once.
#include "token_queue.h"

namespace hadal::api {

void TokenQueue::push(size_t choice, TokenEvent event) noexcept {
  const std::lock_guard lock(mutex_);
  if (is_closed_) {
    return;
  }
  const bool was_empty = items_.empty();
  items_.push_back({choice, std::move(event)});
  if (was_empty) {
    wake_();
  }
}

std::vector<TokenQueue::Item> TokenQueue::take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(items_, {});
}

void TokenQueue::close() {
  const std::lock_guard lock(mutex_);
  is_closed_ = true;
  items_.clear();
  wake_ = {};
}

}  // namespace hadal::api
