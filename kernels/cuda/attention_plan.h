// How attention is cut into work: integer functions that host and kernels share, and that tests
// call.
//
// A generated token's cache is cut into splits whose bounds depend on its own length alone. Each
// page is summed from zero, the pages of a split are folded in order, then the splits are merged:
// one tree, whoever does a part of it, so a block may have a split or, where splits are too few to
// fill the device, a page, and a token's sums are the same in every batch. Prompt rows are cut into
// tiles of queries; the keys' tiles lie at fixed positions.
#pragma once

#include <cstdint>

#include <hadal/ops/geometry.h>

namespace hadal::cuda {

/// Sizes that the tensor core kernels are built for: those of every DeepSeek-V2 and V3 model.
inline constexpr int32_t kLatents = 512;
inline constexpr int32_t kRope = 64;
inline constexpr int32_t kNope = 128;
inline constexpr int32_t kValue = 128;
inline constexpr int32_t kWidth = kLatents + kRope;
inline constexpr int32_t kHeadDim = kNope + kRope;
inline constexpr int32_t kSlab = kNope + kValue;  ///< rows of kv_b of one head

inline constexpr int32_t kQueryTile = 128;  ///< prompt queries that are planned together

constexpr int32_t pages_of(int32_t tokens) {
  return (tokens + kKvPageTokens - 1) / kKvPageTokens;
}

inline constexpr int32_t kSplitPages = 4;  ///< of a split, at least
inline constexpr int32_t kMostSplits = 128;

/// Pages of one split of a sequence of this many: 4 up to 32,768 tokens, then 1/128 of the
/// sequence.
constexpr int32_t pages_per_split(int32_t pages) {
  const int32_t even = (pages + kMostSplits - 1) / kMostSplits;
  return even > kSplitPages ? even : kSplitPages;
}

/// At most kMostSplits.
constexpr int32_t splits_of(int32_t tokens) {
  const int32_t pages = pages_of(tokens);
  const int32_t each = pages_per_split(pages);
  return (pages + each - 1) / each;
}

/// Largest splits_of of any length up to this one: the function is not monotone where splits grow.
constexpr int32_t most_splits_of(int32_t tokens) {
  const int32_t pages = pages_of(tokens);
  return pages >= kSplitPages * kMostSplits ? kMostSplits : (pages + kSplitPages - 1) / kSplitPages;
}

/// Whether blocks of one page each are all resident at once, two a multiprocessor, so that splits
/// are better cut into them. `units` = tokens times groups of heads, of at most `most_tokens`.
constexpr bool is_cut_by_page(int64_t units, int32_t most_tokens, int32_t num_multiprocessors) {
  const int32_t pages = pages_of(most_tokens);
  return pages <= kSplitPages * kMostSplits && units * pages <= 2 * int64_t{num_multiprocessors};
}

/// Tokens [begin, end) of split `index`; empty past the last one.
constexpr int32_t split_begin(int32_t tokens, int32_t index) {
  const int32_t begin = index * pages_per_split(pages_of(tokens)) * kKvPageTokens;
  return begin < tokens ? begin : tokens;
}

/// Byte of 16-byte chunk `chunk` of row `row` in a shared tile whose rows are whole 128-byte lines:
/// chunks of a line are permuted by the row, so that eight rows' same chunk lies in eight banks.
constexpr int32_t swizzled(int32_t row, int32_t chunk, int32_t row_bytes) {
  return row * row_bytes + ((chunk ^ (row & 7)) << 4);
}

/// A page's keys and values of one head as the sm_90a kernel copies them into shared memory, lines
/// of 64 elements whose chunks are permuted by the line (swizzled with rows of 128 bytes): three
/// tiles of 64 tokens, features 0-63, 64-127 and rope, then 128 lines of values over the 64 tokens.
inline constexpr int32_t kImageTile = kKvPageTokens * 64;  ///< elements
inline constexpr int32_t kImageValues = 3 * kImageTile;    ///< where values begin
inline constexpr int32_t kImageSize = kImageValues + kValue * kKvPageTokens;

/// Index of the range of `begins` [count + 1] that holds `item`; ranges may be empty.
template <class Int>
constexpr int32_t range_of(const Int* begins, int32_t count, int32_t item) {
  int32_t low = 0;
  int32_t high = count - 1;
  while (low < high) {
    const int32_t middle = (low + high + 1) / 2;
    if (begins[middle] <= item) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace hadal::cuda
