// The head: magic, type, a zero, length. Everything is checked before a byte of the payload is
// kept.
#include "frame.h"

#include <array>

#include <hadal/net/tcp.h>

#include "wire.h"

namespace hadal {
namespace {

constexpr uint32_t kMagic = 0x4C444148;  // "HADL"

struct Head {
  uint16_t type = 0;
  uint32_t size = 0;
};

Result<Head> read_head(std::span<const std::byte> bytes, size_t payload_bytes_max) {
  WireReader in(bytes);
  const uint32_t magic = in.get_u32();
  Head head;
  head.type = in.get_u16();
  const uint16_t zero = in.get_u16();
  head.size = in.get_u32();
  if (magic != kMagic || zero != 0 || head.type == 0) {
    return Error{ErrorCode::data_loss, "not a hadal frame"};
  }
  if (head.size > payload_bytes_max) {
    return Error{ErrorCode::data_loss,
                 "a frame of " + std::to_string(head.size) + " bytes, expected at most " +
                     std::to_string(payload_bytes_max)};
  }
  return head;
}

}  // namespace

std::vector<std::byte> encode_frame(uint16_t type, std::span<const std::byte> payload) {
  WireWriter head;
  head.put_u32(kMagic);
  head.put_u16(type);
  head.put_u16(0);
  head.put_u32(static_cast<uint32_t>(payload.size()));
  std::vector<std::byte> bytes;
  bytes.reserve(kFrameHeadBytes + payload.size());
  bytes.insert(bytes.end(), head.bytes().begin(), head.bytes().end());
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  return bytes;
}

void FrameReader::feed(std::span<const std::byte> bytes) {
  if (begin_ == buffer_.size()) {
    buffer_.clear();
    begin_ = 0;
  } else if (begin_ > buffer_.size() / 2) {
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(begin_));
    begin_ = 0;
  }
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
}

Result<std::optional<Frame>> FrameReader::next() {
  const auto rest = std::span<const std::byte>(buffer_).subspan(begin_);
  if (rest.size() < kFrameHeadBytes) {
    return std::optional<Frame>();
  }
  const auto head = read_head(rest.first(kFrameHeadBytes), payload_bytes_max_);
  if (!head) {
    return head.error();
  }
  const size_t size = head.value().size;
  if (rest.size() < kFrameHeadBytes + size) {
    return std::optional<Frame>();
  }
  const auto payload = rest.subspan(kFrameHeadBytes, size);
  begin_ += kFrameHeadBytes + size;
  return std::optional<Frame>(
      Frame{head.value().type, std::vector<std::byte>(payload.begin(), payload.end())});
}

Result<Frame> read_frame(int fd, size_t payload_bytes_max, TimePoint deadline) {
  std::array<std::byte, kFrameHeadBytes> raw{};
  HADAL_RETURN_IF_ERROR(read_exactly(fd, raw, deadline));
  const auto head = read_head(raw, payload_bytes_max);
  if (!head) {
    return head.error();
  }
  Frame frame;
  frame.type = head.value().type;
  frame.payload.resize(head.value().size);
  HADAL_RETURN_IF_ERROR(read_exactly(fd, frame.payload, deadline));
  return frame;
}

Status write_frame(int fd,
                   ControlFrame type,
                   std::span<const std::byte> payload,
                   TimePoint deadline) {
  return write_all(fd, encode_frame(static_cast<uint16_t>(type), payload), deadline);
}

}  // namespace hadal
