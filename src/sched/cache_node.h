// One page of the radix cache as a tree node. Nodes live in an array indexed by PageId: a node is
// its page, so that the tree never allocates.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include <hadal/plan/batch_plan.h>

namespace hadal {

inline constexpr PageId kNoPage = -1;

struct CacheNode {
  std::array<TokenId, static_cast<size_t>(kPageTokens)> tokens;
  int32_t num_tokens = 0;  ///< 0 = not in the tree; below kPageTokens = a tail, always a leaf
  int32_t refs = 0;        ///< leases whose path passes through here
  int32_t namespace_index = 0;
  PageId parent = kNoPage;    ///< kNoPage = top of its namespace
  PageId children = kNoPage;  ///< root of the treap of children
  PageId left = kNoPage;      ///< treap of siblings, ordered by tokens
  PageId right = kNoPage;
  PageId newer = kNoPage;  ///< LRU list of the nodes with refs == 0
  PageId older = kNoPage;

  std::span<const TokenId> key() const { return {tokens.data(), static_cast<size_t>(num_tokens)}; }
};

}  // namespace hadal
