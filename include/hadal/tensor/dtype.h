// Element types of tensors and the conversions between them and float32.
//
// Conversions are bit-exact: to a narrower type they round to nearest even. E4M3 is the "fn"
// variant (no infinity, 0x7f and 0xff are NaN, largest 448); values beyond 448 saturate, as in the
// reference.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace hadal {

enum class DType : uint8_t { f32, bf16, f16, f8_e4m3, i64, i32, u8 };

/// Bytes of one element.
constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::f8_e4m3:
    case DType::u8:
      return 1;
  }
  return 0;
}

/// "f32", "bf16", "f16", "f8_e4m3", "i64", "i32", "u8".
std::string_view to_string(DType dtype);

inline float bf16_to_f32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

/// Round to nearest even; NaN stays NaN.
inline uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) {
    return static_cast<uint16_t>((bits >> 16) | 0x40U);
  }
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);

float e4m3_to_f32(uint8_t bits);
/// Round to nearest even, saturating at +-448; NaN gives 0x7f.
uint8_t f32_to_e4m3(float value);

}  // namespace hadal
