// Device code that kernels share: conversions that are bit-exact with tensor/dtype.h, reductions in
// a fixed order, and loads and stores in an op's formats.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "device_views.h"

namespace hadal::cuda {

inline constexpr float kE4m3Max = 448.0F;
inline constexpr float kAmaxFloor = 1e-4F;  ///< least amax of a quantisation group, as on the CPU
inline constexpr uint32_t kFullMask = 0xffffffffU;

__device__ inline float bf16_bits_to_f32(uint32_t bits) {
  return __uint_as_float(bits << 16);
}

__device__ inline uint16_t f32_to_bf16_bits(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

/// Two values as one word, the first in the low half.
__device__ inline uint32_t f32_to_bf16x2(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

/// Any code but NaN, exact, in integer arithmetic and one multiplication: works on every
/// architecture.
__device__ inline float e4m3_to_f32_device(uint32_t code) {
  const uint32_t magnitude = (code & 0x7fU) << 20;
  const float value = __uint_as_float(magnitude) * 0x1p120F;  // rebias 7 to 127; exact
  return __uint_as_float(__float_as_uint(value) | ((code & 0x80U) << 24));
}

/// Round to nearest even, saturating.
__device__ inline uint8_t f32_to_e4m3_device(float value) {
  return static_cast<uint8_t>(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3));
}

/// Butterfly sum: every lane gets the same bits, whatever the other warps do.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int32_t offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kFullMask, value, offset);
  }
  return value;
}

__device__ inline float warp_max(float value) {
#pragma unroll
  for (int32_t offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kFullMask, value, offset));
  }
  return value;
}

/// Sum over a block of kThreads threads, warps in ascending order; all threads get it. `scratch`
/// holds kThreads / 32 floats in shared memory and may be reused after the next barrier.
template <int32_t kThreads>
__device__ inline float block_sum(float value, float* scratch) {
  constexpr int32_t kWarps = kThreads / 32;
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) {
    scratch[threadIdx.x / 32] = value;
  }
  __syncthreads();
  float total = 0.0F;
#pragma unroll
  for (int32_t warp = 0; warp < kWarps; ++warp) {
    total += scratch[warp];
  }
  __syncthreads();
  return total;
}

__device__ inline float load_plain(const ConstPlainMatrix& matrix, int64_t row, int64_t column) {
  const int64_t at = row * matrix.stride + column;
  return matrix.is_bf16 ? bf16_bits_to_f32(reinterpret_cast<const uint16_t*>(matrix.data)[at])
                        : reinterpret_cast<const float*>(matrix.data)[at];
}

__device__ inline void store_plain(const PlainMatrix& matrix,
                                   int64_t row,
                                   int64_t column,
                                   float value) {
  const int64_t at = row * matrix.stride + column;
  if (matrix.is_bf16) {
    reinterpret_cast<uint16_t*>(matrix.data)[at] = f32_to_bf16_bits(value);
  } else {
    reinterpret_cast<float*>(matrix.data)[at] = value;
  }
}

/// Any format.
__device__ inline float load_act(const ConstActMatrix& x, int64_t row, int64_t column) {
  const int64_t at = row * x.stride + column;
  switch (x.format) {
    case ActFormat::bf16:
      return bf16_bits_to_f32(reinterpret_cast<const uint16_t*>(x.data)[at]);
    case ActFormat::e4m3:
      return e4m3_to_f32_device(reinterpret_cast<const uint8_t*>(x.data)[at]) *
             x.scales[row * x.scale_row + column / kQuantGroup * x.scale_group];
    default:
      return reinterpret_cast<const float*>(x.data)[at];
  }
}

/// One value; for e4m3, `scale` is its group's.
__device__ inline void store_act(
    const ActMatrix& x, int64_t row, int64_t column, float value, float scale) {
  const int64_t at = row * x.stride + column;
  switch (x.format) {
    case ActFormat::bf16:
      reinterpret_cast<uint16_t*>(x.data)[at] = f32_to_bf16_bits(value);
      return;
    case ActFormat::e4m3:
      reinterpret_cast<uint8_t*>(x.data)[at] = f32_to_e4m3_device(__fdiv_rn(value, scale));
      return;
    default:
      reinterpret_cast<float*>(x.data)[at] = value;
  }
}

__device__ inline void store_scale(const ActMatrix& x, int64_t row, int64_t group, float scale) {
  x.scales[row * x.scale_row + group * x.scale_group] = scale;
}

__device__ inline float scale_of_amax(float amax) {
  return __fdiv_rn(fmaxf(amax, kAmaxFloor), kE4m3Max);
}

