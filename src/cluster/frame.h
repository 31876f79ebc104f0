// Frames on the control port: a fixed head with a length, then that many bytes, never more than the
// reader allows at that moment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <hadal/base/clock.h>
#include <hadal/base/result.h>

namespace hadal {

inline constexpr size_t kFrameHeadBytes = 12;
/// Before a peer has proved the secret.
inline constexpr size_t kStrangerFrameBytesMax = 1024;
inline constexpr size_t kIdentityFrameBytesMax = 256 << 10;

/// Types below kFirstUserFrame.
enum class ControlFrame : uint16_t {
  challenge = 1,
  proof = 2,
  confirm = 3,
  refusal = 4,
  identity = 5,
  welcome = 6,
  start = 7,
  heartbeat = 8,
};

struct Frame {
  uint16_t type = 0;
  std::vector<std::byte> payload;
};

std::vector<std::byte> encode_frame(uint16_t type, std::span<const std::byte> payload);

/// Takes what the network gives and hands out whole frames. Its buffer never holds more than one
/// largest frame and what one feed() brought.
class FrameReader {
 public:
  explicit FrameReader(size_t payload_bytes_max) : payload_bytes_max_(payload_bytes_max) {}

  void feed(std::span<const std::byte> bytes);
  /// nullopt: more bytes are needed. data_loss: this is no frame, or one that is too long; the
  /// connection is of no use any more.
  Result<std::optional<Frame>> next();

 private:
  size_t payload_bytes_max_;
  std::vector<std::byte> buffer_;
  size_t begin_ = 0;  ///< of what was not handed out
};

/// One frame, read to its end and not further. unavailable: see read_exactly; data_loss as above.
Result<Frame> read_frame(int fd, size_t payload_bytes_max, TimePoint deadline);
Status write_frame(int fd,
                   ControlFrame type,
                   std::span<const std::byte> payload,
                   TimePoint deadline);

}  // namespace hadal
