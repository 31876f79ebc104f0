// The stages of PreTokenizer. The merging behaviours look odd on adjacent matches; they follow what
// Hugging Face does there, which the exactness tests compare.
#include "tokenizer_split.h"

#include <algorithm>
#include <atomic>

#include <hadal/base/log.h>

#include "utf8.h"

namespace hadal {
namespace {

using Piece = PreTokenizer::Piece;

struct Span {
  Piece piece;
  bool is_match = false;
};

/// Once per process: text from the network must not be able to fill the log.
void warn_once() {
  static std::atomic_flag is_said = ATOMIC_FLAG_INIT;
  if (!is_said.test_and_set())
    log_warning("tokenizer: a pre-tokenizer pattern reached its limit; a piece stays unsplit");
}

/// Matches and the gaps between them, in order, covering `text`.
void find_spans(const SplitStage& stage,
                std::string_view text,
                RegexScratch* scratch,
                std::vector<Span>* spans) {
  spans->clear();
  size_t covered = 0;
  size_t from = 0;
  bool has_match = false;
  while (from <= text.size()) {
    Regex::Match match;
    const Regex::Outcome outcome = stage.regex.find(text, from, scratch, &match);
    if (outcome == Regex::Outcome::gave_up)
      warn_once();
    if (outcome != Regex::Outcome::found)
      break;
    if (match.begin == match.end && has_match && match.begin == covered) {
      // An empty match right behind the last one is passed over, not repeated for ever.
      from += from < text.size() ? next_utf8_unit(text.substr(from)).length : 1;
      continue;
    }
    if (match.begin > covered)
      spans->push_back({{covered, match.begin}, false});
    spans->push_back({{match.begin, match.end}, true});
    covered = from = match.end;
    has_match = true;
  }
  if (covered < text.size())
    spans->push_back({{covered, text.size()}, false});
}

void merge_spans(SplitBehavior behavior, std::vector<Span>* spans) {
  std::vector<Span> merged;
  bool was_match = false;
  const bool is_reversed = behavior == SplitBehavior::merged_with_next;
  if (is_reversed)
    std::reverse(spans->begin(), spans->end());
  for (const Span& span : *spans) {
    const bool joins = behavior == SplitBehavior::contiguous ? span.is_match == was_match
                                                             : span.is_match && !was_match;
    was_match = span.is_match;
    if (!joins || merged.empty())
      merged.push_back({span.piece, false});
    else if (is_reversed)
      merged.back().piece.begin = span.piece.begin;
    else
      merged.back().piece.end = span.piece.end;
  }
  if (is_reversed)
    std::reverse(merged.begin(), merged.end());
  spans->swap(merged);
}

}  // namespace

std::vector<Piece> PreTokenizer::split(std::string_view text, RegexScratch* scratch) const {
  std::vector<Piece> pieces;
  if (!text.empty())
    pieces.push_back({0, text.size()});
  std::vector<Piece> next;
  std::vector<Span> spans;
  for (const SplitStage& stage : stages_) {
    next.clear();
    next.reserve(pieces.size() + 16);
    for (const Piece& piece : pieces) {
      find_spans(stage, text.substr(piece.begin, piece.end - piece.begin), scratch, &spans);
      if (stage.is_inverted) {
        for (Span& span : spans)
          span.is_match = !span.is_match;
      }
      if (stage.behavior != SplitBehavior::isolated && stage.behavior != SplitBehavior::removed)
        merge_spans(stage.behavior, &spans);
      for (const Span& span : spans) {
        const bool is_removed = stage.behavior == SplitBehavior::removed && span.is_match;
        if (!is_removed && span.piece.begin != span.piece.end)
          next.push_back({piece.begin + span.piece.begin, piece.begin + span.piece.end});
      }
    }
    pieces.swap(next);
  }
  return pieces;
}

}  // namespace hadal
