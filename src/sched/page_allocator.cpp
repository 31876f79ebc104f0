// See page_allocator.h.
#include "page_allocator.h"

#include <string>

#include <hadal/base/check.h>

namespace hadal {

PageAllocator::PageAllocator(int32_t num_pages) : is_free_(static_cast<size_t>(num_pages), true) {
  free_.reserve(static_cast<size_t>(num_pages));
  for (PageId page = num_pages - 1; page >= 0; --page)
    free_.push_back(page);
}

PageId PageAllocator::allocate() {
  HADAL_CHECK(!free_.empty(), "page allocator: no free page");
  const PageId page = free_.back();
  free_.pop_back();
  is_free_[static_cast<size_t>(page)] = false;
  return page;
}

void PageAllocator::free(PageId page) {
  HADAL_CHECK(page >= 0 && page < num_pages(), "page allocator: page " + std::to_string(page));
  HADAL_CHECK(!is_free(page), "page allocator: double free of page " + std::to_string(page));
  is_free_[static_cast<size_t>(page)] = true;
  free_.push_back(page);
}

}  // namespace hadal
