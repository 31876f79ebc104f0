// The HTTP half of a session: heads, bodies, checks, replies. Generation is in
// session_generate.cpp.
#include "session.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <hadal/base/log.h>

namespace hadal::api {

namespace asio = boost::asio;

namespace {

constexpr std::string_view kHeadEnd = "\r\n\r\n";
constexpr double kLingerSeconds = 2;

std::string_view reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 414:
      return "URI Too Long";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Status";
  }
}

/// A request id or header list from a client that is safe to send back and to log.
bool is_plain(std::string_view text, size_t size_max) {
  return !text.empty() && text.size() <= size_max &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '-' || c == '_' || c == '.' || c == ',' || c == ' ';
         });
}

asio::awaitable<void> run_work(const std::function<void()>& work) {
  work();
  co_return;
}

}  // namespace

Session::Session(Connection::Socket socket,
                 ServerCore& core,
                 PortScope scope,
                 asio::thread_pool& text_pool)
    : connection_(std::make_shared<Connection>(std::move(socket))),
      core_(core),
      scope_(scope),
      text_pool_(text_pool),
      signal_(std::make_shared<Signal>(connection_->executor(), 1)) {}

void Session::wake() {
  signal_->try_send(boost::system::error_code{});
}

void Session::begin_drain() {
  closes_ = true;
  if (is_idle_) {
    connection_->interrupt();
  }
}

void Session::end_drain() {
  begin_drain();
  is_drain_over_ = true;
  wake();
}

void Session::cut() {
  end_drain();
  is_peer_gone_ = true;
  connection_->close();
}

asio::awaitable<void> Session::run() {
  while (!closes_) {
    const std::optional<RequestHead> head = co_await read_head();
    if (!head) {
      break;
    }
    closes_ = closes_ || !head->keeps_alive;
    co_await handle(*head);
    core_.release_body_bytes(std::exchange(reserved_body_bytes_, 0));
  }
  core_.release_body_bytes(std::exchange(reserved_body_bytes_, 0));
  if (must_linger_ && !is_peer_gone_) {
    co_await connection_->linger(kLingerSeconds);
  }
  connection_->close();
}

asio::awaitable<std::optional<RequestHead>> Session::read_head() {
  const HttpLimits& limits = core_.config().limits;
  const auto bytes_max = static_cast<size_t>(limits.header_bytes_max);
  std::string& input = connection_->input();
  std::optional<ApiError> error;
  TimePoint deadline = after_seconds(limits.idle_timeout_s);
  bool has_begun = false;
  while (!error) {
    while (!has_begun && input.starts_with("\r\n")) {
      input.erase(0, 2);
    }
    if (!input.empty() && !has_begun) {
      has_begun = true;
      deadline = after_seconds(limits.header_timeout_s);
      began_ = system_clock().now();
      if (input[0] != '\r' && (input[0] < 'A' || input[0] > 'Z')) {
        error = ApiError{400, "this is not an HTTP request", {}, "bad_http_request"};
        break;
      }
    }
    const size_t end = input.find(kHeadEnd);
    if (end != std::string::npos && end + kHeadEnd.size() <= bytes_max) {
      ApiResult<RequestHead> head =
          parse_request_head(std::string_view(input).substr(0, end + kHeadEnd.size()), limits);
      if (head) {
        input.erase(0, end + kHeadEnd.size());
        co_return std::move(head).value();
      }
      error = head.error();
    } else if (input.size() > bytes_max) {
      const bool is_line = input.find("\r\n") > bytes_max;
      error = ApiError{is_line ? 414 : 431, "the head of the request is too long", {}, {}};
    } else {
      is_idle_ = !has_begun;
      const IoStatus status = co_await connection_->read_more(deadline);
      is_idle_ = false;
      if (status == IoStatus::closed || (status == IoStatus::timed_out && !has_begun)) {
        co_return std::nullopt;
      }
      if (status == IoStatus::timed_out) {
        error = ApiError{408, "the head of the request did not arrive in time", {}, {}};
      }
    }
  }
  closes_ = true;
  must_linger_ = true;
  request_id_ = core_.ids().next_hex();
  const RequestHead no_head;
  HttpReply reply = error_reply(*error);
  co_await send(no_head, std::move(reply));
  co_return std::nullopt;
}

