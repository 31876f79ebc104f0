// Wrappers of what sm_90a alone has, warpgroup products (wgmma) and the split of registers between
// warpgroups, and of barriers in shared memory that count phases.
//
// wgmma m64nNk16 here: A [64, 16] from registers (fragments of mma m16n8k16, warp w of the group
// has rows 16 w..16 w + 15), B [16, N] from shared memory, C [64, N] in registers: c[4 n + i] is
// element i of the m16n8 tile of columns 8 n..8 n + 7. It runs beside the warpgroup, which may
// touch neither its registers nor its shared memory before wait_products.
#pragma once

#include <cstdint>

#include <cuda.h>

#include "mma.cuh"

namespace hadal::cuda {

__device__ inline void init_barrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals));
}

__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

/// Arrives once the cp.async that this thread has issued so far are done.
__device__ inline void arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier) : "memory");
}

/// Until the phase of this parity is complete; a new barrier's phase before the first is.
__device__ inline void wait_phase(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// The barrier's phase also waits for this many bytes of boxes.
__device__ inline void expect_bytes(uint32_t barrier, int32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;\n" ::"r"(barrier),
               "r"(bytes)
               : "memory");
}

/// Asks the copy engine for the box of `map` (a kernel parameter) at this byte and row; what lies
/// outside becomes zeros. A box of one row may lie at any multiple of 128 bytes in a swizzled tile.
__device__ inline void copy_box(
    uint32_t to, const CUtensorMap* map, int32_t byte, int32_t row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(to),
      "l"(map),
      "r"(byte),
      "r"(row),
      "r"(barrier)
      : "memory");
}

/// Threads of a named barrier (1..15) meet.
__device__ inline void meet(int32_t name, int32_t threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(name), "r"(threads) : "memory");
}

/// This thread comes to a named barrier without waiting for the others.
__device__ inline void come(int32_t name, int32_t threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(name), "r"(threads) : "memory");
}

template <int32_t kRegisters>
__device__ inline void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

template <int32_t kRegisters>
__device__ inline void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

/// Before the first product, and after registers of operands were written.
__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

/// All products are done. Ties `c` to this place, so that no use of it moves ahead.
template <int32_t kSize>
__device__ inline void wait_products(float (&c)[kSize]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
#pragma unroll
  for (int32_t i = 0; i < kSize; ++i) {
    asm volatile("" : "+f"(c[i])::"memory");
  }
}

/// Descriptor of B, rows of 64 elements (128 bytes) with the 128-byte swizzle: chunk c of 16 bytes
/// of row r lies at place c ^ (r % 8). `address` is a multiple of 1024, plus 32 bytes for each k16
/// before.
__device__ inline uint64_t swizzled_operand(uint32_t address) {
  constexpr uint64_t kEightRows = 1024 / 16;
  constexpr uint64_t kSwizzle128 = 1;
  return static_cast<uint64_t>((address & 0x3ffffU) >> 4) | uint64_t{1} << 16 | kEightRows << 32 |
         kSwizzle128 << 62;
}

/// c = a * b, or c += a * b with kAdd, BF16 operands and float32 sums.
template <int32_t kColumns>
struct Wgmma;

template <>
struct Wgmma<32> {
  template <bool kAdd>
  __device__ static void issue(float (&d)[16], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15}, "
        "{%16, %17, %18, %19}, %20, add, 1, 1, 0;\n"
        "}\n"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd ? 1 : 0));
  }
};

template <>
struct Wgmma<64> {
  template <bool kAdd>
  __device__ static void issue(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, add, 1, 1, 0;\n"
        "}\n"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd ? 1 : 0));
  }
};

template <>
struct Wgmma<128> {
  template <bool kAdd>
  __device__ static void issue(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, add, 1, 1, 0;\n"
        "}\n"
        : "+f"(d[0]),
          "+f"(d[1]),
          "+f"(d[2]),
          "+f"(d[3]),
          "+f"(d[4]),
          "+f"(d[5]),
          "+f"(d[6]),
          "+f"(d[7]),
          "+f"(d[8]),
          "+f"(d[9]),
          "+f"(d[10]),
          "+f"(d[11]),
          "+f"(d[12]),
          "+f"(d[13]),
          "+f"(d[14]),
          "+f"(d[15]),
          "+f"(d[16]),
          "+f"(d[17]),
          "+f"(d[18]),
          "+f"(d[19]),
          "+f"(d[20]),
          "+f"(d[21]),
          "+f"(d[22]),
          "+f"(d[23]),
          "+f"(d[24]),
          "+f"(d[25]),
          "+f"(d[26]),
          "+f"(d[27]),
          "+f"(d[28]),
          "+f"(d[29]),
          "+f"(d[30]),
          "+f"(d[31]),
          "+f"(d[32]),
          "+f"(d[33]),
          "+f"(d[34]),
          "+f"(d[35]),
          "+f"(d[36]),
          "+f"(d[37]),
          "+f"(d[38]),
          "+f"(d[39]),
          "+f"(d[40]),
          "+f"(d[41]),
          "+f"(d[42]),
          "+f"(d[43]),
          "+f"(d[44]),
          "+f"(d[45]),
          "+f"(d[46]),
          "+f"(d[47]),
          "+f"(d[48]),
          "+f"(d[49]),
          "+f"(d[50]),
          "+f"(d[51]),
          "+f"(d[52]),
          "+f"(d[53]),
          "+f"(d[54]),
          "+f"(d[55]),
          "+f"(d[56]),
          "+f"(d[57]),
          "+f"(d[58]),
          "+f"(d[59]),
          "+f"(d[60]),
          "+f"(d[61]),
          "+f"(d[62]),
          "+f"(d[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd ? 1 : 0));
  }
};

}  // namespace hadal::cuda
