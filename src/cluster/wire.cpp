// Bytes in and out, one at a time: no alignment, no host order.
#include "wire.h"

#include <array>

namespace hadal {

void WireWriter::put(uint64_t value, int32_t size) {
  std::array<std::byte, sizeof value> raw{};
  for (std::byte& byte : raw) {
    byte = static_cast<std::byte>(value & 0xFFU);
    value >>= 8U;
  }
  bytes_.insert(bytes_.end(), raw.begin(), raw.begin() + size);
}

void WireWriter::put_text(std::string_view text) {
  put_u32(static_cast<uint32_t>(text.size()));
  put_raw(bytes_of(text));
}

void WireWriter::put_raw(std::span<const std::byte> bytes) {
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
}

uint64_t WireReader::get(size_t size) {
  const auto raw = get_raw(size);
  uint64_t value = 0;
  for (size_t i = raw.size(); i-- > 0;) {
    value = (value << 8U) | static_cast<uint64_t>(raw[i]);
  }
  return value;
}

std::span<const std::byte> WireReader::get_raw(size_t size) {
  if (!is_ok_ || bytes_.size() < size) {
    is_ok_ = false;
    return {};
  }
  const auto raw = bytes_.first(size);
  bytes_ = bytes_.subspan(size);
  return raw;
}

std::string WireReader::get_text(size_t size_max) {
  const size_t size = get_u32();
  if (size > size_max) {
    is_ok_ = false;
  }
  const auto raw = get_raw(size);
  return {reinterpret_cast<const char*>(raw.data()), raw.size()};
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace hadal
