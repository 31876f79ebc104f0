// Aho-Corasick: one state per prefix of a stop; the state's depth is how much must be held back.
#include <algorithm>

#include <hadal/text/stop_matcher.h>

namespace hadal {

StopMatcher::StopMatcher(const std::vector<std::string>& stops, Options options)
    : options_(options), nodes_(1) {
  for (size_t i = 0; i < stops.size(); ++i) {
    stop_bytes_.push_back(static_cast<int64_t>(stops[i].size()));
    if (!stops[i].empty())
      add(stops[i], static_cast<int32_t>(i));
  }
  link();
}

int32_t StopMatcher::child(int32_t node, uint8_t byte) const {
  const std::vector<Edge>& edges = nodes_[static_cast<size_t>(node)].edges;
  const auto it = std::lower_bound(
      edges.begin(), edges.end(), byte, [](const Edge& edge, uint8_t b) { return edge.byte < b; });
  return it != edges.end() && it->byte == byte ? it->node : -1;
}

void StopMatcher::add(std::string_view stop, int32_t index) {
  int32_t at = 0;
  for (const char c : stop) {
    const auto byte = static_cast<uint8_t>(c);
    int32_t next = child(at, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
      nodes_.back().depth = nodes_[static_cast<size_t>(at)].depth + 1;
      std::vector<Edge>& edges = nodes_[static_cast<size_t>(at)].edges;
      const auto place = std::lower_bound(
          edges.begin(), edges.end(), byte, [](const Edge& e, uint8_t b) { return e.byte < b; });
      edges.insert(place, Edge{byte, next});
    }
    at = next;
  }
  int32_t& stop_here = nodes_[static_cast<size_t>(at)].stop;
  if (stop_here < 0)  // of equal stops the first counts
    stop_here = index;
}

/// Breadth first, so that a node's fail node is finished before it.
void StopMatcher::link() {
  std::vector<int32_t> queue = {0};
  for (size_t i = 0; i < queue.size(); ++i) {
    const int32_t at = queue[i];
    for (const Edge& edge : nodes_[static_cast<size_t>(at)].edges) {
      Node& next = nodes_[static_cast<size_t>(edge.node)];
      next.fail = at == 0 ? 0 : advance(nodes_[static_cast<size_t>(at)].fail, edge.byte);
      if (next.stop < 0)
        next.stop = nodes_[static_cast<size_t>(next.fail)].stop;
      queue.push_back(edge.node);
    }
  }
}

int32_t StopMatcher::advance(int32_t node, uint8_t byte) const {
  for (;;) {
    const int32_t next = child(node, byte);
    if (next >= 0)
      return next;
    if (node == 0)
      return 0;
    node = nodes_[static_cast<size_t>(node)].fail;
  }
}

StopMatcher::Step StopMatcher::push(std::string_view text) {
  Step step;
  if (matched_)
    return step;
  const size_t held = held_.size();
  std::string all = std::move(held_);
  all += text;
  held_.clear();
  for (size_t i = held; i < all.size(); ++i) {
    state_ = advance(state_, static_cast<uint8_t>(all[i]));
    const int32_t stop = nodes_[static_cast<size_t>(state_)].stop;
    if (stop < 0)
      continue;
    matched_ = step.matched = stop;
    const size_t bytes = static_cast<size_t>(stop_bytes_[static_cast<size_t>(stop)]);
    all.resize(options_.keeps_stop ? i + 1 : i + 1 - bytes);
    step.text = std::move(all);
    return step;
  }
  const auto depth = static_cast<size_t>(nodes_[static_cast<size_t>(state_)].depth);
  held_ = all.substr(all.size() - depth);
  all.resize(all.size() - depth);
  step.text = std::move(all);
  return step;
}

std::string StopMatcher::flush() {
  state_ = 0;
  std::string rest = std::move(held_);
  held_.clear();
  return rest;
}

}  // namespace hadal
