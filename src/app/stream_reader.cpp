// One answer as its bytes arrive: head, chunks, lines, events.
#include <charconv>

#include <nlohmann/json.hpp>

#include "serve_load.h"

namespace hadal {

namespace {

using nlohmann::json;

constexpr size_t kHeadBytesMax = 64 << 10;

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return out;
}

/// The value of a head's field; `head` and `name` in lower case.
std::string_view field_of(std::string_view head, const std::string& name) {
  const size_t at = head.find("\r\n" + name + ":");
  if (at == std::string_view::npos)
    return {};
  std::string_view value = head.substr(at + name.size() + 3);
  value = value.substr(0, value.find("\r\n"));
  while (value.starts_with(' '))
    value.remove_prefix(1);
  return value;
}

bool has_text(const json& choice) {
  const auto filled = [](const json& object, const char* name) {
    const auto found = object.find(name);
    return found != object.end() && found->is_string() &&
           !found->get_ref<const std::string&>().empty();
  };
  if (filled(choice, "text"))
    return true;
  const auto delta = choice.find("delta");
  return delta != choice.end() && delta->is_object() &&
         (filled(*delta, "content") || filled(*delta, "reasoning_content"));
}

}  // namespace

bool StreamReader::read_head() {
  const size_t end = raw_.find("\r\n\r\n");
  if (end == std::string::npos) {
    if (raw_.size() > kHeadBytesMax) {
      outcome_.error = "the head of the answer does not end";
      is_over_ = true;
    }
    return false;
  }
  const std::string head = lower(std::string_view(raw_).substr(0, end + 2));
  const size_t space = head.find(' ');
  if (!head.starts_with("http/1.") || space == std::string::npos) {
    outcome_.error = "the answer is not HTTP";
    is_over_ = true;
    return false;
  }
  std::from_chars(head.data() + space + 1, head.data() + head.size(), outcome_.status);
  is_chunked_ = field_of(head, "transfer-encoding") == "chunked";
  const std::string_view length = field_of(head, "content-length");
  std::from_chars(length.data(), length.data() + length.size(), body_left_);
  const std::string_view gate = field_of(head, "x-hadal-gate");
  if (!gate.empty())  // as it was written
    outcome_.gate = raw_.substr(static_cast<size_t>(gate.data() - head.data()), gate.size());
  raw_.erase(0, end + 4);
  has_head_ = true;
  return true;
}

void StreamReader::take_body(double now_s) {
  while (!is_over_) {
    if (!is_chunked_) {
      text_ += raw_;
      body_left_ -= body_left_ >= 0 ? static_cast<int64_t>(raw_.size()) : 0;
      raw_.clear();
      take_lines(now_s);
      if (body_left_ == 0)
        finish(now_s);
      return;
    }
    if (chunk_left_ < 0) {
      const size_t line = raw_.find("\r\n");
      if (line == std::string::npos)
        return;
      const auto size = std::from_chars(raw_.data(), raw_.data() + line, chunk_left_, 16);
      if (size.ec != std::errc{} || chunk_left_ < 0) {
        outcome_.error = "a chunk has no size";
        is_over_ = true;
        return;
      }
      raw_.erase(0, line + 2);
      if (chunk_left_ == 0) {
        finish(now_s);
        return;
      }
    }
    const auto wanted = static_cast<size_t>(chunk_left_);
    if (raw_.size() < wanted + 2)
      return;
    text_.append(raw_, 0, wanted);
    raw_.erase(0, wanted + 2);
    chunk_left_ = -1;
    take_lines(now_s);
  }
}

void StreamReader::take_lines(double now_s) {
  size_t at = 0;
  for (size_t end = text_.find('\n'); end != std::string::npos; end = text_.find('\n', at)) {
    std::string_view line = std::string_view(text_).substr(at, end - at);
    at = end + 1;
    if (line.ends_with('\r'))
      line.remove_suffix(1);
    if (line.starts_with("data:")) {
      line.remove_prefix(5);
      while (line.starts_with(' '))
        line.remove_prefix(1);
      on_event(line, now_s);
    }
  }
  text_.erase(0, at);
}

void StreamReader::on_event(std::string_view data, double now_s) {
  if (data.starts_with("[DONE]")) {
    is_done_ = true;
    finish(now_s);
    return;
  }
  const json event = json::parse(data, nullptr, /*allow_exceptions=*/false);
  if (!event.is_object()) {
    outcome_.error = "an event is no JSON object";
    return;
  }
  if (event.contains("error") && !event["error"].is_null()) {
    outcome_.error = event["error"].dump(-1, ' ', false, json::error_handler_t::replace);
    return;
  }
  if (const auto usage = event.find("usage"); usage != event.end() && usage->is_object()) {
    for (const auto& [name, count] :
         {std::pair{"prompt_tokens", &outcome_.prompt_tokens},
          std::pair{"completion_tokens", &outcome_.completion_tokens}}) {
      const auto found = usage->find(name);
      if (found != usage->end() && found->is_number_integer())
        *count = found->get<int64_t>();
    }
  }
  const auto choices = event.find("choices");
  if (choices == event.end() || !choices->is_array() || choices->empty() ||
      !has_text(choices->front()))
    return;
  if (last_s_ > 0)
    outcome_.gaps_s.push_back(now_s - last_s_);
  else
    outcome_.first_token_s = now_s;
  last_s_ = now_s;
}

void StreamReader::finish(double now_s) {
  if (is_over_)
    return;
  is_over_ = true;
  outcome_.end_s = now_s;
  outcome_.is_complete = outcome_.status == 200 && is_done_ && outcome_.error.empty();
  if (!outcome_.is_complete && outcome_.error.empty())
    outcome_.error = outcome_.status == 200 ? "the stream ended early"
                                            : "status " + std::to_string(outcome_.status);
}

bool StreamReader::feed(std::string_view bytes, double now_s) {
  raw_ += bytes;
  if (has_head_ || read_head())
    take_body(now_s);
  return !is_over_;
}

void StreamReader::end(double now_s) {
  finish(now_s);
  outcome_.end_s = now_s;
}

}  // namespace hadal
