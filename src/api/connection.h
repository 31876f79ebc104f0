// One TCP connection: buffered reads and whole writes with deadlines, and the watch for a peer that
// leaves. Everything runs on the connection's strand.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>

#include <hadal/base/clock.h>

namespace hadal::api {

enum class IoStatus : uint8_t { ok, closed, timed_out };

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = boost::asio::ip::tcp::socket;

  /// `socket` belongs to a strand.
  explicit Connection(Socket socket);

  boost::asio::any_io_executor executor() { return socket_.get_executor(); }

  /// Received and not yet consumed.
  std::string& input() { return input_; }

  /// Appends to input() whatever arrives next.
  boost::asio::awaitable<IoStatus> read_more(TimePoint deadline);
  /// Sends all of `data`; gives up when the peer takes nothing for `stall_s`.
  boost::asio::awaitable<IoStatus> write(std::string_view data, double stall_s);

  /// Calls `on_gone` once if the peer closes or resets. Bytes that arrive (a pipelined request) end
  /// the watch silently. No reads while it runs.
  void watch_peer(std::function<void()> on_gone);
  void stop_watching();

  /// Ends a pending read: it returns closed.
  void interrupt();
  void close();
  /// After an early answer: no more output, then what still arrives is read and dropped for a
  /// while, so that the peer sees the answer instead of a reset.
  boost::asio::awaitable<void> linger(double seconds);

 private:
  void arm(TimePoint deadline);
  void disarm();
  void on_readable();

  Socket socket_;
  boost::asio::steady_timer timer_;
  std::string input_;
  std::array<char, 16 << 10> chunk_;
  std::function<void()> on_gone_;
  bool has_timed_out_ = false;
};

TimePoint after_seconds(double seconds);

}  // namespace hadal::api
