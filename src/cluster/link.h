// One authenticated connection: frames out from any thread without waiting, frames in on a thread
// of its own, and heartbeats both ways, so that silence is noticed at both ends.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <hadal/net/tcp.h>

#include "frame.h"

namespace hadal {

struct LinkTimes {
  double heartbeat_s = 1;
  double silence_s = 4;
};

class Link {
 public:
  struct Events {
    std::function<void(Frame)> on_frame;
    std::function<void(const std::string& why)> on_lost;  ///< at most once, and last
  };

  /// Both events are called from the link's thread.
  Link(FileDescriptor socket, const LinkTimes& times, Events events);
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  /// Joins the thread; not from an event.
  ~Link();

  /// Any thread; never blocks. False when the link is lost, or when the peer has read so little
  /// that its queue is full: the link is then lost too.
  bool send(uint16_t type, std::span<const std::byte> payload);
  /// Waits for what is queued to be taken by the kernel, at most until `deadline`, and ends the
  /// link without an event.
  void close(TimePoint deadline);

 private:
  void run(const std::stop_token& stop);
  /// Empty while the link is good.
  std::string read_some();
  std::string flush();
  bool flush_locked();
  void wake() const;

  FileDescriptor socket_;
  FileDescriptor bell_;
  LinkTimes times_;
  Events events_;
  FrameReader reader_;
  std::atomic<bool> is_lost_{false};
  std::atomic<bool> is_closing_{false};
  std::mutex mutex_;
  std::vector<std::byte> outbox_;  ///< under mutex_: what the kernel has not taken yet
  std::string send_failure_;       ///< under mutex_
  std::jthread thread_;
};

}  // namespace hadal
