// Memory aligned to cache lines, and scratch that only ever grows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace hadal::cpu {

template <class T>
struct AlignedAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{64};

  AlignedAllocator() = default;

  template <class U>
  explicit AlignedAllocator(const AlignedAllocator<U>& /*other*/) {}

  T* allocate(size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), kAlignment));
  }

  void deallocate(T* memory, size_t /*count*/) { ::operator delete(memory, kAlignment); }

  friend bool operator==(const AlignedAllocator&, const AlignedAllocator&) { return true; }
};

template <class T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

/// An array whose contents do not survive the next `at_least`.
template <class T>
class Scratch {
 public:
  T* at_least(int64_t count) {
    if (static_cast<int64_t>(data_.size()) < count) {
      data_.clear();
      data_.resize(static_cast<size_t>(count));
    }
    return data_.data();
  }

 private:
  AlignedVector<T> data_;
};

}  // namespace hadal::cpu
