// Line by line; anything unusual is refused rather than interpreted.
#include "http_head.h"

#include <algorithm>
#include <charconv>

namespace hadal::api {

namespace {

constexpr size_t kTargetBytesMax = 8 << 10;
constexpr int32_t kChunksMax = 64 << 10;
constexpr size_t kChunkSizeDigitsMax = 8;

ApiError framing_error(int status, std::string message) {
  return ApiError{status, std::move(message), {}, "bad_http_request"};
}

bool is_token_char(char c) {
  constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         kMarks.find(c) != std::string_view::npos;
}

bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), is_token_char);
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return out;
}

std::string_view trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) {
    return {};
  }
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

std::optional<ApiError> parse_target(std::string_view target, RequestHead& head) {
  if (target.size() > kTargetBytesMax) {
    return framing_error(414, "the request target is too long");
  }
  const bool is_visible =
      std::all_of(target.begin(), target.end(), [](char c) { return c > 0x20 && c < 0x7F; });
  if (!target.starts_with('/') || !is_visible || target.find('#') != std::string_view::npos ||
      !percent_decode(target)) {
    return framing_error(400, "the request target must be a path of visible ASCII");
  }
  const size_t question = std::min(target.find('?'), target.size());
  head.path = target.substr(0, question);
  head.query = question < target.size() ? target.substr(question + 1) : std::string_view{};
  return std::nullopt;
}

std::optional<ApiError> parse_request_line(std::string_view line, RequestHead& head) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) {
    return framing_error(400, "the request line must be METHOD TARGET VERSION");
  }
  const std::string_view version = line.substr(last + 1);
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    return framing_error(505, "only HTTP/1.1 and HTTP/1.0 are spoken here");
  }
  head.is_http_11 = version == "HTTP/1.1";
  head.method = line.substr(0, first);
  const bool is_upper = std::all_of(
      head.method.begin(), head.method.end(), [](char c) { return c >= 'A' && c <= 'Z'; });
  if (head.method.empty() || head.method.size() > 16 || !is_upper) {
    return framing_error(400, "the method must be a word of capital letters");
  }
  return parse_target(line.substr(first + 1, last - first - 1), head);
}

std::optional<ApiError> parse_field(std::string_view line, RequestHead& head) {
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) {
    return framing_error(400, "a header line is not NAME: VALUE");
  }
  head.fields.emplace_back(lower(line.substr(0, colon)), trim(line.substr(colon + 1)));
  return std::nullopt;
}

size_t count_field(const RequestHead& head, std::string_view name) {
  return static_cast<size_t>(std::count_if(head.fields.begin(),
                                           head.fields.end(),
                                           [&](const auto& field) { return field.first == name; }));
}

std::optional<ApiError> check_host(const RequestHead& head) {
  const size_t count = count_field(head, "host");
  if (count > 1 || (count == 0 && head.is_http_11)) {
    return framing_error(400, "exactly one Host header is expected");
  }
  const std::string* host = head.find("host");
  const bool is_plain =
      host == nullptr || std::all_of(host->begin(), host->end(), [](char c) {
        return (is_token_char(c) && c != '#' && c != '%') || c == ':' || c == '[' || c == ']';
      });
  if (!is_plain) {
    return framing_error(400, "the Host header has characters that no host has");
  }
  return std::nullopt;
}

std::optional<ApiError> read_body_length(RequestHead& head, const HttpLimits& limits) {
  const size_t num_lengths = count_field(head, "content-length");
  const size_t num_encodings = count_field(head, "transfer-encoding");
  if (num_lengths + num_encodings > 1) {
    return framing_error(400, "the length of the body is given more than once");
  }
  if (num_encodings == 1) {
    if (!head.is_http_11) {
      return framing_error(400, "HTTP/1.0 has no Transfer-Encoding");
    }
    if (lower(*head.find("transfer-encoding")) != "chunked") {
      return framing_error(501, "the only Transfer-Encoding spoken here is chunked");
    }
    head.is_chunked = true;
  }
  if (num_lengths == 1) {
    const std::string& text = *head.find("content-length");
    const bool is_number = !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
      return c >= '0' && c <= '9';
    });
    if (!is_number) {
      return framing_error(400, "Content-Length must be a decimal number");
    }
    const auto result =
        std::from_chars(text.data(), text.data() + text.size(), head.content_length);
    if (result.ec != std::errc{} || head.content_length > limits.body_bytes_max) {
      return framing_error(413,
                           "the body may have " + std::to_string(limits.body_bytes_max) + " bytes");
    }
  }
  return std::nullopt;
}

