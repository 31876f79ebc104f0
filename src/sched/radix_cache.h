// The radix cache: which pages hold the KV of which token prefixes.
//
//   namespace "a"                 a node is one page (radix: kPageTokens tokens); siblings are
//     [n7 "You are.."] refs 2     kept in a treap ordered by tokens. A node below kPageTokens
//       [n3 "..weather"] refs 1   tokens is a tail and has no children.
//         (n9 "today", 5 tokens)  refs 0: can be evicted
//       [n4 "..traffic"] refs 1
//         [n5 "..jam"]            on the host only: its page was evicted, its KV was kept
//
// A match shares whole pages and names one more page whose first tokens can be copied, so reuse is
// exact to the token. Nodes never split: where keys part inside a page, the pages are siblings, so
// each page keeps its own age and leases.
//
// The hard thing is eviction in O(1): a lease counts on every node of its path, and a released path
// enters the eviction list from its tip upwards. A parent is therefore always younger than its
// children, has at least their hits and at least their priority, and the node to evict, the oldest
// of the lowest level that has any (one level with lru), never has a child on the device. The same
// holds among the nodes on the host only, which entered their list when they left the device.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/plan/batch_plan.h>
#include <hadal/sched/request.h>

#include "cache_node.h"
#include "eviction_list.h"
#include "page_allocator.h"

namespace hadal {

class RadixCache;

/// Pins a path of nodes while it lives: none of them is evicted. Release with RadixCache::release.
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

  NodeId tip() const { return tip_; }

 private:
  friend class RadixCache;
  int32_t namespace_index_ = -1;
  NodeId tip_ = kNoNode;
  int32_t num_pages_ = 0;
  int32_t priority_ = 0;
};

/// The longest cached prefix of a query; valid until the cache changes.
struct PrefixMatch {
  NodeId tip = kNoNode;  ///< last whole page on the device
  int32_t num_pages = 0;
  NodeId tail = kNoNode;  ///< a page whose first num_tail_tokens go on with the query
  int32_t num_tail_tokens = 0;
  NodeId host_tip = kNoNode;  ///< last of the whole pages after `tip` that are on the host only
  int32_t num_host_pages = 0;

  /// On the device: what can be used at once.
  int32_t num_tokens() const { return num_pages * kPageTokens + num_tail_tokens; }

  int32_t num_tokens_in_all_tiers() const { return num_tokens() + num_host_pages * kPageTokens; }
};

enum class Extension : uint8_t {
  adopted,  ///< the page belongs to the cache and the lease covers it
  present,  ///< the cache already knows these tokens: the page stays the caller's
};

struct RadixCacheConfig {
  EvictionPolicy policy = EvictionPolicy::lru;
  int32_t num_host_pages = 0;  ///< of the host tier; 0 = evicted pages are forgotten
};

/// Engine thread only.
class RadixCache {
 public:
  explicit RadixCache(PageAllocator& allocator, const RadixCacheConfig& config = {});
  RadixCache(const RadixCache&) = delete;
  RadixCache& operator=(const RadixCache&) = delete;

  /// O(tokens). Changes nothing.
  PrefixMatch match(std::string_view name_space, std::span<const TokenId> tokens) const;
  /// Pages of the match that are evictable now and would not be once it is leased.
  int32_t num_evictable_in(const PrefixMatch& match) const;

  /// Pins the whole pages of the match; without any, an empty path that can be extended.
  Lease acquire(std::string_view name_space, const PrefixMatch& match, int32_t priority = 0);
  /// Pins the whole pages and the tail: the source of a page copy.
  Lease acquire_tail(std::string_view name_space, const PrefixMatch& match, int32_t priority = 0);
  /// Appends the pages of the path, first page first.
  void append_pages(const Lease& lease, std::vector<PageId>& out) const;

  /// Offers the page that follows the lease's path; `tokens` are its 1..kPageTokens tokens. A tail
  /// that the new page continues is dropped unless leased.
  Extension extend(Lease& lease, std::span<const TokenId> tokens, PageId page);
  /// Moves the lease to the whole page that made extend() answer `present`.
  void follow(Lease& lease, std::span<const TokenId> tokens);
  /// Unpins; the path becomes the youngest of the eviction order.
  void release(Lease& lease);
  /// Unpins and drops the pages of the path that nobody else uses: their KV is not to be trusted.
  void release_and_drop(Lease& lease);

  /// Frees up to `count` unleased pages by the policy; returns how many. With a host tier the KV of
  /// whole pages is kept there, see take_moves().
  int32_t evict(int32_t count);
  /// Forgets everything that is not leased, in both tiers; returns how many pages came free.
  int32_t clear();
  /// Brings up to `count` of the match's host pages to the device, in order, evicting for them;
  /// returns how many. The match is stale afterwards.
  int32_t bring_back(std::string_view name_space, const PrefixMatch& match, int32_t count);
  /// The moves that evict() and bring_back() decided since the last call: the next plan must make
  /// them. Nothing moves twice in one plan.
  void take_moves(std::vector<PageMove>& out);

