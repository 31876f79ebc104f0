// See radix_cache.h.
#include "radix_cache.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <utility>

#include <hadal/base/check.h>

#include "sibling_treap.h"

namespace hadal {

Lease& Lease::operator=(Lease&& other) noexcept {
  HADAL_CHECK(!is_held(), "radix cache: a held lease is overwritten");
  namespace_index_ = std::exchange(other.namespace_index_, -1);
  tip_ = std::exchange(other.tip_, kNoNode);
  num_pages_ = std::exchange(other.num_pages_, 0);
  priority_ = other.priority_;
  return *this;
}

Lease::~Lease() {
  HADAL_CHECK(!is_held(), "radix cache: a lease was never released");
}

RadixCache::RadixCache(PageAllocator& allocator, const RadixCacheConfig& config)
    : allocator_(allocator),
      host_(config.num_host_pages),
      policy_(config.policy),
      nodes_(static_cast<size_t>(allocator.num_pages() + config.num_host_pages)),
      node_of_page_(static_cast<size_t>(allocator.num_pages()), kNoNode) {
  if (has_host()) {
    free_nodes_.reserve(nodes_.size());
    for (auto id = static_cast<NodeId>(nodes_.size()) - 1; id >= 0; --id)
      free_nodes_.push_back(id);
  }
}

PrefixMatch RadixCache::match(std::string_view name_space, std::span<const TokenId> tokens) const {
  PrefixMatch match;
  const auto found = namespace_index_.find(name_space);
  if (found == namespace_index_.end())
    return match;
  NodeId children = namespaces_[static_cast<size_t>(found->second)].top;
  while (!tokens.empty()) {
    const auto query = tokens.first(std::min(tokens.size(), static_cast<size_t>(kPageTokens)));
    const SiblingMatch best = find_best_sibling(nodes_, children, query);
    const bool is_on_device = best.id != kNoNode && node(best.id).page != kNoPage;
    if (best.num_common < kPageTokens) {
      if (best.num_common > 0 && is_on_device) {
        match.tail = best.id;
        match.num_tail_tokens = best.num_common;
      }
      return match;
    }
    if (is_on_device) {
      match.tip = best.id;
      ++match.num_pages;
    } else {
      match.host_tip = best.id;
      ++match.num_host_pages;
    }
    children = node(best.id).children;
    tokens = tokens.subspan(static_cast<size_t>(kPageTokens));
  }
  return match;
}

int32_t RadixCache::num_evictable_in(const PrefixMatch& match) const {
  int32_t count = 0;
  if (match.tail != kNoNode && node(match.tail).refs == 0)
    ++count;
  // Above a leased page every page is leased.
  for (NodeId id = match.tip; id != kNoNode && node(id).refs == 0; id = node(id).parent)
    ++count;
  return count;
}

void RadixCache::pin_node(NodeId id, int32_t priority) {
  CacheNode& pinned = node(id);
  if (pinned.refs++ == 0) {
    if (pinned.page != kNoPage)
      unlink_evictable(id);
    else
      host_only_.unlink(nodes_, id);
  }
  pinned.hits += pinned.hits < INT32_MAX ? 1 : 0;
  pinned.priority = std::max(pinned.priority, priority);
}

void RadixCache::unpin_node(NodeId id) {
  CacheNode& unpinned = node(id);
  HADAL_CHECK(unpinned.refs > 0, "radix cache: release of an unleased page");
  if (--unpinned.refs > 0)
    return;
  unpinned.last_used = now_;
  if (unpinned.page != kNoPage)
    push_evictable(id);
  else
    host_only_.push_newest(nodes_, id);
}

Lease RadixCache::pin(std::string_view name_space,
                      NodeId tip,
                      int32_t num_pages,
                      int32_t priority) {
  Lease lease;
  lease.namespace_index_ = open_namespace(name_space);
  lease.tip_ = tip;
  lease.num_pages_ = num_pages;
  lease.priority_ = priority;
  for (NodeId id = tip; id != kNoNode; id = node(id).parent)
    pin_node(id, priority);
  return lease;
}

Lease RadixCache::acquire(std::string_view name_space, const PrefixMatch& match, int32_t priority) {
  return pin(name_space, match.tip, match.num_pages, priority);
}

Lease RadixCache::acquire_tail(std::string_view name_space,
                               const PrefixMatch& match,
                               int32_t priority) {
  HADAL_CHECK(match.tail != kNoNode, "radix cache: the match has no tail");
  return pin(name_space, match.tail, match.num_pages + 1, priority);
}

void RadixCache::append_pages(const Lease& lease, std::vector<PageId>& out) const {
  const size_t first = out.size();
  out.resize(first + static_cast<size_t>(lease.num_pages_));
  size_t i = out.size();
  for (NodeId id = lease.tip_; id != kNoNode; id = node(id).parent)
    out[--i] = node(id).page;
  HADAL_CHECK(i == first, "radix cache: the lease's path has another length");
}

Extension RadixCache::extend(Lease& lease, std::span<const TokenId> tokens, PageId page) {
  HADAL_CHECK(lease.is_held(), "radix cache: extend of a released lease");
  HADAL_CHECK(!tokens.empty() && tokens.size() <= static_cast<size_t>(kPageTokens),
              "radix cache: a page has 1..64 tokens");
  HADAL_CHECK(lease.tip_ == kNoNode || node(lease.tip_).num_tokens == kPageTokens,
              "radix cache: a tail has no children");
  HADAL_CHECK(!contains(page) && !allocator_.is_free(page),
              "radix cache: page is not the caller's");
  const SiblingMatch best =
      find_best_sibling(nodes_, children_of(lease.namespace_index_, lease.tip_), tokens);
  if (best.id != kNoNode && best.num_common == static_cast<int32_t>(tokens.size())) {
    const bool is_whole = node(best.id).num_tokens == best.num_common;
    if (node(best.id).page != kNoPage || !is_whole)
      return Extension::present;
    // Known, but on the host only: computed again, its KV is on the device now.
    pin_node(best.id, lease.priority_);
    give_page(best.id, page);
    lease.tip_ = best.id;
    ++lease.num_pages_;
    return Extension::adopted;
  }
  if (best.id != kNoNode && best.num_common == node(best.id).num_tokens && node(best.id).refs == 0)
    remove(best.id);
  NodeId id = page;
  if (has_host()) {
    id = free_nodes_.back();
    free_nodes_.pop_back();
  }
  CacheNode& added = node(id);
  added = CacheNode{};
  std::copy(tokens.begin(), tokens.end(), added.tokens.begin());
  added.num_tokens = static_cast<int32_t>(tokens.size());
  added.refs = 1;
  added.hits = 1;
  added.priority = lease.priority_;
  added.namespace_index = lease.namespace_index_;
  added.parent = lease.tip_;
  NodeId& root = children_of(lease.namespace_index_, lease.tip_);
  root = insert_sibling(nodes_, root, id);
  ++namespaces_[static_cast<size_t>(lease.namespace_index_)].num_users;
  ++num_nodes_;
  give_page(id, page);
  lease.tip_ = id;
  ++lease.num_pages_;
  return Extension::adopted;
}

void RadixCache::follow(Lease& lease, std::span<const TokenId> tokens) {
  HADAL_CHECK(tokens.size() == static_cast<size_t>(kPageTokens),
              "radix cache: follow a whole page");
  const SiblingMatch best =
      find_best_sibling(nodes_, children_of(lease.namespace_index_, lease.tip_), tokens);
  HADAL_CHECK(best.num_common == kPageTokens, "radix cache: there is no such page to follow");
  HADAL_CHECK(node(best.id).page != kNoPage, "radix cache: the page to follow is on the host");
  pin_node(best.id, lease.priority_);
  lease.tip_ = best.id;
  ++lease.num_pages_;
}

void RadixCache::release(Lease& lease) {
  HADAL_CHECK(lease.is_held(), "radix cache: a lease is released twice");
  for (NodeId id = lease.tip_; id != kNoNode; id = node(id).parent)
    unpin_node(id);
  drop_namespace_user(lease.namespace_index_);
  lease.namespace_index_ = -1;
  lease.tip_ = kNoNode;
  lease.num_pages_ = 0;
}

void RadixCache::release_and_drop(Lease& lease) {
  NodeId id = lease.tip_;
  // The release must come first (it frees the path), but it may drop the namespace when nothing is
  // in it, and then the path is empty too.
  release(lease);
  while (id != kNoNode && node(id).refs == 0 && node(id).children == kNoNode) {
    const NodeId parent = node(id).parent;
    remove_leaf(id);
    id = parent;
  }
}

int32_t RadixCache::evict(int32_t count) {
  int32_t num_freed = 0;
  for (; num_freed < count && num_cached_ > 0; ++num_freed)
    evict_one(next_victim());
  return num_freed;
}

NodeId RadixCache::next_victim() const {
  HADAL_CHECK(levels_in_use_ != 0, "radix cache: nothing to evict");
  const auto base = static_cast<int>(base_level_ % kLevels);
  const int64_t lowest = base + std::countr_zero(std::rotr(levels_in_use_, base));
  return evictable_[static_cast<size_t>(lowest % kLevels)].oldest();
}

void RadixCache::evict_one(NodeId id) {
  ++num_evicted_;
  if (policy_ == EvictionPolicy::lfu)
    base_level_ = node(id).level;
  evicted_age_seconds_ += std::chrono::duration<double>(now_ - node(id).last_used).count();
  if (!keep_on_host(id))
    remove(id);
}

/// Leaves the node with its KV on the host and frees its page. False when the host has no room.
bool RadixCache::keep_on_host(NodeId id) {
  CacheNode& kept = node(id);
  if (!has_host() || kept.num_tokens < kPageTokens)
    return false;
  if (kept.host_page == kNoPage) {
    if (kept.moved_in == move_serial_)
      return false;
    kept.host_page = allocate_on_host();
    if (kept.host_page == kNoPage)
      return false;
    moves_.push_back({kept.page, kept.host_page, true});
    kept.moved_in = move_serial_;
    ++num_moved_to_host_;
  } else {
    host_copies_.unlink(nodes_, id);
  }
  unlink_evictable(id);
  take_page_from(id);
  host_only_.push_newest(nodes_, id);
  return true;
}

/// A host page: free, or of the oldest copy, or of the oldest node that is on the host only. Never
/// one that this plan has read or written already.
PageId RadixCache::allocate_on_host() {
  if (host_.num_free() == 0) {
    const NodeId copy = host_copies_.oldest();
    const NodeId only = host_only_.oldest();
    if (copy != kNoNode && node(copy).moved_in != move_serial_)
      drop_host_copy(copy);
    else if (only != kNoNode && node(only).moved_in != move_serial_ &&
             node(only).children == kNoNode)
      remove_leaf(only);
    else
      return kNoPage;
  }
  return host_.allocate();
}

void RadixCache::drop_host_copy(NodeId id) {
  host_copies_.unlink(nodes_, id);
  host_.free(node(id).host_page);
  node(id).host_page = kNoPage;
}

/// The node's KV is now (also) on the device.
void RadixCache::give_page(NodeId id, PageId page) {
  CacheNode& entry = node(id);
  entry.page = page;
  node_of_page_[static_cast<size_t>(page)] = id;
  if (entry.host_page != kNoPage)
    host_copies_.push_newest(nodes_, id);
  ++num_on_device_;
  ++version_;
}

void RadixCache::take_page_from(NodeId id) {
  CacheNode& entry = node(id);
  node_of_page_[static_cast<size_t>(entry.page)] = kNoNode;
  allocator_.free(entry.page);
  entry.page = kNoPage;
  --num_on_device_;
  ++version_;
}

int32_t RadixCache::clear() {
  const int32_t before = num_cached_;
  while (num_cached_ > 0) {
    ++num_evicted_;
    remove(next_victim());
  }
  while (host_only_.oldest() != kNoNode)
    remove(host_only_.oldest());
  while (host_copies_.oldest() != kNoNode)
    drop_host_copy(host_copies_.oldest());
  moves_.clear();  // what they were to move is gone
  return before - num_cached_;
}

int32_t RadixCache::bring_back(std::string_view name_space,
                               const PrefixMatch& match,
                               int32_t count) {
  if (match.num_host_pages == 0)
    return 0;
  Lease lease = pin(name_space, match.host_tip, match.num_pages + match.num_host_pages, 0);
  path_.clear();
  for (NodeId id = match.host_tip; node(id).page == kNoPage; id = node(id).parent) {
    path_.push_back(id);
    if (node(id).parent == kNoNode)
      break;
  }
  int32_t num_brought = 0;
  for (; num_brought < count && !path_.empty(); ++num_brought) {
    const NodeId id = path_.back();
    if (node(id).moved_in == move_serial_)
      break;  // on its way out in this very plan
    if (allocator_.num_free() == 0 && evict(1) == 0)
      break;
    path_.pop_back();
    const PageId page = allocator_.allocate();
    moves_.push_back({page, node(id).host_page, false});
    node(id).moved_in = move_serial_;
    give_page(id, page);
  }
  num_brought_back_ += num_brought;
  release(lease);
  return num_brought;
}

void RadixCache::take_moves(std::vector<PageMove>& out) {
  out.insert(out.end(), moves_.begin(), moves_.end());
  moves_.clear();
  ++move_serial_;
}

double RadixCache::oldest_age_seconds() const {
  if (num_cached_ == 0)
    return 0.0;
  return std::chrono::duration<double>(now_ - node(next_victim()).last_used).count();
}

/// What is below an unleased node is unleased too, and on the host when it is not.
void RadixCache::remove(NodeId id) {
  NodeId at = id;
  while (true) {
    while (node(at).children != kNoNode)
      at = node(at).children;
    const NodeId parent = node(at).parent;
    const bool is_last = at == id;
    remove_leaf(at);
    if (is_last)
      return;
    at = parent;
  }
}

void RadixCache::remove_leaf(NodeId id) {
  CacheNode& removed = node(id);
  HADAL_CHECK(removed.refs == 0, "radix cache: removal of a leased page");
  HADAL_CHECK(removed.children == kNoNode, "radix cache: removal of a page with children");
  NodeId& root = children_of(removed.namespace_index, removed.parent);
  root = remove_sibling(nodes_, root, id);
  if (removed.page != kNoPage) {
    unlink_evictable(id);
    if (removed.host_page != kNoPage)
      host_copies_.unlink(nodes_, id);
    take_page_from(id);
  } else {
    host_only_.unlink(nodes_, id);
    ++version_;
  }
  if (removed.host_page != kNoPage)
    host_.free(removed.host_page);
  removed.host_page = kNoPage;
  removed.num_tokens = 0;
  --num_nodes_;
  if (has_host())
    free_nodes_.push_back(id);
  drop_namespace_user(removed.namespace_index);
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
  HADAL_CHECK(entry.top == kNoNode, "radix cache: an unused namespace has pages");
  namespace_index_.erase(entry.name);
  entry.name.clear();
  unused_namespaces_.push_back(index);
}

NodeId& RadixCache::children_of(int32_t namespace_index, NodeId parent) {
  if (parent == kNoNode)
    return namespaces_[static_cast<size_t>(namespace_index)].top;
  return node(parent).children;
}

/// What a page is worth by the policy. Never smaller for a parent than for its children.
int32_t RadixCache::rank_of(const CacheNode& entry) const {
  constexpr int32_t kHalf = 16;
  switch (policy_) {
    case EvictionPolicy::lru:
      return 0;
    case EvictionPolicy::lfu:
      // Exact up to 15 hits, then one more for each doubling.
      if (entry.hits < kHalf)
        return entry.hits;
      return std::min(
          2 * kHalf - 1,
          kHalf - 5 + static_cast<int32_t>(std::bit_width(static_cast<uint32_t>(entry.hits))));
    case EvictionPolicy::priority:
      return std::clamp(entry.priority, -kHalf, kHalf - 1) + kHalf;
  }
  return 0;
}

/// Under lfu a page starts above the last victim's level, so that pages that were popular once sink
/// as others go (LFU with dynamic aging, Arlitt et al. 2000).
void RadixCache::push_evictable(NodeId id) {
  CacheNode& pushed = node(id);
  pushed.level = base_level_ + rank_of(pushed);
  list_of(pushed.level).push_newest(nodes_, id);
  levels_in_use_ |= uint64_t{1} << static_cast<uint64_t>(pushed.level % kLevels);
  ++num_cached_;
}

void RadixCache::unlink_evictable(NodeId id) {
  auto& list = list_of(node(id).level);
  list.unlink(nodes_, id);
  if (list.size() == 0)
    levels_in_use_ &= ~(uint64_t{1} << static_cast<uint64_t>(node(id).level % kLevels));
  --num_cached_;
}

int32_t RadixCache::check_siblings(NodeId parent, int32_t namespace_index) const {
  const NodeId root = parent == kNoNode ? namespaces_[static_cast<size_t>(namespace_index)].top
                                        : node(parent).children;
  std::vector<NodeId> siblings;
  list_siblings(nodes_, root, siblings);
  for (size_t i = 0; i < siblings.size(); ++i) {
    const CacheNode& child = node(siblings[i]);
    HADAL_CHECK(child.num_tokens > 0 && child.num_tokens <= kPageTokens, "R2: size of a key");
    HADAL_CHECK(child.parent == parent, "R4: parent and child links agree");
    HADAL_CHECK(child.namespace_index == namespace_index, "R7: a child left its namespace");
    HADAL_CHECK(parent == kNoNode || child.refs <= node(parent).refs, "R3: refs grow upwards");
    HADAL_CHECK(child.num_tokens == kPageTokens || child.children == kNoNode,
                "R2: a tail has children");
    HADAL_CHECK(child.page != kNoPage || child.host_page != kNoPage, "T2: a node without KV");
    HADAL_CHECK(parent == kNoNode || child.page == kNoPage || node(parent).page != kNoPage,
                "T1: what is on the device has its parent there");
    HADAL_CHECK(parent == kNoNode || rank_of(child) <= rank_of(node(parent)),
                "R10: a parent is worth less than its child");
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

void RadixCache::check_eviction_order() const {
  std::vector<bool> is_younger(nodes_.size(), false);
  int32_t count = 0;
  for (int64_t level = base_level_ + kLevels - 1; level >= base_level_; --level) {
    const auto& list = evictable_[static_cast<size_t>(level % kLevels)];
    NodeId newer = kNoNode;
    for (NodeId id = list.newest(); id != kNoNode; id = node(id).device_links.older) {
      HADAL_CHECK(node(id).refs == 0 && node(id).page != kNoPage,
                  "R10: the eviction list holds a leased page");
      HADAL_CHECK(node(id).device_links.newer == newer, "R10: links of the eviction list");
      HADAL_CHECK(node(id).level == level && rank_of(node(id)) <= level, "R10: level of a page");
      const NodeId parent = node(id).parent;
      HADAL_CHECK(
          parent == kNoNode || node(parent).refs > 0 || is_younger[static_cast<size_t>(parent)],
          "R10: a parent is older than its child");
      is_younger[static_cast<size_t>(id)] = true;
      newer = id;
      HADAL_CHECK(++count <= num_cached_, "R14: the lists are longer than the cached count");
    }
    HADAL_CHECK(newer == list.oldest() &&
                    (list.size() > 0) ==
                        ((levels_in_use_ >> static_cast<uint64_t>(level % kLevels) & 1U) != 0),
                "R14: levels in use");
  }
  HADAL_CHECK(count == num_cached_, "R14: cached count");
}

void RadixCache::check_host_order() const {
  std::vector<bool> is_younger(nodes_.size(), false);
  int32_t count = 0;
  for (NodeId id = host_only_.newest(); id != kNoNode; id = node(id).host_links.older) {
    HADAL_CHECK(node(id).refs == 0 && node(id).page == kNoPage && node(id).host_page != kNoPage,
                "T3: the host list holds what is not on the host only");
    const NodeId parent = node(id).parent;
    HADAL_CHECK(parent == kNoNode || node(parent).page != kNoPage || node(parent).refs > 0 ||
                    is_younger[static_cast<size_t>(parent)],
                "T4: a parent on the host is older than its child");
    is_younger[static_cast<size_t>(id)] = true;
    ++count;
  }
  HADAL_CHECK(count == host_only_.size(), "T3: size of the host list");
  for (NodeId id = host_copies_.newest(); id != kNoNode; id = node(id).host_links.older) {
    HADAL_CHECK(node(id).page != kNoPage && node(id).host_page != kNoPage,
                "T3: the list of copies holds what has none");
    ++count;
  }
  std::vector<bool> is_used(static_cast<size_t>(host_.num_pages()), false);
  int32_t num_used = 0;
  for (const CacheNode& entry : nodes_) {
    if (entry.num_tokens == 0 || entry.host_page == kNoPage)
      continue;
    HADAL_CHECK(!host_.is_free(entry.host_page) && !is_used[static_cast<size_t>(entry.host_page)],
                "T5: a host page has one owner");
    is_used[static_cast<size_t>(entry.host_page)] = true;
    ++num_used;
  }
  HADAL_CHECK(num_used == num_host_pages_used() && num_used == count, "T5: host pages in use");
}

void RadixCache::check_invariants() const {
  int32_t num_nodes = 0;
  int32_t num_on_device = 0;
  int32_t num_unleased = 0;
  int32_t num_linked = 0;
  std::vector<int32_t> nodes_in(namespaces_.size(), 0);
  for (size_t i = 0; i < namespaces_.size(); ++i)
    num_linked += check_siblings(kNoNode, static_cast<int32_t>(i));
  for (NodeId id = 0; id < static_cast<NodeId>(nodes_.size()); ++id) {
    const CacheNode& entry = node(id);
    if (entry.num_tokens == 0)
      continue;
    ++num_nodes;
    if (entry.page != kNoPage) {
      ++num_on_device;
      num_unleased += entry.refs == 0 ? 1 : 0;
      HADAL_CHECK(!allocator_.is_free(entry.page), "P5: a free page is in the tree");
      HADAL_CHECK(node_of_page_[static_cast<size_t>(entry.page)] == id, "P3: a page of two nodes");
    }
    ++nodes_in[static_cast<size_t>(entry.namespace_index)];
    num_linked += check_siblings(id, entry.namespace_index);
  }
  HADAL_CHECK(num_nodes == num_nodes_ && num_linked == num_nodes_, "R4: every node is linked once");
  HADAL_CHECK(num_on_device == num_on_device_, "P3: pages of the tree");
  HADAL_CHECK(num_unleased == num_cached_, "R14: every unleased page can be evicted");
  for (size_t i = 0; i < namespaces_.size(); ++i)
    HADAL_CHECK(namespaces_[i].num_users >= nodes_in[i], "R7: users of a namespace");
  check_eviction_order();
  check_host_order();
}

}  // namespace hadal
