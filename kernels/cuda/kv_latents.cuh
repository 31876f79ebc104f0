// FP8 latents of the cache (ops/kv_record.h) on the device: their writer, and the way from codes to
// bf16 tiles in shared memory. A scale is a power of two, so a code times its scale is exact in
// bf16: the tensor core kernels compute what they would from bf16 pages of these values.
#pragma once

#include <cstdint>

#include <hadal/ops/kv_record.h>

#include "attention_plan.h"
#include "device_math.cuh"

namespace hadal::cuda {

/// The records of the tensor core kernels.
inline constexpr KvRecord kFp8Record{DType::f8_e4m3, kLatents, kRope};
inline constexpr auto kFp8RecordBytes = static_cast<int32_t>(kFp8Record.size_bytes());
inline constexpr auto kFp8ScalesAt = static_cast<int32_t>(kFp8Record.scales_at());
static_assert(kFp8RecordBytes % 16 == 0 && kFp8Record.rope_at() % 16 == 0);

/// Sixteen codes and the scale of their group; zeros when there is no token.
struct CodeChunk {
  uint4 codes;
  float scale;
};

/// Chunk `chunk` of a record's 32.
__device__ inline CodeChunk load_codes(const std::byte* record, int32_t chunk, bool valid) {
  CodeChunk result{make_uint4(0, 0, 0, 0), 0.0F};
  if (valid) {
    result.codes = *reinterpret_cast<const uint4*>(record + chunk * 16);
    result.scale = *reinterpret_cast<const float*>(record + kFp8ScalesAt + chunk / 8 * 4);
  }
  return result;
}

/// The codes in the high bytes of `pair`'s halves, as bf16: a code's sign, exponent and mantissa
/// placed in a bf16 are 2^-120 of its value, subnormal codes included. `factor` = 2^120 * scale.
__device__ inline uint32_t bf16x2_of_codes(uint32_t pair, __nv_bfloat162 factor) {
  const uint32_t bits = (pair & 0x80008000U) | ((pair >> 4) & 0x07f007f0U);
  const __nv_bfloat162 value = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&bits), factor);
  return *reinterpret_cast<const uint32_t*>(&value);
}

/// Four codes as four bf16.
__device__ inline uint2 bf16_of_codes(uint32_t codes, __nv_bfloat162 factor) {
  return make_uint2(bf16x2_of_codes(__byte_perm(codes, 0, 0x1404), factor),
                    bf16x2_of_codes(__byte_perm(codes, 0, 0x3424), factor));
}

/// Writes the chunk as two 16-byte chunks, `chunk` and its successor, of a swizzled bf16 tile row.
/// Lanes that share a tile row want different halves at a time, so that no two meet in a bank.
__device__ inline void store_codes(
    const CodeChunk& x, std::byte* tile, int32_t row, int32_t chunk, int32_t row_bytes, bool swap) {
  const __nv_bfloat162 factor = __float2bfloat162_rn(x.scale * 0x1p120F);
  const uint2 a = bf16_of_codes(x.codes.x, factor);
  const uint2 b = bf16_of_codes(x.codes.y, factor);
  const uint2 c = bf16_of_codes(x.codes.z, factor);
  const uint2 d = bf16_of_codes(x.codes.w, factor);
  const uint4 low = make_uint4(a.x, a.y, b.x, b.y);
  const uint4 high = make_uint4(c.x, c.y, d.x, d.y);
  const int32_t first = swap ? 1 : 0;
  *reinterpret_cast<uint4*>(tile + swizzled(row, chunk + first, row_bytes)) = swap ? high : low;
  const int32_t second = swizzled(row, chunk + 1 - first, row_bytes);
  *reinterpret_cast<uint4*>(tile + second) = swap ? low : high;
}

/// Stores one group of FP8 latents of a record, one warp: lane l gives values[j] = latent
/// column + 4 l + j (column a multiple of 128); those at or past `latents` count as zero and are
/// not stored.
__device__ inline void store_latent_group(std::byte* record,
                                          int64_t scales_at,
                                          int64_t column,
                                          int64_t latents,
                                          const float (&values)[4]) {
  const int64_t mine = column + threadIdx.x % 32 * 4;
  uint32_t amax = 0;
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    if (mine + j < latents) {
      amax = max(amax, __float_as_uint(values[j]) & 0x7fffffffU);
    }
  }
  const uint32_t scale = kv_scale_bits(__reduce_max_sync(kFullMask, amax));
  const float inverse = __uint_as_float(kv_scale_inverse_bits(scale));
  if (mine == column) {
    *reinterpret_cast<uint32_t*>(record + scales_at + column / kQuantGroup * 4) = scale;
  }
  uint32_t codes[4];
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    codes[j] = f32_to_e4m3_device(values[j] * inverse);
  }
  std::byte* to = record + mine;
  if (mine + 4 <= latents && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(to) = codes[0] | codes[1] << 8 | codes[2] << 16 | codes[3] << 24;
    return;
  }
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    if (mine + j < latents) {
      to[j] = static_cast<std::byte>(codes[j]);
    }
  }
}

}  // namespace hadal::cuda
