// Conversions between float32 and the narrow formats: bit-exact, round to nearest even.
#include <bit>
#include <cmath>
#include <cstdint>

#include <hadal/tensor/dtype.h>

namespace hadal {

namespace {

/// Rounds `value` >> `shift` to nearest even.
uint32_t shift_round_even(uint32_t value, uint32_t shift) {
  const uint32_t half = 1U << (shift - 1U);
  const uint32_t rest = value & ((1U << shift) - 1U);
  uint32_t result = value >> shift;
  if (rest > half || (rest == half && (result & 1U) != 0)) {
    ++result;
  }
  return result;
}

}  // namespace

std::string_view to_string(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::f8_e4m3:
      return "f8_e4m3";
    case DType::i64:
      return "i64";
    case DType::i32:
      return "i32";
    case DType::u8:
      return "u8";
  }
  return "?";
}

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = (static_cast<uint32_t>(bits) & 0x8000U) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fU;
  const uint32_t mantissa = bits & 0x3ffU;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 31) {
    return std::bit_cast<float>(sign | 0x7f800000U | (mantissa << 13));
  }
  return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (mantissa << 13));
}

uint16_t f32_to_f16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) {
    return static_cast<uint16_t>(sign | 0x7e00U);
  }
  if (magnitude >= 0x477ff000U) {  // 65520 and above round to infinity
    return static_cast<uint16_t>(sign | 0x7c00U);
  }
  if (magnitude < 0x38800000U) {  // below 2^-14: a subnormal, or zero
    const uint32_t exponent = magnitude >> 23;
    if (exponent < 102U) {
      return static_cast<uint16_t>(sign);
    }
    const uint32_t mantissa = (magnitude & 0x7fffffU) | 0x800000U;
    return static_cast<uint16_t>(sign | shift_round_even(mantissa, 126U - exponent));
  }
  return static_cast<uint16_t>(sign | shift_round_even(magnitude - 0x38000000U, 13));
}

float e4m3_to_f32(uint8_t bits) {
  const uint32_t sign = (static_cast<uint32_t>(bits) & 0x80U) << 24;
  const uint32_t exponent = (bits >> 3) & 0xfU;
  const uint32_t mantissa = bits & 7U;
  if ((bits & 0x7fU) == 0x7fU) {
    return std::bit_cast<float>(sign | 0x7fc00000U);
  }
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-9F;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 120U) << 23) | (mantissa << 20));
}

uint8_t f32_to_e4m3(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 24) & 0x80U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) {
    return 0x7f;
  }
  if (magnitude >= 0x43e00000U) {  // 448 and above saturate
    return static_cast<uint8_t>(sign | 0x7eU);
  }
  if (magnitude < 0x3c800000U) {  // below 2^-6: a subnormal in steps of 2^-9, or zero
    const uint32_t exponent = magnitude >> 23;
    if (exponent < 117U) {
      return static_cast<uint8_t>(sign);
    }
    const uint32_t mantissa = (magnitude & 0x7fffffU) | 0x800000U;
    return static_cast<uint8_t>(sign | shift_round_even(mantissa, 141U - exponent));
  }
  return static_cast<uint8_t>(sign | shift_round_even(magnitude - 0x3c000000U, 20));
}

}  // namespace hadal