/// Stores 128 columns from `column` (fewer at the end of a row of `columns`), one warp: lane i
/// gives values[j] = column + 32 j + i. Reduces the group's amax for e4m3.
__device__ inline void store_group(
    const ActMatrix& x, int64_t row, int64_t column, int64_t columns, const float (&values)[4]) {
  const int32_t lane = threadIdx.x % 32;
  float scale = 1.0F;
  if (x.format == ActFormat::e4m3) {
    float amax = 0.0F;
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      if (column + 32 * j + lane < columns) {
        amax = fmaxf(amax, fabsf(values[j]));
      }
    }
    scale = scale_of_amax(warp_max(amax));
    if (lane == 0) {
      store_scale(x, row, column / kQuantGroup, scale);
    }
  }
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    if (column + 32 * j + lane < columns) {
      store_act(x, row, column + 32 * j + lane, values[j], scale);
    }
  }
}

/// Columns [column, column + 4) of a row; what lies beyond `columns` stays as it is.
__device__ inline void load_quad(
    const ConstPlainMatrix& matrix, int64_t row, int64_t column, int64_t columns, float (&out)[4]) {
  const int64_t at = row * matrix.stride + column;
  if (matrix.is_bf16) {
    const uint16_t* from = reinterpret_cast<const uint16_t*>(matrix.data) + at;
    if (column + 4 <= columns && reinterpret_cast<uintptr_t>(from) % 8 == 0) {
      const uint2 words = *reinterpret_cast<const uint2*>(from);
      out[0] = __uint_as_float(words.x << 16);
      out[1] = __uint_as_float(words.x & 0xffff0000U);
      out[2] = __uint_as_float(words.y << 16);
      out[3] = __uint_as_float(words.y & 0xffff0000U);
      return;
    }
  } else {
    const float* from = reinterpret_cast<const float*>(matrix.data) + at;
    if (column + 4 <= columns && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
      const float4 four = *reinterpret_cast<const float4*>(from);
      out[0] = four.x;
      out[1] = four.y;
      out[2] = four.z;
      out[3] = four.w;
      return;
    }
  }
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    if (column + j < columns) {
      out[j] = load_plain(matrix, row, column + j);
    }
  }
}

__device__ inline void store_quad(const PlainMatrix& matrix,
                                  int64_t row,
                                  int64_t column,
                                  int64_t columns,
                                  const float (&values)[4]) {
  const int64_t at = row * matrix.stride + column;
  if (matrix.is_bf16) {
    uint16_t* to = reinterpret_cast<uint16_t*>(matrix.data) + at;
    if (column + 4 <= columns && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
      *reinterpret_cast<uint2*>(to) =
          make_uint2(f32_to_bf16x2(values[0], values[1]), f32_to_bf16x2(values[2], values[3]));
      return;
    }
  } else {
    float* to = reinterpret_cast<float*>(matrix.data) + at;
    if (column + 4 <= columns && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
      *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
      return;
    }
  }
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    if (column + j < columns) {
      store_plain(matrix, row, column + j, values[j]);
    }
  }
}

/// Stores 128 columns from `column` (fewer at the end of a row of `columns`), one warp: lane i
/// gives columns column + 4 i + j. Reduces the group's amax for e4m3.
__device__ inline void store_group_quads(
    const ActMatrix& x, int64_t row, int64_t column, int64_t columns, const float (&values)[4]) {
  const int64_t mine = column + threadIdx.x % 32 * 4;
  if (x.format != ActFormat::e4m3) {
    store_quad({x.data, x.stride, x.format == ActFormat::bf16}, row, mine, columns, values);
    return;
  }
  float amax = 0.0F;
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    amax = mine + j < columns ? fmaxf(amax, fabsf(values[j])) : amax;
  }
  const float scale = scale_of_amax(warp_max(amax));
  if (mine == column) {
    store_scale(x, row, column / kQuantGroup, scale);
  }
  uint8_t codes[4];
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    codes[j] = f32_to_e4m3_device(__fdiv_rn(values[j], scale));
  }
  uint8_t* to = reinterpret_cast<uint8_t*>(x.data) + row * x.stride + mine;
  if (mine + 4 <= columns && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(to) =
        codes[0] | codes[1] << 8 | codes[2] << 16 | static_cast<uint32_t>(codes[3]) << 24;
    return;
  }
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    if (mine + j < columns) {
      to[j] = codes[j];
    }
  }
}

}  // namespace hadal::cuda
