// Thinking and answer have a matcher each: with the parts separated, no stop string can span them.
#include "text_stream.h"

namespace hadal::api {

void TextDelta::append(TextDelta other) {
  reasoning += other.reasoning;
  content += other.content;
  for (ParsedToolCall& call : other.tool_calls) {
    tool_calls.push_back(std::move(call));
  }
}

TextStream::TextStream(const Tokenizer& tokenizer,
                       std::span<const TokenId> prompt,
                       const Options& options)
    : parser_(tokenizer, prompt, options.parser),
      reasoning_stops_(options.stops, {options.keeps_stop}),
      content_stops_(options.stops, {options.keeps_stop}),
      has_single_tool_call_(options.has_single_tool_call) {}

TextDelta TextStream::accept(OutputDelta delta) {
  TextDelta out;
  if (is_ended_) {
    return out;
  }
  if (!delta.reasoning.empty()) {
    StopMatcher::Step step = reasoning_stops_.push(delta.reasoning);
    out.reasoning = std::move(step.text);
    matched_stop_ = step.matched;
  }
  if (!matched_stop_ && !delta.content.empty()) {
    if (!reasoning_stops_.matched()) {
      out.reasoning += reasoning_stops_.flush();
    }
    StopMatcher::Step step = content_stops_.push(delta.content);
    out.content = std::move(step.text);
    matched_stop_ = step.matched;
  }
  if (matched_stop_) {
    is_ended_ = true;
    return out;
  }
  for (ParsedToolCall& call : delta.tool_calls) {
    out.tool_calls.push_back(std::move(call));
    ++num_tool_calls_;
    if (has_single_tool_call_) {
      out.content += content_stops_.flush();
      is_ended_ = true;
      break;
    }
  }
  return out;
}

TextDelta TextStream::push(TokenId id) {
  return accept(parser_.push(id));
}

TextDelta TextStream::finish() {
  TextDelta out = accept(parser_.finish());
  if (!is_ended_) {
    out.reasoning += reasoning_stops_.flush();
    out.content += content_stops_.flush();
    is_ended_ = true;
  }
  return out;
}

}  // namespace hadal::api
