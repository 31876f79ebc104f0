// The integer functions by which CUDA attention is cut into work and laid out in shared memory.
#include "attention_plan.h"

#include <set>
#include <vector>

#include "catch.h"

namespace hadal::cuda {

TEST_CASE("attention plan: splits cover a length in order, whatever it is", "[ops]") {
  int32_t most = 0;
  for (int32_t tokens = 1; tokens <= 163840; tokens += tokens < 20000 ? 1 : 61) {
    const int32_t splits = splits_of(tokens);
    most = splits > most ? splits : most;
    REQUIRE(splits >= 1);
    REQUIRE(splits <= kMostSplits);
    REQUIRE(most <= most_splits_of(tokens));
    REQUIRE(split_begin(tokens, 0) == 0);
    REQUIRE(split_begin(tokens, splits) == tokens);
    REQUIRE(split_begin(tokens, splits + 7) == tokens);
    for (int32_t i = 0; i < splits; ++i) {
      REQUIRE(split_begin(tokens, i) < split_begin(tokens, i + 1));
      REQUIRE(split_begin(tokens, i) % kKvPageTokens == 0);
    }
  }
  CHECK(splits_of(256) == 1);
  CHECK(splits_of(257) == 2);
  CHECK(splits_of(16384) == 64);
  CHECK(splits_of(131072) == 128);
}

TEST_CASE("attention plan: few tokens are cut by page, whose splits are of four pages", "[ops]") {
  CHECK(is_cut_by_page(1, 4096, 132));
  CHECK(is_cut_by_page(4, 4096, 132));
  CHECK_FALSE(is_cut_by_page(5, 4096, 132));
  CHECK_FALSE(is_cut_by_page(1, 131072, 132));
  CHECK_FALSE(is_cut_by_page(1, 131072, 1 << 20));
  for (int32_t tokens = 1; tokens <= 163840; ++tokens) {
    if (is_cut_by_page(1, tokens, 132)) {
      REQUIRE(pages_per_split(pages_of(tokens)) == kSplitPages);
    }
  }
}

TEST_CASE("attention plan: a swizzled tile keeps every chunk, and eight rows apart", "[ops]") {
  for (const int32_t row_bytes : {128, 256, 384, 1152}) {
    const int32_t rows = 64;
    std::set<int32_t> taken;
    for (int32_t row = 0; row < rows; ++row) {
      for (int32_t chunk = 0; chunk < row_bytes / 16; ++chunk) {
        const int32_t at = swizzled(row, chunk, row_bytes);
        REQUIRE(at >= row * row_bytes);
        REQUIRE(at + 16 <= (row + 1) * row_bytes);
        REQUIRE(at % 16 == 0);
        REQUIRE(taken.insert(at).second);
      }
    }
    for (int32_t row = 0; row < rows; row += 8) {
      for (int32_t chunk = 0; chunk < row_bytes / 16; ++chunk) {
        std::set<int32_t> banks;
        for (int32_t i = 0; i < 8; ++i) {
          banks.insert(swizzled(row + i, chunk, row_bytes) % 128);
        }
        REQUIRE(banks.size() == 8);
      }
    }
  }
}

TEST_CASE("attention plan: an item is found among ranges, empty ones too", "[ops]") {
  const std::vector<int32_t> begins{0, 0, 3, 3, 3, 4, 9};
  const std::vector<int32_t> expected{1, 1, 1, 4, 5, 5, 5, 5, 5};
  for (int32_t item = 0; item < 9; ++item) {
    CHECK(range_of(begins.data(), 6, item) == expected[static_cast<size_t>(item)]);
  }
  const std::vector<int32_t> rows{2, 3, 7};
  for (int32_t i = 0; i < 3; ++i) {
    CHECK(range_of(rows.data(), 3, rows[static_cast<size_t>(i)]) == i);
  }
}

}  // namespace hadal::cuda
