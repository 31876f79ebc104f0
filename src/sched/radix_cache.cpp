// See radix_cache.h.
#include "radix_cache.h"

#include <algorithm>
#include <utility>

#include <hadal/base/check.h>

#include "sibling_treap.h"

namespace hadal {

Lease& Lease::operator=(Lease&& other) noexcept {
  HADAL_CHECK(!is_held(), "radix cache: a held lease is overwritten");
  namespace_index_ = std::exchange(other.namespace_index_, -1);
  tip_ = std::exchange(other.tip_, kNoPage);
  num_pages_ = std::exchange(other.num_pages_, 0);
  return *this;
}

Lease::~Lease() {
  HADAL_CHECK(!is_held(), "radix cache: a lease was never released");
}

RadixCache::RadixCache(PageAllocator& allocator)
    : allocator_(allocator), nodes_(static_cast<size_t>(allocator.num_pages())) {}

PrefixMatch RadixCache::match(std::string_view name_space, std::span<const TokenId> tokens) const {
  PrefixMatch match;
  const auto found = namespace_index_.find(name_space);
  if (found == namespace_index_.end())
    return match;
  PageId children = namespaces_[static_cast<size_t>(found->second)].top;
  while (!tokens.empty()) {
    const auto query = tokens.first(std::min(tokens.size(), static_cast<size_t>(kPageTokens)));
    const SiblingMatch best = find_best_sibling(nodes_, children, query);
    if (best.num_common < kPageTokens) {
      match.tail = best.num_common > 0 ? best.page : kNoPage;
      match.num_tail_tokens = best.num_common;
      return match;
    }
    match.tip = best.page;
    ++match.num_pages;
    children = node(best.page).children;
    tokens = tokens.subspan(static_cast<size_t>(kPageTokens));
  }
  return match;
}

int32_t RadixCache::num_evictable_in(const PrefixMatch& match) const {
  int32_t count = 0;
  if (match.tail != kNoPage && node(match.tail).refs == 0)
    ++count;
  // Above a leased page every page is leased.
  for (PageId page = match.tip; page != kNoPage && node(page).refs == 0; page = node(page).parent)
    ++count;
  return count;
}

Lease RadixCache::pin(std::string_view name_space, PageId tip, int32_t num_pages) {
  Lease lease;
  lease.namespace_index_ = open_namespace(name_space);
  lease.tip_ = tip;
  lease.num_pages_ = num_pages;
  for (PageId page = tip; page != kNoPage; page = node(page).parent) {
    if (node(page).refs++ == 0)
      unlink(page);
  }
  return lease;
}

Lease RadixCache::acquire(std::string_view name_space, const PrefixMatch& match) {
  return pin(name_space, match.tip, match.num_pages);
}

Lease RadixCache::acquire_tail(std::string_view name_space, const PrefixMatch& match) {
  HADAL_CHECK(match.tail != kNoPage, "radix cache: the match has no tail");
  return pin(name_space, match.tail, match.num_pages + 1);
}

void RadixCache::append_pages(const Lease& lease, std::vector<PageId>& out) const {
  const size_t first = out.size();
  out.resize(first + static_cast<size_t>(lease.num_pages_));
  size_t i = out.size();
  for (PageId page = lease.tip_; page != kNoPage; page = node(page).parent)
    out[--i] = page;
  HADAL_CHECK(i == first, "radix cache: the lease's path has another length");
}

Extension RadixCache::extend(Lease& lease, std::span<const TokenId> tokens, PageId page) {
  HADAL_CHECK(lease.is_held(), "radix cache: extend of a released lease");
  HADAL_CHECK(!tokens.empty() && tokens.size() <= static_cast<size_t>(kPageTokens),
              "radix cache: a page has 1..64 tokens");
  HADAL_CHECK(lease.tip_ == kNoPage || node(lease.tip_).num_tokens == kPageTokens,
              "radix cache: a tail has no children");
  HADAL_CHECK(!contains(page) && !allocator_.is_free(page),
              "radix cache: page is not the caller's");
  const SiblingMatch best =
      find_best_sibling(nodes_, children_of(lease.namespace_index_, lease.tip_), tokens);
  if (best.page != kNoPage && best.num_common == static_cast<int32_t>(tokens.size()))
    return Extension::present;
  if (best.page != kNoPage && best.num_common == node(best.page).num_tokens &&
      node(best.page).refs == 0)
    remove(best.page);
  CacheNode& added = node(page);
  added = CacheNode{};
  std::copy(tokens.begin(), tokens.end(), added.tokens.begin());
  added.num_tokens = static_cast<int32_t>(tokens.size());
  added.refs = 1;
  added.namespace_index = lease.namespace_index_;
  added.parent = lease.tip_;
  PageId& root = children_of(lease.namespace_index_, lease.tip_);
  root = insert_sibling(nodes_, root, page);
  ++namespaces_[static_cast<size_t>(lease.namespace_index_)].num_users;
  ++num_nodes_;
  ++version_;
  lease.tip_ = page;
  ++lease.num_pages_;
  return Extension::adopted;
}

void RadixCache::follow(Lease& lease, std::span<const TokenId> tokens) {
  HADAL_CHECK(tokens.size() == static_cast<size_t>(kPageTokens),
              "radix cache: follow a whole page");
  const SiblingMatch best =
      find_best_sibling(nodes_, children_of(lease.namespace_index_, lease.tip_), tokens);
  HADAL_CHECK(best.num_common == kPageTokens, "radix cache: there is no such page to follow");
  if (node(best.page).refs++ == 0)
    unlink(best.page);
  lease.tip_ = best.page;
  ++lease.num_pages_;
}

void RadixCache::release(Lease& lease) {
  HADAL_CHECK(lease.is_held(), "radix cache: a lease is released twice");
  for (PageId page = lease.tip_; page != kNoPage; page = node(page).parent) {
    HADAL_CHECK(node(page).refs > 0, "radix cache: release of an unleased page");
    if (--node(page).refs == 0)
      push_newest(page);
  }
  drop_namespace_user(lease.namespace_index_);
  lease.namespace_index_ = -1;
  lease.tip_ = kNoPage;
  lease.num_pages_ = 0;
}

void RadixCache::release_and_drop(Lease& lease) {
  PageId page = lease.tip_;
  // The release must come first (it frees the path), but it may drop the namespace when nothing is
  // in it, and then the path is empty too.
  release(lease);
  while (page != kNoPage && node(page).refs == 0 && node(page).children == kNoPage) {
    const PageId parent = node(page).parent;
    remove(page);
    page = parent;
  }
}

int32_t RadixCache::evict(int32_t count) {
  int32_t num_freed = 0;
  for (; num_freed < count && oldest_ != kNoPage; ++num_freed) {
    remove(oldest_);
    ++num_evicted_;
  }
  return num_freed;
}

void RadixCache::remove(PageId page) {
  CacheNode& removed = node(page);
  HADAL_CHECK(removed.refs == 0, "radix cache: removal of a leased page");
  HADAL_CHECK(removed.children == kNoPage, "radix cache: removal of a page with children");
  PageId& root = children_of(removed.namespace_index, removed.parent);
  root = remove_sibling(nodes_, root, page);
  unlink(page);
  removed.num_tokens = 0;
  --num_nodes_;
  ++version_;
  drop_namespace_user(removed.namespace_index);
  allocator_.free(page);
}

int32_t RadixCache::open_namespace(std::string_view name) {
  auto found = namespace_index_.find(name);
  if (found == namespace_index_.end()) {
    if (unused_namespaces_.empty()) {
      unused_namespaces_.push_back(static_cast<int32_t>(namespaces_.size()));
      namespaces_.emplace_back();
    }
    const int32_t index = unused_namespaces_.back();
    unused_namespaces_.pop_back();
    namespaces_[static_cast<size_t>(index)].name = name;
    found = namespace_index_.emplace(std::string(name), index).first;
  }
  ++namespaces_[static_cast<size_t>(found->second)].num_users;
  return found->second;
}

void RadixCache::drop_namespace_user(int32_t index) {
  Namespace& entry = namespaces_[static_cast<size_t>(index)];
  HADAL_CHECK(entry.num_users > 0, "radix cache: namespace without users");
  if (--entry.num_users > 0)
    return;
  HADAL_CHECK(entry.top == kNoPage, "radix cache: an unused namespace has pages");
  namespace_index_.erase(entry.name);
  entry.name.clear();
  unused_namespaces_.push_back(index);
}

PageId& RadixCache::children_of(int32_t namespace_index, PageId parent) {
  if (parent == kNoPage)
    return namespaces_[static_cast<size_t>(namespace_index)].top;
  return node(parent).children;
}

void RadixCache::push_newest(PageId page) {
  CacheNode& pushed = node(page);
  pushed.newer = kNoPage;
  pushed.older = newest_;
  if (newest_ != kNoPage)
    node(newest_).newer = page;
  else
    oldest_ = page;
  newest_ = page;
  ++num_cached_;
}

void RadixCache::unlink(PageId page) {
  CacheNode& gone = node(page);
  (gone.newer != kNoPage ? node(gone.newer).older : newest_) = gone.older;
  (gone.older != kNoPage ? node(gone.older).newer : oldest_) = gone.newer;
  gone.newer = kNoPage;
  gone.older = kNoPage;
  --num_cached_;
}

int32_t RadixCache::check_siblings(PageId parent, int32_t namespace_index) const {
  const PageId root = parent == kNoPage ? namespaces_[static_cast<size_t>(namespace_index)].top
                                        : node(parent).children;
  std::vector<PageId> siblings;
  list_siblings(nodes_, root, siblings);
  for (size_t i = 0; i < siblings.size(); ++i) {
    const CacheNode& child = node(siblings[i]);
    HADAL_CHECK(child.num_tokens > 0 && child.num_tokens <= kPageTokens, "R2: size of a key");
    HADAL_CHECK(child.parent == parent, "R4: parent and child links agree");
    HADAL_CHECK(child.namespace_index == namespace_index, "R7: a child left its namespace");
    HADAL_CHECK(parent == kNoPage || child.refs <= node(parent).refs, "R3: refs grow upwards");
    HADAL_CHECK(child.num_tokens == kPageTokens || child.children == kNoPage,
                "R2: a tail has children");
    if (i > 0) {
      const auto before = node(siblings[i - 1]).key();
      const auto key = child.key();
      HADAL_CHECK(
          std::lexicographical_compare(before.begin(), before.end(), key.begin(), key.end()),
          "R5: siblings are ordered and differ");
    }
  }
  return static_cast<int32_t>(siblings.size());
}

void RadixCache::check_lru_order() const {
  std::vector<bool> is_younger(nodes_.size(), false);
  int32_t count = 0;
  PageId newer = kNoPage;
  for (PageId page = newest_; page != kNoPage; page = node(page).older) {
    HADAL_CHECK(node(page).refs == 0 && contains(page), "R10: the LRU list holds a leased page");
    HADAL_CHECK(node(page).newer == newer, "R10: links of the LRU list");
    const PageId parent = node(page).parent;
    HADAL_CHECK(
        parent == kNoPage || node(parent).refs > 0 || is_younger[static_cast<size_t>(parent)],
        "R10: a parent is older than its child");
    is_younger[static_cast<size_t>(page)] = true;
    newer = page;
    HADAL_CHECK(++count <= num_cached_, "R14: the LRU list is longer than the cached count");
  }
  HADAL_CHECK(newer == oldest_ && count == num_cached_, "R14: cached count");
}

void RadixCache::check_invariants() const {
  int32_t num_nodes = 0;
  int32_t num_unleased = 0;
  int32_t num_linked = 0;
  std::vector<int32_t> nodes_in(namespaces_.size(), 0);
  for (size_t i = 0; i < namespaces_.size(); ++i)
    num_linked += check_siblings(kNoPage, static_cast<int32_t>(i));
  for (PageId page = 0; page < allocator_.num_pages(); ++page) {
    if (!contains(page))
      continue;
    ++num_nodes;
    num_unleased += node(page).refs == 0 ? 1 : 0;
    HADAL_CHECK(!allocator_.is_free(page), "P5: a free page is in the tree");
    ++nodes_in[static_cast<size_t>(node(page).namespace_index)];
    num_linked += check_siblings(page, node(page).namespace_index);
  }
  HADAL_CHECK(num_nodes == num_nodes_ && num_linked == num_nodes_, "R4: every node is linked once");
  HADAL_CHECK(num_unleased == num_cached_, "R14: every unleased page is in the LRU list");
  for (size_t i = 0; i < namespaces_.size(); ++i)
    HADAL_CHECK(namespaces_[i].num_users >= nodes_in[i], "R7: users of a namespace");
  check_lru_order();
}

}  // namespace hadal
