// Byte-pair encoding of one pre-tokenised piece. Merges are applied in order of rank, leftmost
// first among equals, which is what Hugging Face's BPE and tiktoken do. The hard thing is long
// pieces: a mebibyte without a split must not cost quadratic time, so those go through a heap.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <hadal/text/token.h>

namespace hadal {

/// Two neighbouring tokens that may become one. Lower ranks merge first.
struct BpeMerge {
  TokenId left = 0;
  TokenId right = 0;
  TokenId result = 0;
  int32_t rank = 0;
};

/// Open-addressing map from a pair of ids to its merge; about 16 bytes a slot, half full at most.
class BpeMergeTable {
 public:
  struct Value {
    TokenId result = -1;
    int32_t rank = -1;
  };

  /// Of two merges of one pair the later in the list wins.
  explicit BpeMergeTable(const std::vector<BpeMerge>& merges);

  /// Null when the pair does not merge.
  const Value* find(TokenId left, TokenId right) const;

 private:
  struct Slot {
    uint64_t key = kEmpty;
    Value value;
  };

  static constexpr uint64_t kEmpty = ~uint64_t{0};
  size_t slot_of(uint64_t key) const;

  std::vector<Slot> slots_;
  int shift_ = 63;
};

/// Immutable; `encode` may be called from any thread.
class BpeModel {
 public:
  struct Parts {
    std::array<TokenId, 256> byte_ids = {};  ///< -1: the byte has no token and is dropped
    std::vector<BpeMerge> merges;
    /// When not empty: a piece that is a whole entry is that token, without merging. The keys must
    /// outlive the model.
    std::unordered_map<std::string_view, TokenId> whole_pieces;
  };

  explicit BpeModel(Parts parts);

  /// Appends the tokens of `piece` (fewer than 2^31 bytes). O(n log n) time, O(n) memory.
  void encode(std::string_view piece, std::vector<TokenId>* out) const;

 private:
  void encode_short(std::string_view piece, std::vector<TokenId>* out) const;
  void encode_long(std::string_view piece, std::vector<TokenId>* out) const;

  std::array<TokenId, 256> byte_ids_;
  BpeMergeTable merges_;
  std::unordered_map<std::string_view, TokenId> whole_pieces_;
};

}  // namespace hadal
