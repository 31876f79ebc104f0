// Deadlines cancel the pending operation; the timer's handler looks at the expiry again, because it
// may have been queued before the timer was set anew.
#include "connection.h"

#include <cerrno>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <sys/socket.h>

namespace hadal::api {

namespace asio = boost::asio;

namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr TimePoint kNever = TimePoint::max();

}  // namespace

TimePoint after_seconds(double seconds) {
  return system_clock().now() +
         std::chrono::duration_cast<TimePoint::duration>(std::chrono::duration<double>(seconds));
}

Connection::Connection(Socket socket)
    : socket_(std::move(socket)), timer_(socket_.get_executor()), chunk_() {
  boost::system::error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket_.non_blocking(true, ignored);
}

void Connection::arm(TimePoint deadline) {
  has_timed_out_ = false;
  timer_.expires_at(deadline);
  timer_.async_wait([self = shared_from_this()](boost::system::error_code error) {
    if (!error && self->timer_.expiry() <= system_clock().now()) {
      self->has_timed_out_ = true;
      boost::system::error_code ignored;
      self->socket_.cancel(ignored);
    }
  });
}

void Connection::disarm() {
  timer_.expires_at(kNever);
}

asio::awaitable<IoStatus> Connection::read_more(TimePoint deadline) {
  arm(deadline);
  const auto [error, size] = co_await socket_.async_read_some(asio::buffer(chunk_), kAwait);
  disarm();
  if (error) {
    co_return has_timed_out_ ? IoStatus::timed_out : IoStatus::closed;
  }
  input_.append(chunk_.data(), size);
  co_return IoStatus::ok;
}

asio::awaitable<IoStatus> Connection::write(std::string_view data, double stall_s) {
  while (!data.empty()) {
    boost::system::error_code error;
    const size_t size = socket_.write_some(asio::buffer(data.data(), data.size()), error);
    data.remove_prefix(size);
    if (!error) {
      continue;
    }
    if (error != asio::error::would_block && error != asio::error::try_again) {
      co_return IoStatus::closed;
    }
    arm(after_seconds(stall_s));
    const auto [wait_error] = co_await socket_.async_wait(Socket::wait_write, kAwait);
    disarm();
    if (wait_error) {
      co_return has_timed_out_ ? IoStatus::timed_out : IoStatus::closed;
    }
  }
  co_return IoStatus::ok;
}

void Connection::watch_peer(std::function<void()> on_gone) {
  on_gone_ = std::move(on_gone);
  socket_.async_wait(Socket::wait_read,
                     [self = shared_from_this()](boost::system::error_code error) {
                       if (!error && self->on_gone_) {
                         self->on_readable();
                       }
                     });
}

void Connection::on_readable() {
  char byte = 0;
  const ssize_t size = ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (size > 0) {
    on_gone_ = {};
    return;
  }
  if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
    watch_peer(std::exchange(on_gone_, {}));
    return;
  }
  std::exchange(on_gone_, {})();
}

void Connection::stop_watching() {
  if (on_gone_) {
    on_gone_ = {};
    interrupt();
  }
}

void Connection::interrupt() {
  boost::system::error_code ignored;
  socket_.cancel(ignored);
}

void Connection::close() {
  on_gone_ = {};
  disarm();
  boost::system::error_code ignored;
  socket_.close(ignored);
}

asio::awaitable<void> Connection::linger(double seconds) {
  boost::system::error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  const TimePoint deadline = after_seconds(seconds);
  IoStatus status = IoStatus::ok;
  while (status == IoStatus::ok) {
    input_.clear();
    status = co_await read_more(deadline);
  }
}

}  // namespace hadal::api
