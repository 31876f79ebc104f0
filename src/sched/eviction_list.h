// A list of nodes from oldest to newest, threaded through the node array. O(1), allocates nothing.
#pragma once

#include <span>

#include "cache_node.h"

namespace hadal {

template <ListLinks CacheNode::*kLinks>
class EvictionList {
 public:
  void push_newest(std::span<CacheNode> nodes, NodeId id) {
    ListLinks& links = at(nodes, id);
    links = {kNoNode, newest_};
    (newest_ != kNoNode ? at(nodes, newest_).newer : oldest_) = id;
    newest_ = id;
    ++size_;
  }

  void unlink(std::span<CacheNode> nodes, NodeId id) {
    ListLinks& gone = at(nodes, id);
    (gone.newer != kNoNode ? at(nodes, gone.newer).older : newest_) = gone.older;
    (gone.older != kNoNode ? at(nodes, gone.older).newer : oldest_) = gone.newer;
    gone = ListLinks{};
    --size_;
  }

  NodeId oldest() const { return oldest_; }

  NodeId newest() const { return newest_; }

  int32_t size() const { return size_; }

 private:
  static ListLinks& at(std::span<CacheNode> nodes, NodeId id) {
    return nodes[static_cast<size_t>(id)].*kLinks;
  }

  NodeId newest_ = kNoNode;
  NodeId oldest_ = kNoNode;
  int32_t size_ = 0;
};

}  // namespace hadal