asio::awaitable<std::optional<std::string>> Session::read_body(const RequestHead& head) {
  const HttpLimits& limits = core_.config().limits;
  const int64_t most = head.is_chunked ? limits.body_bytes_max : head.content_length;
  std::optional<ApiError> error;
  if (most > 0 && !core_.reserve_body_bytes(most)) {
    error = ApiError{503, "too many large requests at once", {}, "overloaded"};
  } else {
    reserved_body_bytes_ = most;
  }
  if (!error && head.expects_continue) {
    co_await connection_->write("HTTP/1.1 100 Continue\r\n\r\n", limits.write_timeout_s);
  }
  std::string& input = connection_->input();
  const TimePoint deadline = after_seconds(limits.body_timeout_s);
  ChunkedBody chunked(limits.body_bytes_max);
  while (!error) {
    if (head.is_chunked) {
      error = chunked.feed(input);
      if (!error && chunked.is_done()) {
        co_return chunked.take();
      }
    } else if (static_cast<int64_t>(input.size()) >= head.content_length) {
      std::string body = input.substr(0, static_cast<size_t>(head.content_length));
      input.erase(0, body.size());
      co_return body;
    }
    if (error) {
      break;
    }
    const IoStatus status = co_await connection_->read_more(deadline);
    if (status == IoStatus::closed) {
      closes_ = true;
      co_return std::nullopt;
    }
    if (status == IoStatus::timed_out) {
      error = ApiError{408, "the body did not arrive in time", {}, {}};
    }
  }
  closes_ = true;
  must_linger_ = true;
  HttpReply reply = error_reply(*error);
  co_await send(head, std::move(reply));
  co_return std::nullopt;
}

std::optional<HttpReply> Session::check(const RequestHead& head, const Route*& route) const {
  route = find_route(head.path, scope_);
  if (route == nullptr) {
    return error_reply({404, "no such path here", {}, "not_found"});
  }
  if (head.method == "OPTIONS") {
    return preflight(head, *route);
  }
  if (!allows_method(*route, head.method)) {
    HttpReply reply = error_reply({405, "this path does not take this method", {}, {}});
    reply.fields.emplace_back("Allow", route->methods);
    return reply;
  }
  if (route->needs_key && !is_authorized(head.find("authorization"), core_.config().api_key)) {
    return error_reply({401, "the API key is missing or wrong", {}, "invalid_api_key"});
  }
  const bool generates = route->id == RouteId::chat_completions ||
                         route->id == RouteId::completions || route->id == RouteId::health_generate;
  if (generates && core_.failure()) {
    return error_reply({503, "the engine has failed", {}, "engine_error"});
  }
  if (generates && core_.state() == ServerState::draining) {
    return error_reply({503, "the server is shutting down", {}, "draining"});
  }
  return std::nullopt;
}

asio::awaitable<void> Session::handle(const RequestHead& head) {
  const std::string* given_id = head.find("x-request-id");
  request_id_ =
      given_id != nullptr && is_plain(*given_id, 128) ? *given_id : core_.ids().next_hex();
  usage_note_.clear();
  const Route* route = nullptr;
  if (std::optional<HttpReply> early = check(head, route)) {
    if (head.is_chunked || head.content_length > 0) {
      closes_ = true;  // the body is not read, so what follows cannot be told apart from it
      must_linger_ = true;
    }
    co_await send(head, std::move(*early));
    co_return;
  }
  const std::optional<std::string> body = co_await read_body(head);
  if (body) {
    co_await dispatch(*route, head, *body);
  }
}

HttpReply Session::preflight(const RequestHead& head, const Route& route) const {
  HttpReply reply;
  reply.status = 204;
  reply.fields.emplace_back("Allow", route.methods);
  if (head.find("access-control-request-method") != nullptr) {
    const std::string* wanted = head.find("access-control-request-headers");
    const bool is_usable = wanted != nullptr && is_plain(*wanted, 1024);
    reply.fields.emplace_back("Access-Control-Allow-Methods", route.methods);
    reply.fields.emplace_back("Access-Control-Allow-Headers",
                              is_usable ? *wanted : "Authorization, Content-Type");
    reply.fields.emplace_back("Access-Control-Max-Age", "600");
  }
  return reply;
}

