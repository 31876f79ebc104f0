// The free list hands out every page once.
#include "page_allocator.h"

#include <set>

#include "catch.h"

namespace hadal {
namespace {

TEST_CASE("PageAllocator: every page is handed out once and comes back", "[sched]") {
  PageAllocator pages(5);
  std::set<PageId> taken;
  while (pages.num_free() > 0)
    taken.insert(pages.allocate());
  CHECK(taken == std::set<PageId>{0, 1, 2, 3, 4});
  pages.free(3);
  CHECK(pages.is_free(3));
  CHECK_FALSE(pages.is_free(2));
  CHECK(pages.allocate() == 3);
}

}  // namespace
}  // namespace hadal
