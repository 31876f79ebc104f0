// The kernels in plain C++: exact mode, and any machine.
#include <cstdint>

#include "kernel_table.h"

namespace hadal::cpu {

namespace {

#include "vec_generic.h"

constexpr int64_t kDirectRows = 4;

#include "kernels_body.inc"

}  // namespace

const KernelTable& generic_kernels() {
  static const KernelTable table{"generic",
                                 panel_gemm,
                                 absorbed_chunk,
                                 prompt_tile,
                                 silu_mul,
                                 sum_of_squares,
                                 bf16_to_f32,
                                 f32_to_bf16,
                                 e4m3_to_f32};
  return table;
}

}  // namespace hadal::cpu
