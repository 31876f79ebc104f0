// See sibling_treap.h. All walks are loops: depth is logarithmic in expectation only.
#include "sibling_treap.h"

#include <algorithm>

#include <hadal/base/check.h>

namespace hadal {
namespace {

/// Heap priority of a page: fixed, well mixed, nothing a client can choose.
uint32_t priority(NodeId page) {
  auto x = static_cast<uint32_t>(page) * 0x9E3779B1U;
  x ^= x >> 16U;
  x *= 0x85EBCA6BU;
  x ^= x >> 13U;
  x *= 0xC2B2AE35U;
  return x ^ (x >> 16U);
}

CacheNode& at(std::span<CacheNode> nodes, NodeId page) {
  return nodes[static_cast<size_t>(page)];
}

bool key_less(std::span<const TokenId> a, std::span<const TokenId> b) {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

}  // namespace

SiblingMatch find_best_sibling(std::span<const CacheNode> nodes,
                               NodeId root,
                               std::span<const TokenId> query) {
  SiblingMatch best;
  NodeId page = root;
  while (page != kNoNode) {
    const CacheNode& node = nodes[static_cast<size_t>(page)];
    const std::span<const TokenId> key = node.key();
    const size_t limit = std::min(key.size(), query.size());
    const auto first_difference =
        std::mismatch(query.begin(), query.begin() + static_cast<ptrdiff_t>(limit), key.begin());
    const auto common = static_cast<size_t>(first_difference.first - query.begin());
    if (best.id == kNoNode || static_cast<int32_t>(common) >= best.num_common)
      best = {page, static_cast<int32_t>(common)};
    if (common == limit) {
      if (key.size() == query.size())
        return best;
      page = query.size() < key.size() ? node.left : node.right;
    } else {
      page = query[common] < key[common] ? node.left : node.right;
    }
  }
  return best;
}

NodeId insert_sibling(std::span<CacheNode> nodes, NodeId root, NodeId page) {
  CacheNode& added = at(nodes, page);
  NodeId* link = &root;
  while (*link != kNoNode && priority(*link) >= priority(page)) {
    CacheNode& node = at(nodes, *link);
    link = key_less(added.key(), node.key()) ? &node.left : &node.right;
  }
  // Split the subtree under `link` around the new key; its halves become the new node's children.
  NodeId rest = *link;
  *link = page;
  NodeId* less = &added.left;
  NodeId* greater = &added.right;
  while (rest != kNoNode) {
    CacheNode& node = at(nodes, rest);
    if (key_less(node.key(), added.key())) {
      *less = rest;
      less = &node.right;
      rest = node.right;
    } else {
      *greater = rest;
      greater = &node.left;
      rest = node.left;
    }
  }
  *less = kNoNode;
  *greater = kNoNode;
  return root;
}

NodeId remove_sibling(std::span<CacheNode> nodes, NodeId root, NodeId page) {
  CacheNode& removed = at(nodes, page);
  NodeId* link = &root;
  while (*link != page) {
    HADAL_CHECK(*link != kNoNode, "radix cache: page is not among its siblings");
    CacheNode& node = at(nodes, *link);
    link = key_less(removed.key(), node.key()) ? &node.left : &node.right;
  }
  NodeId less = removed.left;
  NodeId greater = removed.right;
  while (less != kNoNode && greater != kNoNode) {
    if (priority(less) >= priority(greater)) {
      *link = less;
      link = &at(nodes, less).right;
      less = *link;
    } else {
      *link = greater;
      link = &at(nodes, greater).left;
      greater = *link;
    }
  }
  *link = less != kNoNode ? less : greater;
  removed.left = kNoNode;
  removed.right = kNoNode;
  return root;
}

void list_siblings(std::span<const CacheNode> nodes, NodeId root, std::vector<NodeId>& out) {
  std::vector<NodeId> stack;
  NodeId page = root;
  while (page != kNoNode || !stack.empty()) {
    while (page != kNoNode) {
      stack.push_back(page);
      page = nodes[static_cast<size_t>(page)].left;
    }
    page = stack.back();
    stack.pop_back();
    out.push_back(page);
    page = nodes[static_cast<size_t>(page)].right;
  }
}

}  // namespace hadal