std::optional<ApiError> read_options(RequestHead& head) {
  head.keeps_alive = head.is_http_11;
  for (const auto& [name, value] : head.fields) {
    if (name == "connection") {
      const std::string options = lower(value);
      head.keeps_alive = options.find("close") == std::string::npos &&
                         (head.keeps_alive || options.find("keep-alive") != std::string::npos);
    } else if (name == "expect") {
      if (lower(value) != "100-continue") {
        return framing_error(417, "the only expectation met here is 100-continue");
      }
      head.expects_continue = head.is_http_11;
    } else if (name == "content-encoding" && lower(value) != "identity") {
      return framing_error(415, "compressed bodies are not accepted");
    }
  }
  return std::nullopt;
}

bool has_control_character(std::string_view line) {
  return std::any_of(line.begin(), line.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return (byte < 0x20U && c != '\t') || byte == 0x7FU;
  });
}

}  // namespace

const std::string* RequestHead::find(std::string_view lower_name) const {
  const std::string* found = nullptr;
  for (const auto& [name, value] : fields) {
    if (name == lower_name) {
      if (found != nullptr) {
        return nullptr;
      }
      found = &value;
    }
  }
  return found;
}

ApiResult<RequestHead> parse_request_head(std::string_view raw, const HttpLimits& limits) {
  RequestHead head;
  bool is_first = true;
  while (!raw.starts_with("\r\n")) {
    const size_t end = raw.find("\r\n");
    if (end == std::string_view::npos) {
      return framing_error(400, "the head of the request does not end");
    }
    const std::string_view line = raw.substr(0, end);
    raw.remove_prefix(end + 2);
    if (has_control_character(line)) {
      return framing_error(400, "the head of the request has a control character");
    }
    std::optional<ApiError> error;
    if (is_first) {
      error = parse_request_line(line, head);
    } else if (std::ssize(head.fields) >= limits.header_fields_max) {
      error = framing_error(431, "too many header lines");
    } else {
      error = parse_field(line, head);
    }
    if (error) {
      return std::move(*error);
    }
    is_first = false;
  }
  std::optional<ApiError> error = check_host(head);
  error = error ? error : read_body_length(head, limits);
  error = error ? error : read_options(head);
  if (error) {
    return std::move(*error);
  }
  return head;
}

std::optional<std::string> percent_decode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (i + 2 >= text.size()) {
      return std::nullopt;
    }
    unsigned value = 0;
    const char* const begin = text.data() + i + 1;
    const auto result = std::from_chars(begin, begin + 2, value, 16);
    if (result.ec != std::errc{} || result.ptr != begin + 2 || value == 0) {
      return std::nullopt;
    }
    out += static_cast<char>(static_cast<unsigned char>(value));
    i += 2;
  }
  return out;
}

std::optional<ApiError> ChunkedBody::read_size(std::string_view line) {
  uint32_t size = 0;
  const auto result = std::from_chars(line.data(), line.data() + line.size(), size, 16);
  if (line.empty() || line.size() > kChunkSizeDigitsMax || result.ec != std::errc{} ||
      result.ptr != line.data() + line.size()) {
    return framing_error(400, "a chunk size must be a plain hexadecimal number");
  }
  if (++num_chunks_ > kChunksMax ||
      static_cast<int64_t>(body_.size()) + static_cast<int64_t>(size) > bytes_max_) {
    return framing_error(413,
                         "the body may have " + std::to_string(bytes_max_) + " bytes and " +
                             std::to_string(kChunksMax) + " chunks");
  }
  chunk_left_ = size;
  state_ = size == 0 ? State::trailer : State::data;
  return std::nullopt;
}

std::optional<ApiError> ChunkedBody::feed(std::string& input) {
  size_t at = 0;
  std::optional<ApiError> error;
  while (!error && state_ != State::done) {
    const std::string_view rest = std::string_view(input).substr(at);
    if (state_ == State::data) {
      const size_t taken = std::min(rest.size(), static_cast<size_t>(chunk_left_));
      body_.append(rest.substr(0, taken));
      at += taken;
      chunk_left_ -= static_cast<int64_t>(taken);
      if (chunk_left_ > 0) {
        break;
      }
      state_ = State::data_end;
    } else if (state_ == State::size) {
      const size_t end = rest.find("\r\n");
      if (end == std::string_view::npos) {
        const size_t digits = rest.find_first_not_of("0123456789abcdefABCDEF");
        const bool may_go_on =
            digits == std::string_view::npos || (rest[digits] == '\r' && digits + 1 == rest.size());
        if (!may_go_on || rest.size() > kChunkSizeDigitsMax + 1) {
          error = framing_error(400, "a chunk size must be a plain hexadecimal number");
        }
        break;
      }
      error = read_size(rest.substr(0, end));
      at += end + 2;
    } else {  // data_end and trailer: the line must be empty
      if (rest.size() < 2) {
        break;
      }
      if (!rest.starts_with("\r\n")) {
        error = framing_error(400, "a chunk has the wrong length, or the body has trailers");
      }
      at += 2;
      state_ = state_ == State::data_end ? State::size : State::done;
    }
  }
  input.erase(0, at);
  return error;
}

}  // namespace hadal::api
