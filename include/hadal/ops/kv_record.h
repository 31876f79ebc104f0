// How one token of one layer lies in a KV page: its normalised latents, then its roped key
// features.
//
//   f32, bf16   [latents + rope] numbers
//   f8_e4m3     [latents] codes, padded to 4 bytes; [ceil(latents / 128)] float32 scales; [rope]
//   bf16
//
// So DeepSeek's 512 latents and 64 rope features take 656 bytes in FP8, a multiple of the 16 that
// asynchronous copies want. The rope part stays BF16: it has outliers. A scale is the least power
// of two with which its group of 128 fits E4M3, so code times scale is exact in BF16 and in
// float32, and every backend reads the same numbers.
#pragma once

#include <cstdint>

#include <hadal/tensor/activation.h>
#include <hadal/tensor/tensor.h>

namespace hadal {

/// Sizes and offsets in bytes. In an f8_e4m3 pool an element of the innermost dimension is a byte.
struct KvRecord {
  DType dtype = DType::bf16;  ///< f32, bf16 or f8_e4m3
  int64_t latents = 0;
  int64_t rope = 0;

  constexpr bool is_fp8() const { return dtype == DType::f8_e4m3; }

  constexpr int64_t num_groups() const {
    return is_fp8() ? (latents + kQuantGroup - 1) / kQuantGroup : 0;
  }

  constexpr int64_t scales_at() const { return (latents * size_of(dtype) + 3) / 4 * 4; }

  constexpr int64_t rope_at() const {
    return is_fp8() ? scales_at() + 4 * num_groups() : latents * size_of(dtype);
  }

  constexpr int64_t size_bytes() const {
    return rope_at() + rope * (is_fp8() ? size_of(DType::bf16) : size_of(dtype));
  }

  /// The innermost dimension of a pool of these records.
  constexpr int64_t elements() const { return size_bytes() / size_of(dtype); }
};

/// The record of pages [.., 64, elements] whose tokens have `latents` latents.
inline KvRecord kv_record(const ConstTensorView& pages, int64_t latents) {
  KvRecord record{pages.dtype, latents, 0};
  const int64_t size = pages.shape[pages.shape.rank - 1] * size_of(pages.dtype);
  const KvRecord one{pages.dtype, latents, 1};
  record.rope = (size - record.rope_at()) / (one.size_bytes() - one.rope_at());
  return record;
}

/// Scale of a group of FP8 latents, both as bits of float32: `amax` is the largest magnitude, at
/// least 1e-4 is assumed. NaN when amax is not finite or above 57,344, which no normalised latent
/// comes near, so that a reader sees it.
constexpr uint32_t kv_scale_bits(uint32_t amax) {
  constexpr uint32_t kInfinity = 0x7f800000U;
  constexpr uint32_t kLeast = 0x38d1b717U;  // 1e-4
  constexpr uint32_t kMost = 0x47600000U;   // 448 * 2^7: code / 2^120 times one BF16 is the value
  if (amax > kMost) {
    return 0x7fc00000U;
  }
  // 448 is 1.75 * 2^8: up to this mantissa the scale is amax's own power of two / 2^8.
  const uint32_t bits = amax > kLeast ? amax : kLeast;
  return ((bits + 0x1fffffU) & kInfinity) - (8U << 23);
}

/// 1 / scale, exact; bits of float32.
constexpr uint32_t kv_scale_inverse_bits(uint32_t scale) {
  return 0x7f000000U - scale;
}

/// Writes one token on the host, [latents + rope] values, in the record's format. `to` is aligned
/// to 4 bytes.
void write_kv_record(const KvRecord& record, const float* token, std::byte* to);

}  // namespace hadal