  void set_now(TimePoint now) { now_ = now; }

  /// Unleased pages; all of them can be evicted.
  int32_t num_cached() const { return num_cached_; }

  int32_t num_leased() const { return num_on_device_ - num_cached_; }

  int32_t num_host_pages_used() const { return host_.num_pages() - host_.num_free(); }

  int64_t num_evicted() const { return num_evicted_; }

  int64_t num_moved_to_host() const { return num_moved_to_host_; }

  int64_t num_brought_back() const { return num_brought_back_; }

  /// Time since their last use of all pages evicted so far, summed.
  double evicted_age_seconds() const { return evicted_age_seconds_; }

  /// Time since its last use of the page that is evicted next; 0 without any.
  double oldest_age_seconds() const;

  /// Changes whenever a match could change.
  uint64_t version() const { return version_; }

  /// Whether the page of the device belongs to the cache.
  bool contains(PageId page) const { return node_of_page_[static_cast<size_t>(page)] != kNoNode; }

  /// Leases through a page of the cache.
  int32_t refs(PageId page) const { return node(node_of_page_[static_cast<size_t>(page)]).refs; }

  PageId page_of(NodeId id) const { return node(id).page; }

  NodeId parent(NodeId id) const { return node(id).parent; }

  /// Aborts with the name of the broken rule. O(pages).
  void check_invariants() const;

 private:
  static constexpr int32_t kLevels = 64;  ///< between the lowest and the highest in use

  struct Namespace {
    std::string name;
    NodeId top = kNoNode;   ///< treap root of the first pages
    int32_t num_users = 0;  ///< nodes and leases; 0 = unused entry
  };

  CacheNode& node(NodeId id) { return nodes_[static_cast<size_t>(id)]; }

  const CacheNode& node(NodeId id) const { return nodes_[static_cast<size_t>(id)]; }

  bool has_host() const { return host_.num_pages() > 0; }

  int32_t open_namespace(std::string_view name);
  void drop_namespace_user(int32_t index);
  NodeId& children_of(int32_t namespace_index, NodeId parent);
  Lease pin(std::string_view name_space, NodeId tip, int32_t num_pages, int32_t priority);
  void pin_node(NodeId id, int32_t priority);
  void unpin_node(NodeId id);
  int32_t rank_of(const CacheNode& entry) const;

  auto& list_of(int64_t level) { return evictable_[static_cast<size_t>(level % kLevels)]; }

  void push_evictable(NodeId id);
  void unlink_evictable(NodeId id);
  NodeId next_victim() const;
  void evict_one(NodeId id);
  bool keep_on_host(NodeId id);
  PageId allocate_on_host();
  void drop_host_copy(NodeId id);
  void give_page(NodeId id, PageId page);
  void take_page_from(NodeId id);
  /// Takes an unleased node and all below it out of the tree and frees their pages.
  void remove(NodeId id);
  void remove_leaf(NodeId id);
  int32_t check_siblings(NodeId parent, int32_t namespace_index) const;
  void check_eviction_order() const;
  void check_host_order() const;

  PageAllocator& allocator_;
  PageAllocator host_;
  const EvictionPolicy policy_;
  std::vector<CacheNode> nodes_;
  std::vector<NodeId> node_of_page_;  ///< by PageId; kNoNode = not in the cache
  std::vector<NodeId> free_nodes_;    ///< with a host tier; without one a node's id is its page's
  std::vector<Namespace> namespaces_;
  std::vector<int32_t> unused_namespaces_;
  std::map<std::string, int32_t, std::less<>> namespace_index_;
  std::array<EvictionList<&CacheNode::device_links>, static_cast<size_t>(kLevels)> evictable_;
  uint64_t levels_in_use_ = 0;                        ///< bit = a list, by level, with nodes
  int64_t base_level_ = 0;                            ///< of lfu: the level of the last victim
  EvictionList<&CacheNode::host_links> host_only_;    ///< unleased; the oldest is a leaf
  EvictionList<&CacheNode::host_links> host_copies_;  ///< their KV is on the device too
  std::vector<PageMove> moves_;
  std::vector<NodeId> path_;  ///< scratch of bring_back()
  uint64_t move_serial_ = 1;  ///< grows with every take_moves()
  TimePoint now_{};
  int32_t num_nodes_ = 0;
  int32_t num_on_device_ = 0;
  int32_t num_cached_ = 0;
  int64_t num_evicted_ = 0;
  int64_t num_moved_to_host_ = 0;
  int64_t num_brought_back_ = 0;
  double evicted_age_seconds_ = 0.0;
  uint64_t version_ = 1;
};

}  // namespace hadal
