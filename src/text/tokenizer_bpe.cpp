// Both paths give the same tokens: the short one rescans a few symbols for the lowest rank, the
// long one keeps candidates in a heap and drops those whose symbols have changed since.
#include "tokenizer_bpe.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <tuple>

#include <hadal/base/check.h>

namespace hadal {
namespace {

constexpr size_t kShortPieceBytes = 48;
constexpr int32_t kNoMerge = std::numeric_limits<int32_t>::max();

uint64_t pair_key(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

/// A symbol of a long piece, in a list that merging shortens.
struct Symbol {
  TokenId id = -1;  // -1: merged into its left neighbour
  int32_t previous = -1;
  int32_t next = -1;
};

struct Candidate {
  int32_t rank = 0;
  int32_t at = 0;
  TokenId result = 0;

  bool operator<(const Candidate& other) const {  // std::priority_queue pops the largest
    return std::tie(rank, at) > std::tie(other.rank, other.at);
  }
};

}  // namespace

BpeMergeTable::BpeMergeTable(const std::vector<BpeMerge>& merges) {
  int bits = 1;
  while ((size_t{1} << bits) < merges.size() * 2)
    ++bits;
  shift_ = 64 - bits;
  slots_.resize(size_t{1} << bits);
  for (const BpeMerge& merge : merges) {
    const uint64_t key = pair_key(merge.left, merge.right);
    Slot& slot = slots_[slot_of(key)];
    slot.key = key;
    slot.value = {merge.result, merge.rank};
  }
}

size_t BpeMergeTable::slot_of(uint64_t key) const {
  size_t at = static_cast<size_t>((key ^ key >> 29) * 0x9E3779B97F4A7C15ULL >> shift_);
  while (slots_[at].key != kEmpty && slots_[at].key != key)
    at = (at + 1) & (slots_.size() - 1);
  return at;
}

const BpeMergeTable::Value* BpeMergeTable::find(TokenId left, TokenId right) const {
  const Slot& slot = slots_[slot_of(pair_key(left, right))];
  return slot.key == kEmpty ? nullptr : &slot.value;
}

BpeModel::BpeModel(Parts parts)
    : byte_ids_(parts.byte_ids),
      merges_(parts.merges),
      whole_pieces_(std::move(parts.whole_pieces)) {}

void BpeModel::encode(std::string_view piece, std::vector<TokenId>* out) const {
  HADAL_CHECK(piece.size() < size_t{1} << 31, "piece too long for 32-bit positions");
  if (!whole_pieces_.empty()) {
    if (const auto found = whole_pieces_.find(piece); found != whole_pieces_.end()) {
      out->push_back(found->second);
      return;
    }
  }
  if (piece.size() <= kShortPieceBytes)
    encode_short(piece, out);
  else
    encode_long(piece, out);
}

void BpeModel::encode_short(std::string_view piece, std::vector<TokenId>* out) const {
  std::array<TokenId, kShortPieceBytes> ids;
  std::array<BpeMergeTable::Value, kShortPieceBytes> merges;  // of ids[i] with ids[i + 1]
  size_t count = 0;
  for (const char c : piece) {
    if (const TokenId id = byte_ids_[static_cast<uint8_t>(c)]; id >= 0)
      ids[count++] = id;
  }
  const auto merge_at = [&](size_t i) -> BpeMergeTable::Value {
    const auto* merge = i + 1 < count ? merges_.find(ids[i], ids[i + 1]) : nullptr;
    return merge == nullptr ? BpeMergeTable::Value{-1, kNoMerge} : *merge;
  };
  for (size_t i = 0; i < count; ++i)
    merges[i] = merge_at(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (merges[i].rank < merges[best].rank)
        best = i;
    }
    if (merges[best].rank == kNoMerge)
      break;
    ids[best] = merges[best].result;
    for (size_t i = best + 1; i + 1 < count; ++i) {
      ids[i] = ids[i + 1];
      merges[i] = merges[i + 1];
    }
    --count;
    merges[best] = merge_at(best);
    if (best > 0)
      merges[best - 1] = merge_at(best - 1);
  }
  out->insert(out->end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count));
}

void BpeModel::encode_long(std::string_view piece, std::vector<TokenId>* out) const {
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (const char c : piece) {
    if (const TokenId id = byte_ids_[static_cast<uint8_t>(c)]; id >= 0) {
      const auto at = static_cast<int32_t>(symbols.size());
      symbols.push_back({id, at - 1, at + 1});
    }
  }
  if (symbols.empty())
    return;
  symbols.back().next = -1;
  const auto symbol = [&](int32_t at) -> Symbol& { return symbols[static_cast<size_t>(at)]; };
  const auto merge_of = [&](int32_t at) -> const BpeMergeTable::Value* {
    const Symbol& left = symbol(at);
    return left.id < 0 || left.next < 0 ? nullptr : merges_.find(left.id, symbol(left.next).id);
  };
  std::vector<Candidate> initial;
  initial.reserve(symbols.size());
  for (int32_t at = 0; at < static_cast<int32_t>(symbols.size()); ++at) {
    if (const auto* merge = merge_of(at))
      initial.push_back({merge->rank, at, merge->result});
  }
  std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(initial));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const auto* merge = merge_of(top.at);
    if (merge == nullptr || merge->rank != top.rank || merge->result != top.result)
      continue;  // a neighbour merged first
    Symbol& left = symbol(top.at);
    Symbol& right = symbol(left.next);
    left.id = top.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0)
      symbol(left.next).previous = top.at;
    for (const int32_t at : {left.previous, top.at}) {
      const auto* follow = at < 0 ? nullptr : merge_of(at);
      if (follow != nullptr)
        queue.push({follow->rank, at, follow->result});
    }
  }
  for (int32_t at = 0; at >= 0; at = symbol(at).next)
    out->push_back(symbol(at).id);
}

}  // namespace hadal