void Session::append_cors(const RequestHead& head, std::string& out) const {
  const std::vector<std::string>& allowed = core_.config().cors_origins;
  const std::string* origin = head.find("origin");
  if (std::find(allowed.begin(), allowed.end(), "*") != allowed.end()) {
    out += "Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: x-request-id\r\n";
  } else if (origin != nullptr &&
             std::find(allowed.begin(), allowed.end(), *origin) != allowed.end()) {
    out += "Access-Control-Allow-Origin: " + *origin +
           "\r\nVary: Origin\r\nAccess-Control-Expose-Headers: x-request-id\r\n";
  }
}

std::string Session::reply_head(const RequestHead& head,
                                int status,
                                std::string_view content_type,
                                std::string_view framing) const {
  std::string out = "HTTP/1.1 " + std::to_string(status) + " ";
  out += reason_phrase(status);
  out += "\r\n";
  if (!content_type.empty()) {
    out += "Content-Type: ";
    out += content_type;
    out += "\r\n";
  }
  out += framing;
  out += "x-request-id: " + request_id_ + "\r\n";
  append_cors(head, out);
  out += closes_ ? "Connection: close\r\n" : "Connection: keep-alive\r\n";
  return out;
}

asio::awaitable<void> Session::send(const RequestHead& head, HttpReply reply) {
  const bool has_body = reply.status != 204;
  std::string out =
      reply_head(head,
                 reply.status,
                 has_body ? reply.content_type : std::string_view{},
                 has_body ? "Content-Length: " + std::to_string(reply.body.size()) + "\r\n" : "");
  for (const auto& [name, value] : reply.fields) {
    out += name + ": " + value + "\r\n";
  }
  out += "\r\n";
  if (has_body && head.method != "HEAD") {
    out += reply.body;
  }
  log_access(head, reply.status);
  const IoStatus status = co_await connection_->write(out, core_.config().limits.write_timeout_s);
  if (status != IoStatus::ok) {
    closes_ = true;
    must_linger_ = false;
  }
}

void Session::log_access(const RequestHead& head, int status) const {
  if (!core_.config().logs_access || scope_ == PortScope::admin) {
    return;
  }
  const std::chrono::duration<double, std::milli> took = system_clock().now() - began_;
  std::array<char, 32> milliseconds{};
  std::snprintf(milliseconds.data(), milliseconds.size(), "%.1f", took.count());
  // The path is visible ASCII by the head's rules; it is cut so that a line stays a line.
  log_info("http " + head.method + " " + head.path.substr(0, 128) + " " + std::to_string(status) +
           " " + milliseconds.data() + " ms id=" + request_id_ + usage_note_);
}

asio::awaitable<void> Session::dispatch(const Route& route,
                                        const RequestHead& head,
                                        const std::string& body) {
  switch (route.id) {
    case RouteId::chat_completions:
    case RouteId::completions:
      co_await generate(route, head, body);
      co_return;
    case RouteId::health_generate:
      co_await health_generate(head);
      co_return;
    default:
      break;
  }
  HttpReply reply;
  const std::function<void()> work = [&] { reply = answer_info(core_, route.id, head, body); };
  if (const std::optional<ApiError> error = co_await run_text(body.size(), work)) {
    reply = error_reply(*error);
  }
  co_await send(head, std::move(reply));
}

asio::awaitable<std::optional<ApiError>> Session::run_text(size_t size,
                                                           const std::function<void()>& work) {
  constexpr size_t kInlineBytesMax = 16 << 10;
  if (size <= kInlineBytesMax) {
    work();
    co_return std::nullopt;
  }
  if (!core_.reserve_text_job()) {
    co_return ApiError{503, "too many long prompts at once", {}, "overloaded"};
  }
  co_await asio::co_spawn(text_pool_.get_executor(), run_work(work), asio::use_awaitable);
  core_.release_text_job();
  co_return std::nullopt;
}

}  // namespace hadal::api
