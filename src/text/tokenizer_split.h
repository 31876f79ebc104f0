// Pre-tokenisation: text is cut by a chain of regular expressions, each working on the pieces of
// the one before as if they were whole strings (look-ahead sees a piece's end as the end of the
// text).
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer_regex.h"

namespace hadal {

/// What becomes of a match, in the words of tokenizer.json.
enum class SplitBehavior : uint8_t {
  isolated,
  removed,
  merged_with_previous,
  merged_with_next,
  contiguous,
};

struct SplitStage {
  Regex regex;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool is_inverted = false;  ///< matches and gaps swap their parts
};

/// Immutable; `split` may be called from any thread with its own scratch.
class PreTokenizer {
 public:
  struct Piece {
    size_t begin = 0;
    size_t end = 0;
  };

  PreTokenizer() = default;

  explicit PreTokenizer(std::vector<SplitStage> stages) : stages_(std::move(stages)) {}

  /// The pieces of `text` (well-formed UTF-8) in order, none of them empty. Where a regular
  /// expression gives up, the rest of that piece stays whole.
  std::vector<Piece> split(std::string_view text, RegexScratch* scratch) const;

 private:
  std::vector<SplitStage> stages_;
};

}  // namespace hadal
