// Narrow formats against their definition: every code is decoded by arithmetic written out here,
// and every rounding is compared with the nearest neighbour found by search.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include <hadal/tensor/dtype.h>

#include "catch.h"

namespace hadal {

namespace {

/// The value of a code with `exponent_bits` and `mantissa_bits`, no special codes.
double plain_value(uint32_t code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint32_t sign = code >> (exponent_bits + mantissa_bits);
  const int exponent = static_cast<int>(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double mantissa = static_cast<double>(code & ((1U << mantissa_bits) - 1U));
  const double unit = std::ldexp(1.0, -mantissa_bits);
  const double magnitude = exponent == 0 ? std::ldexp(mantissa * unit, 1 - bias)
                                         : std::ldexp(1.0 + mantissa * unit, exponent - bias);
  return sign != 0 ? -magnitude : magnitude;
}

/// Finite codes of one sign, ascending, and the code that a value rounds to.
uint32_t nearest_even(const std::vector<double>& ascending, double magnitude) {
  const auto above = std::lower_bound(ascending.begin(), ascending.end(), magnitude);
  if (above == ascending.begin()) {
    return 0;
  }
  if (above == ascending.end()) {
    return static_cast<uint32_t>(ascending.size() - 1);
  }
  const auto hi = static_cast<uint32_t>(above - ascending.begin());
  const double up = ascending[hi] - magnitude;
  const double down = magnitude - ascending[hi - 1];
  if (up == down) {
    return hi % 2 == 0 ? hi : hi - 1;
  }
  return up < down ? hi : hi - 1;
}

}  // namespace

TEST_CASE("E4M3: every code has its value and rounds back to itself", "[tensor]") {
  for (uint32_t code = 0; code < 256; ++code) {
    const float value = e4m3_to_f32(static_cast<uint8_t>(code));
    if ((code & 0x7fU) == 0x7fU) {
      CHECK(std::isnan(value));
      continue;
    }
    CHECK(static_cast<double>(value) == plain_value(code, 4, 3));
    CHECK(f32_to_e4m3(value) == code);
  }
  CHECK(f32_to_e4m3(std::numeric_limits<float>::quiet_NaN()) == 0x7f);
}

TEST_CASE("E4M3: rounding takes the nearest code, ties to even, and saturates", "[tensor]") {
  std::vector<double> codes;
  for (uint32_t code = 0; code < 0x7fU; ++code) {
    codes.push_back(plain_value(code, 4, 3));
  }
  std::mt19937 random(7);
  std::uniform_real_distribution<double> exponent(-12.0, 9.5);
  for (int i = 0; i < 20000; ++i) {
    const auto value = static_cast<float>(std::exp2(exponent(random)));
    CHECK(f32_to_e4m3(value) == nearest_even(codes, static_cast<double>(value)));
    CHECK(f32_to_e4m3(-value) == (nearest_even(codes, static_cast<double>(value)) | 0x80U));
  }
  for (size_t i = 0; i + 1 < codes.size(); ++i) {
    const auto middle = static_cast<float>((codes[i] + codes[i + 1]) / 2.0);
    CHECK(f32_to_e4m3(middle) == (i % 2 == 0 ? i : i + 1));
  }
  CHECK(f32_to_e4m3(1e30F) == 0x7e);
  CHECK(f32_to_e4m3(-std::numeric_limits<float>::infinity()) == 0xfe);
}

TEST_CASE("F16: every finite code round-trips and random values round to nearest", "[tensor]") {
  std::vector<double> codes;
  for (uint32_t code = 0; code < 0x7c00U; ++code) {
    codes.push_back(plain_value(code, 5, 10));
    const float value = f16_to_f32(static_cast<uint16_t>(code));
    REQUIRE(static_cast<double>(value) == codes.back());
    REQUIRE(f32_to_f16(value) == code);
    REQUIRE(f32_to_f16(-value) == (code | 0x8000U));
  }
  CHECK(std::isinf(f16_to_f32(0x7c00)));
  CHECK(std::isnan(f16_to_f32(0x7e00)));
  CHECK(f32_to_f16(65520.0F) == 0x7c00);
  std::mt19937 random(8);
  std::uniform_real_distribution<double> exponent(-27.0, 15.9);
  for (int i = 0; i < 20000; ++i) {
    const auto value = static_cast<float>(std::exp2(exponent(random)));
    REQUIRE(f32_to_f16(value) == nearest_even(codes, static_cast<double>(value)));
  }
}

TEST_CASE("BF16: rounding is to nearest even and NaN stays NaN", "[tensor]") {
  CHECK(f32_to_bf16(1.0F) == 0x3f80);
  CHECK(f32_to_bf16(1.00390625F) == 0x3f80);  // half way: to even
  CHECK(f32_to_bf16(1.01171875F) == 0x3f82);
  CHECK(f32_to_bf16(1.00390637F) == 0x3f81);
  CHECK(std::isinf(bf16_to_f32(f32_to_bf16(3.4e38F))));
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(std::numeric_limits<float>::quiet_NaN()))));
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001U)))));
  for (uint32_t code = 0; code < 0x7f80U; ++code) {
    REQUIRE(f32_to_bf16(bf16_to_f32(static_cast<uint16_t>(code))) == code);
  }
}

}  // namespace hadal
