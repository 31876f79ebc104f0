// One answer's way from token ids to text: thinking, tool calls and stop strings, told apart by the
// text layer's parser and matcher. Knows no HTTP; feeding it in any pieces gives the same text.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <hadal/text/output_parser.h>
#include <hadal/text/stop_matcher.h>
#include <hadal/text/tokenizer.h>

namespace hadal::api {

/// Text to be sent now.
struct TextDelta {
  std::string reasoning;
  std::string content;
  std::vector<ParsedToolCall> tool_calls;

  bool empty() const { return reasoning.empty() && content.empty() && tool_calls.empty(); }

  void append(TextDelta other);
};

/// Not thread-safe; keeps a reference to the tokenizer.
class TextStream {
 public:
  struct Options {
    OutputParser::Options parser;
    std::vector<std::string> stops;
    bool keeps_stop = false;
    bool has_single_tool_call = false;  ///< the answer ends with its first call
  };

  TextStream(const Tokenizer& tokenizer, std::span<const TokenId> prompt, const Options& options);

  TextDelta push(TokenId id);
  /// What was held back; call once, when the answer has ended by itself.
  TextDelta finish();

  /// True once a stop string or a single tool call ended the answer: nothing more comes out.
  bool is_ended() const { return is_ended_; }

  /// Index into the stops.
  std::optional<int32_t> matched_stop() const { return matched_stop_; }

  int64_t reasoning_tokens() const { return parser_.reasoning_tokens(); }

  int32_t num_tool_calls() const { return num_tool_calls_; }

 private:
  TextDelta accept(OutputDelta delta);

  OutputParser parser_;
  StopMatcher reasoning_stops_;
  StopMatcher content_stops_;
  bool has_single_tool_call_;
  bool is_ended_ = false;
  std::optional<int32_t> matched_stop_;
  int32_t num_tool_calls_ = 0;
};

}  // namespace hadal::api
