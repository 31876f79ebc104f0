// A rendered prompt whose bytes remember where they came from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hadal {

/// Half-open byte range.
struct ByteRange {
  int64_t begin = 0;
  int64_t end = 0;
};

/// Text in which `content` (sorted, disjoint) marks the bytes that came from request data. Added
/// tokens such as
/// `<｜User｜>` are recognised only where no byte of theirs lies in such a range: messages never
/// become special tokens.
struct PromptText {
  std::string text;
  std::vector<ByteRange> content;
};

}  // namespace hadal
