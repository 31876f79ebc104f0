// The HTTP half of a session: heads, bodies, checks, replies. Generation is in
// session_generate.cpp.
#include "session.h"

#include <algorithm>
#include <array>
#include <cmath>
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
constexpr double kShortIdleSeconds = 15;  ///< of idle connections, under pressure
constexpr int64_t kSmallBodyBytes = 64 << 10;

bool is_generating(RouteId route) {
  return route == RouteId::chat_completions || route == RouteId::completions;
}

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
  const bool is_short = core_.traffic().level() >= 1;
  TimePoint deadline = after_seconds(is_short ? std::min(kShortIdleSeconds, limits.idle_timeout_s)
                                              : limits.idle_timeout_s);
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
  HttpReply reply = refuse(*error);
  co_await send(no_head, std::move(reply));
  co_return std::nullopt;
}

asio::awaitable<std::optional<std::string>> Session::read_body(const RequestHead& head) {
  const HttpLimits& limits = core_.config().limits;
  const int64_t most = head.is_chunked ? limits.body_bytes_max : head.content_length;
  std::optional<ApiError> error;
  if (most > 0 && !core_.reserve_body_bytes(most)) {
    error = ApiError{503, "too many large requests at once", {}, "overloaded", Gate::bytes};
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
  HttpReply reply = refuse(*error);
  co_await send(head, std::move(reply));
  co_return std::nullopt;
}

std::optional<HttpReply> Session::check(const RequestHead& head, const Route*& route) {
  route = find_route(head.path, scope_);
  if (route == nullptr) {
    return refuse({404, "no such path here", {}, "not_found"});
  }
  if (head.method == "OPTIONS") {
    return preflight(head, *route);
  }
  if (!allows_method(*route, head.method)) {
    HttpReply reply = refuse({405, "this path does not take this method", {}, {}});
    reply.fields.emplace_back("Allow", route->methods);
    return reply;
  }
  tenant_ = route->needs_key ? core_.traffic().identify(head.find("authorization")) : nullptr;
  if (route->needs_key && tenant_ == nullptr) {
    return refuse({401, "the API key is missing or wrong", {}, "invalid_api_key"});
  }
  const bool needs_engine = is_generating(route->id) || route->id == RouteId::health_generate;
  if (needs_engine && core_.failure()) {
    return refuse({503, "the engine has failed", {}, "engine_error", Gate::breaker});
  }
  if (needs_engine && core_.state() == ServerState::draining) {
    return refuse({503, "the server is shutting down", {}, "draining", Gate::drain});
  }
  if (route->id == RouteId::health_generate && core_.traffic().is_open()) {
    return refuse({503, "the engine does not answer", {}, "engine_unavailable", Gate::breaker});
  }
  return std::nullopt;
}

HttpReply Session::refuse(ApiError error) const {
  core_.traffic().complete(error);
  return error_reply(error);
}

std::optional<HttpReply> Session::knock(const RequestHead& head) {
  TrafficControl& traffic = core_.traffic();
  const int64_t body_bytes = head.is_chunked ? 0 : head.content_length;
  ApiResult<Knock> knock = traffic.read_knock(
      tenant_, head.find("x-hadal-class"), head.find("x-request-timeout-ms"), body_bytes);
  if (!knock) {
    return refuse(knock.error());
  }
  ApiResult<std::unique_ptr<Pass>> pass = traffic.admit(std::move(knock).value());
  if (!pass) {
    return refuse(pass.error());
  }
  pass_ = std::move(pass).value();
  return std::nullopt;
}

asio::awaitable<void> Session::answer_early(const RequestHead& head, HttpReply reply) {
  if (head.is_chunked || head.content_length > 0) {
    closes_ = true;  // the body is not read, so what follows cannot be told apart from it
    must_linger_ = true;
  }
  co_await send(head, std::move(reply));
}

asio::awaitable<void> Session::handle(const RequestHead& head) {
  const std::string* given_id = head.find("x-request-id");
  request_id_ =
      given_id != nullptr && is_plain(*given_id, 128) ? *given_id : core_.ids().next_hex();
  usage_note_.clear();
  pass_.reset();
  closes_ = closes_ || core_.traffic().level() >= 4;
  const Route* route = nullptr;
  std::optional<HttpReply> refusal = check(head, route);
  const bool generates = !refusal && is_generating(route->id);
  // A small body is read before it is refused, so that its connection can be kept.
  const bool knocks_first = head.is_chunked || head.content_length > kSmallBodyBytes;
  if (generates && knocks_first) {
    refusal = knock(head);
  }
  if (refusal) {
    co_await answer_early(head, std::move(*refusal));
    co_return;
  }
  const std::optional<std::string> body = co_await read_body(head);
  if (!body) {
    pass_.reset();
    co_return;
  }
  if (generates && !knocks_first) {
    refusal = knock(head);
  }
  if (refusal) {
    co_await send(head, std::move(*refusal));
  } else {
    co_await dispatch(*route, head, *body);
  }
  pass_.reset();
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

void Session::append_traffic(std::string& out) const {
  if (tenant_ == nullptr) {
    return;
  }
  if (const int32_t level = core_.traffic().level(); level > 0) {
    out += "x-degraded: " + std::to_string(level) + "\r\n";
  }
  if (const BreakerState state = core_.traffic().breaker_state(); state != BreakerState::closed) {
    out += "x-hadal-breaker: " + std::string(breaker_state_name(state)) + "\r\n";
  }
  const AllowanceView view = tenant_->allowance(system_clock().now());
  const auto append = [&](std::string_view what, double limit, double left, double reset_s) {
    if (limit <= 0) {
      return;
    }
    std::array<char, 192> text{};
    std::snprintf(text.data(),
                  text.size(),
                  "x-ratelimit-limit-%s: %.0f\r\nx-ratelimit-remaining-%s: %.0f\r\n"
                  "x-ratelimit-reset-%s: %.3fs\r\n",
                  what.data(),
                  limit,
                  what.data(),
                  std::floor(left),
                  what.data(),
                  reset_s);
    out += text.data();
  };
  append("requests", view.limits.requests_per_minute, view.requests_left, view.requests_reset_s);
  append("tokens", view.limits.tokens_per_minute, view.tokens_left, view.tokens_reset_s);
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
  append_traffic(out);
  out += closes_ ? "Connection: close\r\n" : "Connection: keep-alive\r\n";
  return out;
}

asio::awaitable<void> Session::send(const RequestHead& head, HttpReply reply) {
  pass_.reset();  // before the client knows, so that its next request finds the place free
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
  if (reply.gate != Gate::none && scope_ == PortScope::serving) {
    core_.traffic().count_refusal(reply.gate);
  }
  log_access(head, reply.status, reply.gate);
  const IoStatus status = co_await connection_->write(out, core_.config().limits.write_timeout_s);
  if (status != IoStatus::ok) {
    closes_ = true;
    must_linger_ = false;
  }
}

void Session::log_access(const RequestHead& head, int status, Gate gate) const {
  if (!core_.config().logs_access || scope_ == PortScope::admin) {
    return;
  }
  const std::chrono::duration<double, std::milli> took = system_clock().now() - began_;
  std::array<char, 32> milliseconds{};
  std::snprintf(milliseconds.data(), milliseconds.size(), "%.1f", took.count());
  // The path is visible ASCII by the head's rules; it is cut so that a line stays a line.
  log_info("http " + head.method + " " + head.path.substr(0, 128) + " " + std::to_string(status) +
           " " + milliseconds.data() + " ms id=" + request_id_ + usage_note_ +
           (gate == Gate::none ? "" : " gate=" + std::string(gate_name(gate))));
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
    reply = refuse(*error);
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
    co_return ApiError{503, "too many long prompts at once", {}, "overloaded", Gate::text};
  }
  co_await asio::co_spawn(text_pool_.get_executor(), run_work(work), asio::use_awaitable);
  core_.release_text_job();
  co_return std::nullopt;
}

}  // namespace hadal::api
