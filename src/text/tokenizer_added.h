// Added tokens (`<｜User｜>`, `<think>`) are cut out of the text before anything else: leftmost
// first, longest among those that start together, in two passes as Hugging Face does (tokens
// matched in raw text, then those matched in normalised text).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/text/prompt_text.h>
#include <hadal/text/token.h>

namespace hadal {

struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool is_special = false;
  bool is_normalized = false;  ///< matched in the second pass
  bool strips_left = false;    ///< swallows white space before it
  bool strips_right = false;
};

/// A stretch of text: an added token, or (`id` < 0) ordinary text.
struct TextSegment {
  int64_t begin = 0;
  int64_t end = 0;
  TokenId id = -1;
};

/// Immutable; `cut` may be called from any thread.
class AddedTokenSet {
 public:
  AddedTokenSet() = default;
  explicit AddedTokenSet(const std::vector<AddedToken>& tokens);

  /// Cuts `range` of `text` completely into segments, without looking outside of it. No token is
  /// recognised that has a byte in `content` (sorted, disjoint, none empty). O(range x longest
  /// token).
  std::vector<TextSegment> cut(std::string_view text,
                               ByteRange range,
                               const std::vector<ByteRange>& content) const;

 private:
  struct Node {
    int32_t first_child = -1;
    int32_t next_sibling = -1;
    int32_t token = -1;  // index into strips_, -1: none ends here
    char byte = 0;
  };

  struct Strips {
    TokenId id = 0;
    bool left = false;
    bool right = false;
  };

  struct Trie {
    std::vector<Node> nodes = std::vector<Node>(1);
    std::array<int32_t, 256> roots = {};  // 0: no token starts with this byte
    bool is_empty = true;
  };

  void insert(Trie* trie, const AddedToken& token);
  static int32_t child_of(const Trie& trie, int32_t node, char byte);
  void cut_segment(const Trie& trie,
                   std::string_view text,
                   TextSegment segment,
                   const std::vector<ByteRange>& content,
                   std::vector<TextSegment>* out) const;

  Trie raw_;
  Trie normalized_;
  std::vector<Strips> strips_;
};

}  // namespace hadal
