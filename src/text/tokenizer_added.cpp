// A byte trie walked from every position whose byte starts a token; siblings are linked, since a
// node has few children.
#include "tokenizer_added.h"

#include <algorithm>

#include "utf8.h"

namespace hadal {
namespace {

/// The White_Space property of Unicode.
bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

int64_t skip_space(std::string_view text, int64_t begin, int64_t end) {
  while (begin < end) {
    const Utf8Unit unit = next_utf8_unit(text.substr(static_cast<size_t>(begin)));
    if (unit.kind != Utf8Unit::Kind::character || !is_white_space(unit.code_point))
      break;
    begin += unit.length;
  }
  return begin;
}

int64_t skip_space_back(std::string_view text, int64_t begin, int64_t end) {
  while (end > begin) {
    int64_t at = end - 1;
    while (at > begin && (static_cast<uint8_t>(text[static_cast<size_t>(at)]) & 0xC0) == 0x80)
      --at;
    if (skip_space(text, at, end) != end)
      break;
    end = at;
  }
  return end;
}

}  // namespace

AddedTokenSet::AddedTokenSet(const std::vector<AddedToken>& tokens) {
  for (const AddedToken& token : tokens) {
    if (!token.content.empty())
      insert(token.is_normalized ? &normalized_ : &raw_, token);
  }
}

int32_t AddedTokenSet::child_of(const Trie& trie, int32_t node, char byte) {
  int32_t child = trie.nodes[static_cast<size_t>(node)].first_child;
  while (child >= 0 && trie.nodes[static_cast<size_t>(child)].byte != byte)
    child = trie.nodes[static_cast<size_t>(child)].next_sibling;
  return child;
}

void AddedTokenSet::insert(Trie* trie, const AddedToken& token) {
  trie->is_empty = false;
  int32_t node = 0;
  for (const char byte : token.content) {
    int32_t child = child_of(*trie, node, byte);
    if (child < 0) {
      child = static_cast<int32_t>(trie->nodes.size());
      Node& parent = trie->nodes[static_cast<size_t>(node)];
      const Node fresh{-1, parent.first_child, -1, byte};
      parent.first_child = child;
      if (node == 0)
        trie->roots.at(static_cast<uint8_t>(byte)) = child;
      trie->nodes.push_back(fresh);
    }
    node = child;
  }
  trie->nodes[static_cast<size_t>(node)].token = static_cast<int32_t>(strips_.size());
  strips_.push_back({token.id, token.strips_left, token.strips_right});
}

void AddedTokenSet::cut_segment(const Trie& trie,
                                std::string_view text,
                                TextSegment segment,
                                const std::vector<ByteRange>& content,
                                std::vector<TextSegment>* out) const {
  auto barrier = std::partition_point(content.begin(), content.end(), [&](const ByteRange& range) {
    return range.end <= segment.begin;
  });
  int64_t done = segment.begin;
  int64_t at = segment.begin;
  while (at < segment.end) {
    while (barrier != content.end() && barrier->end <= at)
      ++barrier;
    const bool has_barrier = barrier != content.end();
    if (has_barrier && barrier->begin <= at) {
      at = barrier->end;
      continue;
    }
    const int64_t limit = has_barrier ? std::min(segment.end, barrier->begin) : segment.end;
    int32_t token = -1;
    int64_t token_end = at;
    int32_t node = trie.roots[static_cast<uint8_t>(text[static_cast<size_t>(at)])];
    for (int64_t i = at; node > 0;) {
      ++i;
      if (trie.nodes[static_cast<size_t>(node)].token >= 0) {
        token = trie.nodes[static_cast<size_t>(node)].token;
        token_end = i;
      }
      node = i < limit ? child_of(trie, node, text[static_cast<size_t>(i)]) : -1;
    }
    if (token < 0) {
      ++at;
      continue;
    }
    const Strips& strips = strips_[static_cast<size_t>(token)];
    const int64_t begin = strips.left ? skip_space_back(text, done, at) : at;
    const int64_t end = strips.right ? skip_space(text, token_end, segment.end) : token_end;
    if (begin > done)
      out->push_back({done, begin, -1});
    out->push_back({begin, end, strips.id});
    done = at = end;
  }
  if (done < segment.end)
    out->push_back({done, segment.end, -1});
}

std::vector<TextSegment> AddedTokenSet::cut(std::string_view text,
                                            ByteRange range,
                                            const std::vector<ByteRange>& content) const {
  std::vector<TextSegment> segments;
  if (range.begin < range.end)
    segments.push_back({range.begin, range.end, -1});
  for (const Trie* trie : {&raw_, &normalized_}) {
    if (trie->is_empty)
      continue;
    std::vector<TextSegment> next;
    for (const TextSegment& segment : segments) {
      if (segment.id >= 0)
        next.push_back(segment);
      else
        cut_segment(*trie, text, segment, content, &next);
    }
    segments.swap(next);
  }
  return segments;
}

}  // namespace hadal
