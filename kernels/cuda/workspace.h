// Scratch that all ops of a backend share: one block, made by reserve, cut anew by every op. Ops of
// one backend run in one order, so an op may overwrite what the one before it left.
#pragma once

#include <cstdint>
#include <string>

#include <hadal/backend/backend.h>
#include <hadal/base/check.h>

namespace hadal::cuda {

class Workspace {
 public:
  void set_memory(Buffer memory) { memory_ = std::move(memory); }

  /// Begins an op: everything taken before is given up.
  void reset() { used_ = 0; }

  /// What is taken after a mark can be given up alone.
  int64_t mark() const { return used_; }

  void reset_to(int64_t mark) { used_ = mark; }

  int64_t free_bytes() const { return memory_.size_bytes() - used_; }

  /// 256-byte aligned; undefined contents. Aborts when reserve was not called with limits that
  /// cover this op.
  template <class T>
  T* take(int64_t count) {
    const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    HADAL_CHECK(bytes <= free_bytes(),
                "an op needs " + std::to_string(bytes) + " bytes of workspace, " +
                    std::to_string(free_bytes()) + " of " + std::to_string(memory_.size_bytes()) +
                    " are free: reserve() was given less");
    T* result = reinterpret_cast<T*>(memory_.data() + used_);
    used_ += bytes;
    return result;
  }

 private:
  Buffer memory_;
  int64_t used_ = 0;
};

}  // namespace hadal::cuda
