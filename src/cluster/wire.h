// Little-endian bytes for small control messages. The reader takes hostile input: it stops at the
// first fault, and every length is compared with the bytes that are left and with a cap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hadal {

class WireWriter {
 public:
  void put_u8(uint8_t value) { put(value, 1); }

  void put_u16(uint16_t value) { put(value, 2); }

  void put_u32(uint32_t value) { put(value, 4); }

  void put_u64(uint64_t value) { put(value, 8); }

  /// Length in 4 bytes, then the bytes.
  void put_text(std::string_view text);
  void put_raw(std::span<const std::byte> bytes);

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  void put(uint64_t value, int32_t size);

  std::vector<std::byte> bytes_;
};

class WireReader {
 public:
  explicit WireReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  uint8_t get_u8() { return static_cast<uint8_t>(get(1)); }

  uint16_t get_u16() { return static_cast<uint16_t>(get(2)); }

  uint32_t get_u32() { return static_cast<uint32_t>(get(4)); }

  uint64_t get_u64() { return get(8); }

  /// Empty and not ok() when it is longer than `size_max` or than what is left.
  std::string get_text(size_t size_max);
  /// `size` bytes, zeros after a fault.
  std::span<const std::byte> get_raw(size_t size);

  bool ok() const { return is_ok_; }

  /// ok(), and nothing is left.
  bool is_done() const { return is_ok_ && bytes_.empty(); }

 private:
  uint64_t get(size_t size);

  std::span<const std::byte> bytes_;
  bool is_ok_ = true;
};

std::span<const std::byte> bytes_of(std::string_view text);

}  // namespace hadal
