// The free list of KV pages. It knows nothing of who uses a page; handing one back twice aborts.
#pragma once

#include <cstdint>
#include <vector>

#include <hadal/plan/batch_plan.h>

namespace hadal {

/// Engine thread only. Every operation is O(1) and allocates nothing.
class PageAllocator {
 public:
  explicit PageAllocator(int32_t num_pages);

  /// A free page; the caller has checked num_free() > 0.
  PageId allocate();
  void free(PageId page);

  int32_t num_pages() const { return static_cast<int32_t>(is_free_.size()); }

  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }

  bool is_free(PageId page) const { return is_free_[static_cast<size_t>(page)]; }

 private:
  std::vector<PageId> free_;
  std::vector<bool> is_free_;
};

}  // namespace hadal
