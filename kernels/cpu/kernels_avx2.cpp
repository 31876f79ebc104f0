// The kernels for AVX2, FMA and F16C. Compiled with those instruction sets, so nothing here may be
// shared with other translation units: raw pointers, an anonymous namespace, no library templates.
#include <cstdint>

#include "kernel_table.h"

#if defined(__AVX2__)
#include <immintrin.h>

namespace hadal::cpu {

namespace {

#include "vec_avx2.h"

constexpr int64_t kDirectRows = 4;

#include "kernels_body.inc"

}  // namespace

const KernelTable* avx2_kernels() {
  static const KernelTable table{"avx2",
                                 panel_gemm,
                                 absorbed_chunk,
                                 prompt_tile,
                                 silu_mul,
                                 sum_of_squares,
                                 bf16_to_f32,
                                 f32_to_bf16,
                                 e4m3_to_f32};
  return &table;
}

}  // namespace hadal::cpu

#else

namespace hadal::cpu {

const KernelTable* avx2_kernels() {
  return nullptr;
}

}  // namespace hadal::cpu

#endif
