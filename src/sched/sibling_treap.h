// The children of one radix node, ordered by their tokens, as a treap threaded through the node
// array.
//
// Why a treap and not a hash of whole pages: the child that shares the longest prefix with a query
// lies on the query's search path, so one descent answers both "which page is this" and "which
// page's first k tokens can be copied", in O(log siblings) however many prompts begin alike.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache_node.h"

namespace hadal {

struct SiblingMatch {
  NodeId id = kNoNode;     ///< the child with the longest common prefix; kNoNode without children
  int32_t num_common = 0;  ///< tokens in common with the query
};

/// Longest common prefix among the siblings under `root`; ties go to the one that is met last.
SiblingMatch find_best_sibling(std::span<const CacheNode> nodes,
                               NodeId root,
                               std::span<const TokenId> query);

/// Inserts `page`, whose key differs from all others, and returns the new root.
NodeId insert_sibling(std::span<CacheNode> nodes, NodeId root, NodeId page);

/// Removes `page` and returns the new root.
NodeId remove_sibling(std::span<CacheNode> nodes, NodeId root, NodeId page);

/// Appends all siblings under `root` in order of their tokens. O(count), for checks.
void list_siblings(std::span<const CacheNode> nodes, NodeId root, std::vector<NodeId>& out);

}  // namespace hadal
