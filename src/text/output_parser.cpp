// A small state machine over token ids: thinking or not, and where in a block of tool calls. What
// may still turn out to be text (an unfinished call) is held back, so nothing has to be taken back.
#include <algorithm>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include <hadal/text/output_parser.h>

namespace hadal {

namespace {

constexpr size_t kNameBytesMax = 256;

bool is_blank(char c) {
  return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

bool is_blank(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return is_blank(c); });
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_blank(text.front()))
    text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back()))
    text.remove_suffix(1);
  return text;
}

/// Visible ASCII: a name that OpenAI's clients accept, and a little more.
bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= kNameBytesMax &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7F; });
}

bool is_json_object(std::string_view text) {
  return text.starts_with('{') && nlohmann::json::accept(text.begin(), text.end());
}

struct Call {
  std::string_view name;
  std::string_view arguments;
};

/// NAME, a line break, and the arguments in a block fenced with ```json.
std::optional<Call> parse_fenced(std::string_view text) {
  constexpr std::string_view kFence = "```";
  const size_t line = text.find('\n');
  if (line == std::string_view::npos)
    return std::nullopt;
  Call call{trim(text.substr(0, line)), trim(text.substr(line))};
  if (call.arguments.size() < 2 * kFence.size() || !call.arguments.starts_with(kFence) ||
      !call.arguments.ends_with(kFence))
    return std::nullopt;
  call.arguments.remove_prefix(kFence.size());
  call.arguments.remove_suffix(kFence.size());
  if (call.arguments.starts_with("json"))
    call.arguments.remove_prefix(4);
  call.arguments = trim(call.arguments);
  return call;
}

std::optional<Call> parse_call(std::string_view head, std::string_view rest) {
  std::optional<Call> call;
  if (trim(head) == "function")
    call = parse_fenced(rest);
  if (!call)
    call = Call{trim(head), trim(rest)};
  if (!is_name(call->name) || !is_json_object(call->arguments))
    return std::nullopt;
  return call;
}

}  // namespace

OutputParser::OutputParser(const Tokenizer& tokenizer,
                           std::span<const TokenId> prompt,
                           Options options)
    : tokenizer_(&tokenizer),
      options_(options),
      decoder_(tokenizer, {.skip_special_tokens = options.skips_special_tokens}) {
  markers_.think_begin = tokenizer.added_token("<think>");
  markers_.think_end = tokenizer.added_token("</think>");
  if (options.parses_tool_calls) {
    markers_.calls_begin = tokenizer.added_token("<｜tool▁calls▁begin｜>");
    markers_.calls_end = tokenizer.added_token("<｜tool▁calls▁end｜>");
    markers_.call_begin = tokenizer.added_token("<｜tool▁call▁begin｜>");
    markers_.call_end = tokenizer.added_token("<｜tool▁call▁end｜>");
    markers_.separator = tokenizer.added_token("<｜tool▁sep｜>");
    if (!markers_.calls_end || !markers_.call_begin || !markers_.call_end || !markers_.separator)
      markers_.calls_begin.reset();
  }
  start_from(prompt);
}

void OutputParser::start_from(std::span<const TokenId> prompt) {
  if (!markers_.think_begin || !markers_.think_end)
    return;
  const std::optional<TokenId> eos = tokenizer_->eos_id();
  size_t begin = prompt.size();
  while (begin > 0) {
    const TokenId id = prompt[begin - 1];
    if (id == markers_.think_end || id == eos)
      return;
    --begin;
    if (id == markers_.think_begin) {
      is_thinking_ = true;
      break;
    }
  }
  if (!is_thinking_)
    return;
  may_open_thinking_ = false;
  std::string opened;
  for (size_t i = begin; i < prompt.size(); ++i)
    opened += tokenizer_->bytes(prompt[i]);
  // More than white space after the marker: a thought that the client knows is being continued.
  const std::string_view marker = tokenizer_->bytes(*markers_.think_begin);
  const bool is_fresh = is_blank(std::string_view(opened).substr(marker.size()));
  if (options_.reasoning == ReasoningFormat::split)
    drops_leading_space_ = is_fresh;
  else if (options_.restores_think_open && is_fresh)
    restored_ = std::move(opened);
}

OutputDelta OutputParser::push(TokenId id) {
  OutputDelta delta;
  if (!restored_.empty())
    delta.content = std::exchange(restored_, {});
  if (tool_state_ != ToolState::none)
    push_tool(id, delta);
  else
    push_marker(id, delta);
  return delta;
}

