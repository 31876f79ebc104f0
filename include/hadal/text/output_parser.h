// Generated ids to what a client sees: thinking, answer text and tool calls, told apart by token
// id.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <hadal/text/token.h>
#include <hadal/text/tokenizer.h>

namespace hadal {

/// One whole, valid call that the model made; `index` counts from 0 within the answer.
struct ParsedToolCall {
  int32_t index = 0;
  std::string name;
  std::string arguments;  ///< the text of a JSON object, as the model wrote it
};

/// What one token added. Concatenated over an answer, the parts are the unstreamed answer.
struct OutputDelta {
  std::string reasoning;  ///< empty unless ReasoningFormat::split
  std::string content;
  std::vector<ParsedToolCall> tool_calls;

  bool empty() const { return reasoning.empty() && content.empty() && tool_calls.empty(); }
};

enum class ReasoningFormat : uint8_t {
  inline_tags,  ///< thinking stays in content; the `<think>` that the prompt opened is put back
  split,        ///< thinking goes to `reasoning`, without the markers and surrounding whitespace
};

/// Not thread-safe; one per answer. Keeps a reference to the tokenizer.
///
/// Tool calls are recognised in DeepSeek V3/R1's form (`function<sep>NAME`, a fenced JSON block)
/// and V3.1's (`NAME<sep>ARGS`). A call is held back until its end marker and delivered whole; one
/// that is cut short, has no name or whose arguments are not a JSON object leaves as content,
/// markers included. If the tokenizer lacks the markers, nothing is parsed.
class OutputParser {
 public:
  struct Options {
    ReasoningFormat reasoning = ReasoningFormat::inline_tags;
    /// False for requests without tools or with `tool_choice` none: the markers stay text.
    bool parses_tool_calls = false;
    bool skips_special_tokens = true;
    /// False when an assistant message is continued, whose sender has the `<think>` already.
    bool restores_think_open = true;
  };

  /// `prompt` is the encoded prompt (its tail from the last turn on is enough): whether the answer
  /// begins inside thinking is read off its think markers.
  OutputParser(const Tokenizer& tokenizer, std::span<const TokenId> prompt, Options options);

  OutputDelta push(TokenId id);
  /// What was held back, when the answer has ended.
  OutputDelta finish();

  /// Tokens generated inside thinking so far, markers not counted.
  int64_t reasoning_tokens() const { return reasoning_tokens_; }

  int32_t num_tool_calls() const { return num_tool_calls_; }

  bool is_thinking() const { return is_thinking_; }

 private:
  struct Markers {
    std::optional<TokenId> think_begin, think_end;
    std::optional<TokenId> calls_begin, calls_end, call_begin, call_end, separator;
  };

  enum class ToolState : uint8_t { none, between_calls, in_call };

  void start_from(std::span<const TokenId> prompt);
  void push_text(TokenId id, OutputDelta& delta);
  void push_marker(TokenId id, OutputDelta& delta);
  void push_tool(TokenId id, OutputDelta& delta);
  void start_block(TokenId id);
  void finish_call(OutputDelta& delta);
  void keep_as_text(OutputDelta& delta);
  void set_thinking(bool is_thinking);
  void emit(std::string text, OutputDelta& delta);
  bool is_hidden(TokenId id) const;

  const Tokenizer* tokenizer_;
  Options options_;
  Markers markers_;
  TokenDecoder decoder_;
  bool is_thinking_ = false;
  bool may_open_thinking_ = true;     // nothing but white space so far
  bool drops_leading_space_ = false;  // split: at the start of a part
  std::string restored_;              // put in front of the first text
  std::string held_space_;            // split: white space that may end the thinking
  ToolState tool_state_ = ToolState::none;
  std::vector<TokenId> tool_ids_;  // markers and tokens of calls that are not yet delivered
  bool has_block_call_ = false;    // the block delivered a call
  int64_t reasoning_tokens_ = 0;
  int32_t num_tool_calls_ = 0;
};

}  // namespace hadal
