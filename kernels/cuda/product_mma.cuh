// Tensor-core operands, portable over sm_80 and later: m16n8k16 with float32 sums, weights as the
// 16 rows and tokens as the 8 columns.
//
// FP8 codes become f16 (or bf16 beside bf16 activations), which holds every one exactly, so the
// products are those of an FP8 unit and the sums are float32. The order of k inside a block of 128
// is free as long as both operands agree. It follows the weights: lane t = lane % 4 of a row takes
// 16-byte chunks 4 c + t of the block, so 16-byte loads feed fragments without shuffles, and step s
// takes four consecutive elements of them.
#pragma once

#include "product_device.cuh"

namespace hadal::cuda {

inline constexpr int32_t kSteps = 8;  ///< k16 steps of a block of 128

template <ProductMode kMode>
struct MmaTraits {
  static constexpr int32_t kWeightSize = kMode == ProductMode::bf16 ? 2 : 1;
  static constexpr int32_t kXSize = kMode == ProductMode::fp8 ? 1 : 2;
  static constexpr int32_t kWeightChunks = 2 * kWeightSize;  ///< of 16 bytes, a lane and block
  static constexpr int32_t kXChunks = 2 * kXSize;
};

/// Offset in bytes of chunk c of lane t in a block of weights.
__device__ inline int32_t weight_chunk(int32_t c, int32_t t) {
  return (c * 4 + t) * 16;
}

/// The same of activations: the elements that the weights' chunks hold.
template <ProductMode kMode>
__device__ inline int32_t x_chunk(int32_t c, int32_t t) {
  return kMode == ProductMode::w8a16 ? (c / 2 * 8 + t * 2 + c % 2) * 16 : (c * 4 + t) * 16;
}

__device__ inline uint32_t word_of(const uint4& chunk, int32_t i) {
  return i == 0 ? chunk.x : i == 1 ? chunk.y : i == 2 ? chunk.z : chunk.w;
}

/// Four E4M3 codes to two words of two f16.
__device__ inline void e4m3x4_to_f16(uint32_t codes, uint32_t& low, uint32_t& high) {
#if __CUDA_ARCH__ >= 890
  asm("{\n"
      ".reg .b16 a, b;\n"
      "mov.b32 {a, b}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, a;\n"
      "cvt.rn.f16x2.e4m3x2 %1, b;\n"
      "}\n"
      : "=r"(low), "=r"(high)
      : "r"(codes));
#else
  // Bits moved to f16's place weigh 2^-8 of what they should (the biases are 7 and 15).
  const uint32_t even = __byte_perm(codes, 0, 0x4140);  // codes 0 and 1, a 16-bit lane each
  const uint32_t odd = __byte_perm(codes, 0, 0x4342);
  const __half2 rebias = __float2half2_rn(256.0F);
  const uint32_t even_bits = (even & 0x00800080U) << 8 | (even & 0x007f007fU) << 7;
  const uint32_t odd_bits = (odd & 0x00800080U) << 8 | (odd & 0x007f007fU) << 7;
  const __half2 first = __hmul2(*reinterpret_cast<const __half2*>(&even_bits), rebias);
  const __half2 second = __hmul2(*reinterpret_cast<const __half2*>(&odd_bits), rebias);
  low = *reinterpret_cast<const uint32_t*>(&first);
  high = *reinterpret_cast<const uint32_t*>(&second);
#endif
}

/// Four E4M3 codes to two words of two bf16.
__device__ inline void e4m3x4_to_bf16(uint32_t codes, uint32_t& low, uint32_t& high) {
  // A code a 16-bit lane, its sign in all bits above it: moved up by 4, sign, exponent and fraction
  // are in bf16's places.
  uint32_t even;  // codes 0 and 1
  uint32_t odd;
  asm("prmt.b32 %0, %1, 0, 0x9180;" : "=r"(even) : "r"(codes));
  asm("prmt.b32 %0, %1, 0, 0xb3a2;" : "=r"(odd) : "r"(codes));
  const uint32_t even_bits = (even << 4) & 0x87f087f0U;
  const uint32_t odd_bits = (odd << 4) & 0x87f087f0U;
  const __nv_bfloat162 rebias = __float2bfloat162_rn(0x1p120F);  // biases 7 and 127
  const __nv_bfloat162 first =
      __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&even_bits), rebias);
  const __nv_bfloat162 second =
      __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&odd_bits), rebias);
  low = *reinterpret_cast<const uint32_t*>(&first);
  high = *reinterpret_cast<const uint32_t*>(&second);
}

/// The two words of step s from a row's weight chunks.
template <ProductMode kMode>
__device__ inline void weight_words(const uint4 (&chunks)[MmaTraits<kMode>::kWeightChunks],
                                    int32_t s,
                                    uint32_t& low,
                                    uint32_t& high) {
  if constexpr (kMode == ProductMode::bf16) {
    low = word_of(chunks[s / 2], s % 2 * 2);
    high = word_of(chunks[s / 2], s % 2 * 2 + 1);
  } else if constexpr (kMode == ProductMode::fp8) {
    e4m3x4_to_f16(word_of(chunks[s / 4], s % 4), low, high);
  } else {
    e4m3x4_to_bf16(word_of(chunks[s / 4], s % 4), low, high);
  }
}

/// The two words of step s from a token's chunks.
template <ProductMode kMode>
__device__ inline void x_words(const uint4 (&chunks)[MmaTraits<kMode>::kXChunks],
                               int32_t s,
                               uint32_t& low,
                               uint32_t& high) {
  if constexpr (kMode == ProductMode::fp8) {
    e4m3x4_to_f16(word_of(chunks[s / 4], s % 4), low, high);
  } else {
    // bf16: chunk s / 2 by the weights' order; w8a16: chunks 2 h, 2 h + 1 hold steps 4 h..4 h + 3.
    low = word_of(chunks[s / 2], s % 2 * 2);
    high = word_of(chunks[s / 2], s % 2 * 2 + 1);
  }
}

/// sum[rows g, g + 8][columns 2 t, 2 t + 1] += a * b.
template <ProductMode kMode>
__device__ inline void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kMode == ProductMode::fp8) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

/// The canonical way of a block into the sum of an element (product.h).
template <ProductMode kMode>
__device__ inline float add_block(float total, float block, float x_scale, float weight_scale) {
  if constexpr (kMode == ProductMode::bf16) {
    return __fadd_rn(total, block);
  } else if constexpr (kMode == ProductMode::fp8) {
    return fmaf(block, __fmul_rn(x_scale, weight_scale), total);
  } else {
    return fmaf(block, weight_scale, total);
  }
}

}  // namespace hadal::cuda
