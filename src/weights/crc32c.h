// CRC-32C (Castagnoli, RFC 3720): finds damage, not tampering.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace hadal {

/// Of `bytes` after those whose checksum is `before`; 0 = none.
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t before = 0);

/// The table version, for machines without the instruction.
uint32_t crc32c_portable(std::span<const std::byte> bytes, uint32_t before = 0);

}  // namespace hadal