void OutputParser::push_marker(TokenId id, OutputDelta& delta) {
  const bool is_split = options_.reasoning == ReasoningFormat::split;
  const bool knows_thinking = markers_.think_begin && markers_.think_end;
  if (markers_.calls_begin && id == markers_.calls_begin) {
    emit(decoder_.flush(), delta);
    set_thinking(false);
    start_block(id);
  } else if (knows_thinking && id == markers_.think_end && is_thinking_) {
    if (!is_split)
      push_text(id, delta);
    emit(decoder_.flush(), delta);
    set_thinking(false);
    drops_leading_space_ = is_split;
  } else if (knows_thinking && id == markers_.think_begin && may_open_thinking_) {
    emit(decoder_.flush(), delta);
    if (!is_split)
      push_text(id, delta);
    set_thinking(true);
    drops_leading_space_ = is_split;
  } else {
    reasoning_tokens_ += is_thinking_ && !tokenizer_->is_special(id) ? 1 : 0;
    push_text(id, delta);
  }
}

bool OutputParser::is_hidden(TokenId id) const {
  return options_.skips_special_tokens && tokenizer_->is_special(id);
}

void OutputParser::push_text(TokenId id, OutputDelta& delta) {
  emit(decoder_.push(id), delta);
}

void OutputParser::set_thinking(bool is_thinking) {
  is_thinking_ = is_thinking;
  may_open_thinking_ = false;
  held_space_.clear();  // white space at the end of thinking is dropped
  drops_leading_space_ = false;
}

void OutputParser::emit(std::string text, OutputDelta& delta) {
  may_open_thinking_ = may_open_thinking_ && is_blank(text);
  if (options_.reasoning != ReasoningFormat::split) {
    delta.content += text;
    return;
  }
  if (drops_leading_space_) {
    const auto first =
        std::find_if_not(text.begin(), text.end(), [](char c) { return is_blank(c); });
    text.erase(text.begin(), first);
    if (text.empty())
      return;
    drops_leading_space_ = false;
  }
  if (!is_thinking_) {
    delta.content += text;
    return;
  }
  held_space_ += text;
  size_t end = held_space_.size();
  while (end > 0 && is_blank(held_space_[end - 1]))
    --end;
  delta.reasoning += held_space_.substr(0, end);
  held_space_.erase(0, end);
}

void OutputParser::start_block(TokenId id) {
  tool_state_ = ToolState::between_calls;
  has_block_call_ = false;
  tool_ids_.assign(1, id);
}

void OutputParser::push_tool(TokenId id, OutputDelta& delta) {
  if (id == markers_.calls_begin) {
    keep_as_text(delta);
    start_block(id);
  } else if (id == markers_.call_begin) {
    if (tool_state_ == ToolState::in_call)  // the call before had no end
      keep_as_text(delta);
    tool_state_ = ToolState::in_call;
    tool_ids_.push_back(id);
  } else if (id == markers_.calls_end) {
    // After a delivered call the marker is its closing; otherwise the block was only text.
    const bool is_closing = tool_state_ == ToolState::between_calls && has_block_call_;
    if (is_closing)
      tool_ids_.clear();
    else
      tool_ids_.push_back(id);
    keep_as_text(delta);
  } else if (is_hidden(id)) {
    return;
  } else {
    tool_ids_.push_back(id);
    if (tool_state_ == ToolState::between_calls && !is_blank(tokenizer_->bytes(id)))
      keep_as_text(delta);  // something that is no call
    else if (id == markers_.call_end)
      finish_call(delta);
  }
}

void OutputParser::finish_call(OutputDelta& delta) {
  tool_state_ = ToolState::between_calls;
  const auto begin = std::find(tool_ids_.begin(), tool_ids_.end(), *markers_.call_begin);
  const auto separator = std::find(begin, tool_ids_.end(), *markers_.separator);
  std::string head;
  std::string rest;
  for (auto it = begin + 1; it != tool_ids_.end() && *it != *markers_.call_end; ++it) {
    if (it != separator)
      (it < separator ? head : rest) += tokenizer_->bytes(*it);
  }
  std::optional<Call> call;
  if (separator != tool_ids_.end())
    call = parse_call(head, rest);
  if (!call) {
    keep_as_text(delta);
    tool_state_ = ToolState::between_calls;  // a good one may follow
    return;
  }
  tool_ids_.clear();
  has_block_call_ = true;
  delta.tool_calls.push_back(
      {num_tool_calls_++, std::string(call->name), std::string(call->arguments)});
}

/// Gives up on what is held: it leaves as text, markers included, through the decoder.
void OutputParser::keep_as_text(OutputDelta& delta) {
  tool_state_ = ToolState::none;
  for (const TokenId id : std::exchange(tool_ids_, {})) {
    if (is_hidden(id))  // a marker that decoding would leave out
      emit(decoder_.flush() + std::string(tokenizer_->bytes(id)), delta);
    else
      push_text(id, delta);
  }
}

OutputDelta OutputParser::finish() {
  OutputDelta delta;
  if (tool_state_ == ToolState::between_calls && has_block_call_)
    tool_ids_.clear();  // white space after a whole call
  if (tool_state_ != ToolState::none)
    keep_as_text(delta);
  emit(decoder_.flush(), delta);
  held_space_.clear();
  return delta;
}

}  // namespace hadal
