// Rows of x in the order in which the sm_90a kernel multiplies them (product_hopper.cu).
#include "launch.cuh"
#include "product_mma.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 128;

struct OrderArgs {
  ConstActMatrix x;
  const int32_t* gather;
  uint16_t* out;  ///< [rows][blocks * 128]
  int32_t columns;
  int32_t blocks;
};

/// Lane i of four gets word i of each of them, in their order.
__device__ uint4 transpose_of_four(uint4 v) {
  const bool is_odd = threadIdx.x % 2 != 0;
  const uint32_t a = __shfl_xor_sync(kFullMask, is_odd ? v.x : v.y, 1);
  const uint32_t b = __shfl_xor_sync(kFullMask, is_odd ? v.z : v.w, 1);
  v = is_odd ? make_uint4(a, v.y, b, v.w) : make_uint4(v.x, a, v.z, b);
  const bool is_high = threadIdx.x % 4 >= 2;
  const uint32_t c = __shfl_xor_sync(kFullMask, is_high ? v.x : v.z, 2);
  const uint32_t d = __shfl_xor_sync(kFullMask, is_high ? v.y : v.w, 2);
  return is_high ? make_uint4(c, d, v.z, v.w) : make_uint4(v.x, v.y, c, d);
}

/// Tokens in the order of steps: of a k block, element 16 s + 8 h + 2 t + j is the one that lane t
/// of a warp has as element j of word h in step s (x_words of product_mma.cuh). E4M3 becomes BF16;
/// beyond a row's end are zeros. Lane t reads its own chunks, of 16 bytes, and writes those of
/// steps.
template <ProductMode kMode>
__global__ void __launch_bounds__(kThreads) order_kernel(OrderArgs args) {
  constexpr int32_t kSize = MmaTraits<kMode>::kXSize;
  constexpr int32_t kUnits = 2 * kSize;  // of four chunks, in a block
  let_next_start();
  wait_for_previous();
  const auto row = static_cast<int32_t>(blockIdx.x);
  const int64_t from = args.gather != nullptr ? args.gather[row] : row;
  const std::byte* x = args.x.data + from * args.x.stride * kSize;
  auto* out = reinterpret_cast<uint4*>(args.out) + int64_t{row} * args.blocks * (kBlockK / 8);
  const int32_t t = threadIdx.x % 4;
  const int32_t units = args.blocks * kUnits;
  // Whole warps go on together: they exchange words.
#pragma unroll 4
  for (int32_t begin = 0; begin < units; begin += kThreads / 4) {
    const int32_t unit = begin + static_cast<int32_t>(threadIdx.x / 4);
    const int32_t at = unit / kUnits * (kBlockK * kSize) + x_chunk<kMode>(unit % kUnits, t);
    uint4 chunk = make_uint4(0, 0, 0, 0);
    if (unit < units && at < args.columns * kSize) {
      chunk = __ldg(reinterpret_cast<const uint4*>(x + at));
    }
    if constexpr (kMode == ProductMode::fp8) {
      uint4 low;
      uint4 high;
      e4m3x4_to_bf16(chunk.x, low.x, high.x);
      e4m3x4_to_bf16(chunk.y, low.y, high.y);
      e4m3x4_to_bf16(chunk.z, low.z, high.z);
      e4m3x4_to_bf16(chunk.w, low.w, high.w);
      low = transpose_of_four(low);
      high = transpose_of_four(high);
      if (unit < units) {
        out[unit * 8 + t * 2] = low;
        out[unit * 8 + t * 2 + 1] = high;
      }
    } else {
      chunk = transpose_of_four(chunk);
      if (unit < units) {
        out[unit * 4 + t] = chunk;
      }
    }
  }
}

template <ProductMode kMode>
void launch_order_mode(const OrderArgs& args, int32_t num_rows, cudaStream_t stream) {
  launch_early(
      order_kernel<kMode>, dim3(static_cast<uint32_t>(num_rows)), dim3(kThreads), 0, stream, args);
}

}  // namespace

void launch_order_x(const ProductArgs& args,
                    ProductMode mode,
                    int32_t num_rows,
                    std::byte* out,
                    cudaStream_t stream) {
  const int32_t columns = args.weight.columns;
  const OrderArgs order{args.x,
                        args.gather,
                        reinterpret_cast<uint16_t*>(out),
                        columns,
                        (columns + kBlockK - 1) / kBlockK};
  switch (mode) {
    case ProductMode::fp8:
      return launch_order_mode<ProductMode::fp8>(order, num_rows, stream);
    case ProductMode::bf16:
      return launch_order_mode<ProductMode::bf16>(order, num_rows, stream);
    case ProductMode::w8a16:
      return launch_order_mode<ProductMode::w8a16>(order, num_rows, stream);
    case ProductMode::plain:
      HADAL_CHECK(false, "a plain product has its own kernel");
  }
}

}  // namespace hadal::cuda
