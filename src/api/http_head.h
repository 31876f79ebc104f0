// Strict HTTP/1.1 framing, without sockets: the head of a request, and the chunked body.
//
// Our own parser, because lenient ones are how requests are smuggled: one way to say a length, one
// Host, no folding, no chunk extensions, no trailers. Whatever is refused here closes the
// connection, so that following bytes are never taken for a request.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <hadal/api/server.h>

#include "api_error.h"

namespace hadal::api {

struct RequestHead {
  std::string method;
  std::string path;   ///< before '?'; begins with '/', percent escapes are kept
  std::string query;  ///< after '?'
  bool is_http_11 = true;
  bool keeps_alive = true;
  bool expects_continue = false;
  bool is_chunked = false;
  int64_t content_length = 0;
  /// Names in lower case.
  std::vector<std::pair<std::string, std::string>> fields;

  /// nullptr when the field is absent or given more than once.
  const std::string* find(std::string_view lower_name) const;
};

/// `raw` runs from the request line to the empty line that ends the head, both included.
ApiResult<RequestHead> parse_request_head(std::string_view raw, const HttpLimits& limits);

/// Decodes %XX; nullopt for a broken escape or an escaped NUL.
std::optional<std::string> percent_decode(std::string_view text);

/// A chunked body, fed as it arrives.
class ChunkedBody {
 public:
  explicit ChunkedBody(int64_t bytes_max) : bytes_max_(bytes_max) {}

  /// Takes bytes from the front of `input` until it is empty or the body ends.
  std::optional<ApiError> feed(std::string& input);

  bool is_done() const { return state_ == State::done; }

  std::string take() { return std::move(body_); }

 private:
  enum class State : uint8_t { size, data, data_end, trailer, done };

  std::optional<ApiError> read_size(std::string_view line);

  int64_t bytes_max_;
  State state_ = State::size;
  int64_t chunk_left_ = 0;
  int32_t num_chunks_ = 0;
  std::string body_;
};

}  // namespace hadal::api
