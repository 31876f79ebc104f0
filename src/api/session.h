// One client connection's requests, in order: read, check, answer, keep alive.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/experimental/concurrent_channel.hpp>
#include <boost/asio/thread_pool.hpp>

#include "connection.h"
#include "generation_job.h"
#include "http_head.h"
#include "info_handlers.h"
#include "router.h"
#include "server_core.h"
#include "token_queue.h"

namespace hadal::api {

class Session : public std::enable_shared_from_this<Session> {
 public:
  /// `text_pool` tokenises long prompts. Both must outlive the session.
  Session(Connection::Socket socket,
          ServerCore& core,
          PortScope scope,
          boost::asio::thread_pool& text_pool);

  boost::asio::any_io_executor executor() { return connection_->executor(); }

  /// Until the connection closes.
  boost::asio::awaitable<void> run();

  /// On the strand. Idle connections close; others close after the answer in progress.
  void begin_drain();
  /// On the strand. The answer in progress ends with an error.
  void end_drain();
  /// On the strand. Looks again at what it waits for.
  void wake();
  /// On the strand. Closes at once; a request in progress is cancelled.
  void cut();

 private:
  using Signal = boost::asio::experimental::concurrent_channel<void(boost::system::error_code)>;

  /// Engine requests of one HTTP request; whatever still runs is cancelled when it goes.
  struct Flight;

  boost::asio::awaitable<std::optional<RequestHead>> read_head();
  boost::asio::awaitable<std::optional<std::string>> read_body(const RequestHead& head);
  boost::asio::awaitable<void> handle(const RequestHead& head);
  /// Checks that need no body; nullopt = go on.
  std::optional<HttpReply> check(const RequestHead& head, const Route*& route);
  /// Through the gates before a generating request is read; nullopt = `pass_` is set.
  std::optional<HttpReply> knock(const RequestHead& head);
  /// Answers without having read the body, if there is one.
  boost::asio::awaitable<void> answer_early(const RequestHead& head, HttpReply reply);
  HttpReply refuse(ApiError error) const;
  boost::asio::awaitable<void> dispatch(const Route& route,
                                        const RequestHead& head,
                                        const std::string& body);
  /// Runs `work` here, or on the text threads when the body it is about is long.
  /// (GCC 12 destroys temporaries of co_await's conditional operands and closures twice: callers
  /// name them.)
  boost::asio::awaitable<std::optional<ApiError>> run_text(size_t size,
                                                           const std::function<void()>& work);

  boost::asio::awaitable<void> generate(const Route& route,
                                        const RequestHead& head,
                                        const std::string& body);
  /// Runs the job; false when the engine failed under it.
  boost::asio::awaitable<bool> run_job(const RequestHead& head, GenerationJob& job);
  /// Moves events into the job until it has something to send or is done.
  boost::asio::awaitable<void> advance(Flight& flight, GenerationJob& job);
  boost::asio::awaitable<bool> send_stream(const RequestHead& head,
                                           GenerationJob& job,
                                           bool& has_head);
  boost::asio::awaitable<void> health_generate(const RequestHead& head);

  boost::asio::awaitable<void> send(const RequestHead& head, HttpReply reply);
  std::string reply_head(const RequestHead& head,
                         int status,
                         std::string_view content_type,
                         std::string_view framing) const;
  HttpReply preflight(const RequestHead& head, const Route& route) const;
  void append_cors(const RequestHead& head, std::string& out) const;
  void append_traffic(std::string& out) const;
  void log_access(const RequestHead& head, int status, Gate gate = Gate::none) const;
  void watch_peer();

  std::shared_ptr<Connection> connection_;
  ServerCore& core_;
  PortScope scope_;
  boost::asio::thread_pool& text_pool_;
  std::shared_ptr<Signal> signal_;
  std::string request_id_;
  std::string usage_note_;  // for the access log
  std::shared_ptr<Tenant> tenant_;
  std::unique_ptr<Pass> pass_;  // of the generating request in progress
  TimePoint began_{};
  int64_t reserved_body_bytes_ = 0;
  bool is_idle_ = true;
  bool closes_ = false;       // after the answer in progress
  bool must_linger_ = false;  // unread input may still come
  bool is_peer_gone_ = false;
  bool is_drain_over_ = false;
};

}  // namespace hadal::api
