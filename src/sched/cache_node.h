// One page's worth of tokens in the radix tree, and where its KV is: on the device, on the host, or
// both. Nodes live in an array sized once, so that the tree never allocates.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include <hadal/base/clock.h>
#include <hadal/plan/batch_plan.h>

namespace hadal {

using NodeId = int32_t;

inline constexpr PageId kNoPage = -1;
inline constexpr NodeId kNoNode = -1;

/// A node's neighbours in one EvictionList.
struct ListLinks {
  NodeId newer = kNoNode;
  NodeId older = kNoNode;
};

struct CacheNode {
  std::array<TokenId, static_cast<size_t>(kPageTokens)> tokens;
  int32_t num_tokens = 0;  ///< 0 = not in the tree; below kPageTokens = a tail, always a leaf
  int32_t refs = 0;        ///< leases whose path passes through here
  int32_t namespace_index = 0;
  PageId page = kNoPage;       ///< on the device; kNoPage = on the host only
  PageId host_page = kNoPage;  ///< a copy in the host tier
  NodeId parent = kNoNode;     ///< kNoNode = top of its namespace
  NodeId children = kNoNode;   ///< root of the treap of children
  NodeId left = kNoNode;       ///< treap of siblings, ordered by tokens
  NodeId right = kNoNode;
  ListLinks device_links;  ///< with refs == 0 and a page: what can be evicted
  ListLinks
      host_links;     ///< with a host_page: copies, or, without a page and refs == 0, the only KV
  int64_t level = 0;  ///< of the device list it is in
  int32_t hits = 0;   ///< leases so far
  int32_t priority = 0;   ///< highest of the requests that used it
  TimePoint last_used{};  ///< when the last lease was released
  uint64_t moved_in = 0;  ///< the step in which its KV last moved between the tiers

  std::span<const TokenId> key() const { return {tokens.data(), static_cast<size_t>(num_tokens)}; }
};

}  // namespace hadal
