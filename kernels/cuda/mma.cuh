// Wrappers of the tensor core and asynchronous copy instructions that sm_80 and sm_90 share.
//
// Fragments of mma m16n8k16, for lane l with g = l / 4 and i = l % 4:
//   A [16, 16]: a0 = (g, 2i..), a1 = (g + 8, 2i..), a2 = (g, 2i + 8..), a3 = (g + 8, 2i + 8..)
//   B [16, 8]:  b0 = (2i.., g), b1 = (2i + 8.., g)
//   C [16, 8]:  c0, c1 = (g, 2i..), c2, c3 = (g + 8, 2i..)
// Two bf16 a register, the lower index in the low half.
#pragma once

#include <cstdint>

namespace hadal::cuda {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes; zeros when not `valid` (the source is not read).
__device__ inline void copy_async(uint32_t to, const void* from, bool valid) {
  const int32_t size = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(size));
}

__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::);
}

/// Waits until at most kPending groups of this thread are under way.
template <int32_t kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending));
}

/// Four 8 x 8 matrices of 16-bit elements; lanes 8 m to 8 m + 7 give the rows of matrix m.
__device__ inline void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// The same, each matrix transposed.
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// c += a * b.
__device__ inline void mma(
    float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace hadal::cuda
