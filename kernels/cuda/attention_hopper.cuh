// What the attention kernels of sm_90a have beside hopper.cuh: copies of consecutive bytes, and
// products whose A comes from shared memory too.
#pragma once

#include "hopper.cuh"

namespace hadal::cuda {

/// Arrives at a barrier whose phase also waits for `bytes` of copies.
__device__ inline void arrive_expecting(uint32_t barrier, int32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// Asks the copy engine for consecutive bytes; both addresses and `bytes` are multiples of 16.
__device__ inline void copy_bulk(uint32_t to, const void* from, int32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::
          "r"(to),
      "l"(from),
      "r"(bytes),
      "r"(barrier)
      : "memory");
}

/// At most kPending groups of products are under way. Ties `c`, whose group is done, to this place.
template <int32_t kPending, int32_t kSize>
__device__ inline void wait_all_but(float (&c)[kSize]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
#pragma unroll
  for (int32_t i = 0; i < kSize; ++i) {
    asm volatile("" : "+f"(c[i])::"memory");
  }
}

/// What this thread wrote to shared memory becomes visible to wgmma.
__device__ inline void fence_shared_for_products() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

#define HADAL_SUMS_16(d, at)                                                                       \
  "+f"(d[at]), "+f"(d[at + 1]), "+f"(d[at + 2]), "+f"(d[at + 3]), "+f"(d[at + 4]),                 \
      "+f"(d[at + 5]), "+f"(d[at + 6]), "+f"(d[at + 7]), "+f"(d[at + 8]), "+f"(d[at + 9]),         \
      "+f"(d[at + 10]), "+f"(d[at + 11]), "+f"(d[at + 12]), "+f"(d[at + 13]), "+f"(d[at + 14]),    \
      "+f"(d[at + 15])

/// As Wgmma<128>::issue, A from shared memory too.
template <bool kAdd>
__device__ inline void multiply_shared(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, add, 1, 1, 0, 0;\n"
      "}\n"
      : HADAL_SUMS_16(d, 0), HADAL_SUMS_16(d, 16), HADAL_SUMS_16(d, 32), HADAL_SUMS_16(d, 48)
      : "l"(a), "l"(b), "n"(kAdd ? 1 : 0));
}

#undef HADAL_SUMS_16

}  // namespace hadal::cuda
