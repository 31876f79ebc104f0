// The thread polls the socket and a bell. A sender writes at once when nothing is queued, so the
// thread's wake-up is not on a plan's way.
#include "link.h"

#include <array>
#include <cerrno>
#include <cstring>

#include <hadal/cluster/node_group.h>

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

namespace hadal {
namespace {

constexpr size_t kOutboxBytesMax = size_t{64} << 20;
constexpr size_t kReadBytes = 256 << 10;

std::string seconds_text(double seconds) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%g s", seconds);
  return text.data();
}

}  // namespace

Link::Link(FileDescriptor socket, const LinkTimes& times, Events events)
    : socket_(std::move(socket)),
      bell_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      times_(times),
      events_(std::move(events)),
      reader_(static_cast<size_t>(kGroupFrameBytesMax)) {
  HADAL_CHECK(bell_.is_open(), "eventfd failed");
  thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
}

Link::~Link() {
  thread_.request_stop();
  wake();
}

void Link::wake() const {
  const uint64_t one = 1;
  (void)!write(bell_.get(), &one, sizeof one);
}

bool Link::send(uint16_t type, std::span<const std::byte> payload) {
  if (is_lost_.load()) {
    return false;
  }
  const std::vector<std::byte> bytes = encode_frame(type, payload);
  bool needs_thread = false;
  {
    const std::lock_guard lock(mutex_);
    if (outbox_.size() + bytes.size() > kOutboxBytesMax) {
      send_failure_ = "it does not read what it is sent";
    } else {
      outbox_.insert(outbox_.end(), bytes.begin(), bytes.end());
    }
    needs_thread = !flush_locked() || !outbox_.empty() || !send_failure_.empty();
  }
  if (needs_thread) {
    wake();
  }
  return true;
}

/// False after an error, which is then in send_failure_.
bool Link::flush_locked() {
  size_t sent = 0;
  while (sent < outbox_.size()) {
    const ssize_t n =
        ::send(socket_.get(), outbox_.data() + sent, outbox_.size() - sent, MSG_NOSIGNAL);
    if (n >= 0) {
      sent += static_cast<size_t>(n);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      break;
    } else if (errno != EINTR) {
      send_failure_ = std::string("the connection broke: ") +
                      std::strerror(errno);  // NOLINT(concurrency-mt-unsafe)
      outbox_.clear();
      return false;
    }
  }
  outbox_.erase(outbox_.begin(), outbox_.begin() + static_cast<ptrdiff_t>(sent));
  return true;
}

std::string Link::flush() {
  const std::lock_guard lock(mutex_);
  if (send_failure_.empty()) {
    flush_locked();
  }
  return send_failure_;
}

std::string Link::read_some() {
  std::vector<std::byte> bytes(kReadBytes);
  const ssize_t got = recv(socket_.get(), bytes.data(), bytes.size(), 0);
  if (got == 0) {
    return "it closed the connection";
  }
  if (got < 0) {
    const bool is_passing = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    return is_passing ? std::string()
                      : std::string("the connection broke: ") +
                            std::strerror(errno);  // NOLINT(concurrency-mt-unsafe)
  }
  reader_.feed(std::span(bytes).first(static_cast<size_t>(got)));
  while (true) {
    auto frame = reader_.next();
    if (!frame) {
      return frame.error().message;
    }
    if (!frame.value()) {
      return {};
    }
    if (frame.value()->type != static_cast<uint16_t>(ControlFrame::heartbeat)) {
      events_.on_frame(std::move(*frame.value()));
    }
  }
}

void Link::run(const std::stop_token& stop) {
  TimePoint heard = system_clock().now();
  TimePoint turned = heard;
  TimePoint next_beat = heard;
  std::string why;
  while (!stop.stop_requested() && why.empty()) {
    const TimePoint now = system_clock().now();
    if (now - turned > std::chrono::seconds(1)) {
      heard += now - turned;  // it was this process that stood still
    }
    turned = now;
    if (now >= next_beat) {
      send(static_cast<uint16_t>(ControlFrame::heartbeat), {});
      next_beat = now + (seconds_from_now(times_.heartbeat_s) - system_clock().now());
    }
    if (std::chrono::duration<double>(now - heard).count() > times_.silence_s) {
      why = "nothing heard for " + seconds_text(times_.silence_s);
      break;
    }
    if (why = flush(); !why.empty()) {
      break;
    }
    bool has_rest = false;
    {
      const std::lock_guard lock(mutex_);
      has_rest = !outbox_.empty();
    }
    std::array<pollfd, 2> entries = {
        {{socket_.get(), static_cast<int16_t>(POLLIN | (has_rest ? POLLOUT : 0)), 0},
         {bell_.get(), POLLIN, 0}}};
    poll(entries.data(), entries.size(), 100);
    if (entries[1].revents != 0) {
      uint64_t count = 0;
      (void)!read(bell_.get(), &count, sizeof count);
    }
    if (entries[0].revents != 0) {
      why = read_some();
      heard = system_clock().now();
    }
  }
  is_lost_.store(true);
  shutdown(socket_.get(), SHUT_RDWR);
  if (!why.empty() && !is_closing_.load()) {
    events_.on_lost(why);
  }
}

void Link::close(TimePoint deadline) {
  is_closing_.store(true);
  while (!is_lost_.load() && system_clock().now() < deadline) {
    {
      const std::lock_guard lock(mutex_);
      if (outbox_.empty() || !send_failure_.empty()) {
        break;
      }
    }
    wake();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  // The peer still reads what the kernel holds; a reset must not overtake it.
  shutdown(socket_.get(), SHUT_WR);
  thread_.request_stop();
  wake();
}

}  // namespace hadal
