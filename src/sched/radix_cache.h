// The radix cache: which pages hold the KV of which token prefixes.
//
//   namespace "a"                 a node is one page (radix: kPageTokens tokens); siblings are
//     [p7 "You are.."] refs 2     kept in a treap ordered by tokens. A page below kPageTokens
//       [p3 "..weather"] refs 1   tokens is a tail and has no children.
//         (p9 "today", 5 tokens)  refs 0: in the LRU list
//       [p4 "..traffic"] refs 1
//
//   LRU list, oldest first:  p9   (p3, p4, p7 are leased: not in the list)
//
// A match shares whole pages and names one more page whose first tokens can be copied, so reuse is
// exact to the token. Nodes never split: where keys part inside a page, the pages are siblings, so
// each page keeps its own age and leases.
//
// The hard thing is eviction in O(1): a lease counts on every page of its path, and a released path
// enters the LRU list from its tip upwards. A parent is therefore always younger than its children
// and the oldest node of the list is always a leaf.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/plan/batch_plan.h>

#include "cache_node.h"
#include "page_allocator.h"

namespace hadal {

class RadixCache;

/// Pins a path of pages while it lives: none of them is evicted. Release with RadixCache::release.
class Lease {
 public:
  Lease() = default;
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Lease(Lease&& other) noexcept { *this = std::move(other); }

  Lease& operator=(Lease&& other) noexcept;
  ~Lease();

  bool is_held() const { return namespace_index_ >= 0; }

  /// Whole pages on the path, a tail counted as one.
  int32_t num_pages() const { return num_pages_; }

  PageId tip() const { return tip_; }

 private:
  friend class RadixCache;
  int32_t namespace_index_ = -1;
  PageId tip_ = kNoPage;
  int32_t num_pages_ = 0;
};

/// The longest cached prefix of a query; valid until the cache changes.
struct PrefixMatch {
  PageId tip = kNoPage;  ///< last whole page
  int32_t num_pages = 0;
  PageId tail = kNoPage;  ///< a page whose first num_tail_tokens go on with the query
  int32_t num_tail_tokens = 0;

  int32_t num_tokens() const { return num_pages * kPageTokens + num_tail_tokens; }
};

enum class Extension : uint8_t {
  adopted,  ///< the page belongs to the cache and the lease covers it
  present,  ///< the cache already knows these tokens: the page stays the caller's
};

/// Engine thread only.
class RadixCache {
 public:
  explicit RadixCache(PageAllocator& allocator);
  RadixCache(const RadixCache&) = delete;
  RadixCache& operator=(const RadixCache&) = delete;

  /// O(tokens). Changes nothing.
  PrefixMatch match(std::string_view name_space, std::span<const TokenId> tokens) const;
  /// Pages of the match that are evictable now and would not be once it is leased.
  int32_t num_evictable_in(const PrefixMatch& match) const;

  /// Pins the whole pages of the match; without any, an empty path that can be extended.
  Lease acquire(std::string_view name_space, const PrefixMatch& match);
  /// Pins the whole pages and the tail: the source of a page copy.
  Lease acquire_tail(std::string_view name_space, const PrefixMatch& match);
  /// Appends the pages of the path, first page first.
  void append_pages(const Lease& lease, std::vector<PageId>& out) const;

  /// Offers the page that follows the lease's path; `tokens` are its 1..kPageTokens tokens. A tail
  /// that the new page continues is dropped unless leased.
  Extension extend(Lease& lease, std::span<const TokenId> tokens, PageId page);
  /// Moves the lease to the whole page that made extend() answer `present`.
  void follow(Lease& lease, std::span<const TokenId> tokens);
  /// Unpins; the path becomes the youngest of the LRU order.
  void release(Lease& lease);
  /// Unpins and drops the pages of the path that nobody else uses: their KV is not to be trusted.
  void release_and_drop(Lease& lease);

  /// Frees up to `count` unleased pages, least recently used first; returns how many.
  int32_t evict(int32_t count);

  /// Unleased pages; all of them can be evicted.
  int32_t num_cached() const { return num_cached_; }

  int32_t num_leased() const { return num_nodes_ - num_cached_; }

  int64_t num_evicted() const { return num_evicted_; }

  /// Changes whenever a match could change.
  uint64_t version() const { return version_; }

  bool contains(PageId page) const { return node(page).num_tokens > 0; }

  int32_t refs(PageId page) const { return node(page).refs; }

  PageId parent(PageId page) const { return node(page).parent; }

  /// Aborts with the name of the broken rule. O(pages).
  void check_invariants() const;

 private:
  struct Namespace {
    std::string name;
    PageId top = kNoPage;   ///< treap root of the first pages
    int32_t num_users = 0;  ///< nodes and leases; 0 = unused entry
  };

  CacheNode& node(PageId page) { return nodes_[static_cast<size_t>(page)]; }

  const CacheNode& node(PageId page) const { return nodes_[static_cast<size_t>(page)]; }

  int32_t open_namespace(std::string_view name);
  void drop_namespace_user(int32_t index);
  PageId& children_of(int32_t namespace_index, PageId parent);
  Lease pin(std::string_view name_space, PageId tip, int32_t num_pages);
  void push_newest(PageId page);
  void unlink(PageId page);
  /// Takes an unleased leaf out of the tree and frees its page.
  void remove(PageId page);
  int32_t check_siblings(PageId parent, int32_t namespace_index) const;
  void check_lru_order() const;

  PageAllocator& allocator_;
  std::vector<CacheNode> nodes_;  ///< by PageId
  std::vector<Namespace> namespaces_;
  std::vector<int32_t> unused_namespaces_;
  std::map<std::string, int32_t, std::less<>> namespace_index_;
  PageId newest_ = kNoPage;
  PageId oldest_ = kNoPage;
  int32_t num_nodes_ = 0;
  int32_t num_cached_ = 0;
  int64_t num_evicted_ = 0;
  uint64_t version_ = 1;
};

}  // namespace hadal
