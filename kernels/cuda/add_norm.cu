// Residual add, RMSNorm and quantisation in one pass, a block a row. A row of whole 128s, up to
// 8192, stays in registers, eight columns a thread; any other goes through shared memory.
#include <hadal/comm/communicator.h>

#include "cuda_check.h"
#include "cuda_ops.h"
#include "device_math.cuh"
#include "launch.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kThreads = 256;

struct AddNormKernelArgs {
  ConstPlainMatrix addend;
  PlainMatrix residual;
  ConstPlainMatrix weight;
  ActMatrix out;
  PlainMatrix out_plain;
  int32_t hidden;
  float eps;
  bool overwrite_residual;
};

__global__ void __launch_bounds__(kThreads) add_norm_kernel(AddNormKernelArgs args) {
  extern __shared__ float x[];
  __shared__ float scratch[kThreads / 32];
  const int64_t row = blockIdx.x;
  const bool has_addend = args.addend.data != nullptr;
  float squares = 0.0F;
  for (int32_t column = static_cast<int32_t>(threadIdx.x) * 4; column < args.hidden;
       column += kThreads * 4) {
    float values[4] = {};
    if (!args.overwrite_residual) {
      load_quad(args.residual, row, column, args.hidden, values);
    }
    if (has_addend) {
      float added[4] = {};
      load_quad(args.addend, row, column, args.hidden, added);
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        values[j] += added[j];
        if (args.residual.is_bf16) {  // as the next layer will read it
          values[j] = bf16_bits_to_f32(f32_to_bf16_bits(values[j]));
        }
      }
      store_quad(args.residual, row, column, args.hidden, values);
    }
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      if (column + j < args.hidden) {
        x[column + j] = values[j];
        squares = fmaf(values[j], values[j], squares);
      }
    }
  }
  const float mean = block_sum<kThreads>(squares, scratch) / static_cast<float>(args.hidden);
  const float factor = __fdiv_rn(1.0F, sqrtf(mean + args.eps));
  const int32_t lane = threadIdx.x % 32;
  for (int32_t group = static_cast<int32_t>(threadIdx.x) / 32 * 128; group < args.hidden;
       group += kThreads / 32 * 128) {
    const int32_t column = group + lane * 4;
    float values[4] = {};
    float weights[4] = {};
    load_quad(args.weight, 0, column, args.hidden, weights);
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      if (column + j < args.hidden) {
        values[j] = x[column + j] * factor * weights[j];
      }
    }
    store_group_quads(args.out, row, group, args.hidden, values);
    if (args.out_plain.data != nullptr) {
      store_quad(args.out_plain, row, column, args.hidden, values);
    }
  }
}

constexpr int32_t kPerThread = 8;
constexpr int32_t kMaxRowThreads = 1024;

/// Columns [column, column + 8) of a row; 16-byte aligned.
__device__ void load_eight(const ConstPlainMatrix& matrix,
                           int64_t row,
                           int64_t column,
                           float (&out)[8]) {
  const int64_t at = row * matrix.stride + column;
  if (matrix.is_bf16) {
    const uint4 words =
        *reinterpret_cast<const uint4*>(reinterpret_cast<const uint16_t*>(matrix.data) + at);
    const uint32_t each[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      out[2 * j] = __uint_as_float(each[j] << 16);
      out[2 * j + 1] = __uint_as_float(each[j] & 0xffff0000U);
    }
    return;
  }
  const float* from = reinterpret_cast<const float*>(matrix.data) + at;
#pragma unroll
  for (int32_t j = 0; j < 8; j += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + j);
    out[j] = four.x;
    out[j + 1] = four.y;
    out[j + 2] = four.z;
    out[j + 3] = four.w;
  }
}

__device__ void store_eight(const PlainMatrix& matrix,
                            int64_t row,
                            int64_t column,
                            const float (&values)[8]) {
  const int64_t at = row * matrix.stride + column;
  if (matrix.is_bf16) {
    *reinterpret_cast<uint4*>(reinterpret_cast<uint16_t*>(matrix.data) + at) =
        make_uint4(f32_to_bf16x2(values[0], values[1]),
                   f32_to_bf16x2(values[2], values[3]),
                   f32_to_bf16x2(values[4], values[5]),
                   f32_to_bf16x2(values[6], values[7]));
    return;
  }
  float* to = reinterpret_cast<float*>(matrix.data) + at;
  *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
  *reinterpret_cast<float4*>(to + 4) = make_float4(values[4], values[5], values[6], values[7]);
}

/// The same in an op's format; sixteen lanes hold a quantisation group; all of a warp come here.
__device__ void store_act_eight(
    const ActMatrix& x, int64_t row, int64_t column, bool is_there, const float (&values)[8]) {
  if (x.format != ActFormat::e4m3) {
    if (is_there) {
      store_eight({x.data, x.stride, x.format == ActFormat::bf16}, row, column, values);
    }
    return;
  }
  float amax = 0.0F;
#pragma unroll
  for (int32_t j = 0; j < 8; ++j) {
    amax = fmaxf(amax, fabsf(values[j]));
  }
#pragma unroll
  for (int32_t offset = 8; offset > 0; offset /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(kFullMask, amax, offset));
  }
  if (!is_there) {
    return;
  }
  const float scale = scale_of_amax(amax);
  if (column % kQuantGroup == 0) {
    store_scale(x, row, column / kQuantGroup, scale);
  }
  uint32_t words[2] = {};
#pragma unroll
  for (int32_t j = 0; j < 8; ++j) {
    const uint32_t code = f32_to_e4m3_device(__fdiv_rn(values[j], scale));
    words[j / 4] |= code << (j % 4 * 8);
  }
  *reinterpret_cast<uint2*>(reinterpret_cast<uint8_t*>(x.data) + row * x.stride + column) =
      make_uint2(words[0], words[1]);
}

/// blockDim.x = hidden / 8, rounded up to warps.
__global__ void __launch_bounds__(kMaxRowThreads) add_norm_row_kernel(AddNormKernelArgs args) {
  __shared__ float scratch[kMaxRowThreads / 32];
  let_next_start();
  const int64_t row = blockIdx.x;
  const int32_t column = static_cast<int32_t>(threadIdx.x) * kPerThread;
  const bool is_there = column < args.hidden;
  float weights[kPerThread] = {};
  if (is_there) {
    load_eight(args.weight, 0, column, weights);
  }
  wait_for_previous();
  float values[kPerThread] = {};
  float added[kPerThread] = {};
  const bool has_addend = args.addend.data != nullptr;
  if (is_there && !args.overwrite_residual) {
    load_eight(args.residual, row, column, values);
  }
  if (is_there && has_addend) {
    load_eight(args.addend, row, column, added);
  }
  float squares = 0.0F;
#pragma unroll
  for (int32_t j = 0; j < kPerThread; ++j) {
    if (has_addend) {
      values[j] += added[j];
      if (args.residual.is_bf16) {  // as the next layer will read it
        values[j] = bf16_bits_to_f32(f32_to_bf16_bits(values[j]));
      }
    }
    squares = fmaf(values[j], values[j], squares);
  }
  if (is_there && has_addend) {
    store_eight(args.residual, row, column, values);
  }
  squares = warp_sum(squares);
  const int32_t lane = threadIdx.x % 32;
  if (lane == 0) {
    scratch[threadIdx.x / 32] = squares;
  }
  __syncthreads();
  const float total = warp_sum(lane < static_cast<int32_t>(blockDim.x) / 32 ? scratch[lane] : 0.0F);
  const float factor =
      __fdiv_rn(1.0F, sqrtf(total / static_cast<float>(args.hidden) + args.eps));
#pragma unroll
  for (int32_t j = 0; j < kPerThread; ++j) {
    values[j] = values[j] * factor * weights[j];
  }
  store_act_eight(args.out, row, column, is_there, values);
  if (is_there && args.out_plain.data != nullptr) {
    store_eight(args.out_plain, row, column, values);
  }
}

/// Whether eight columns a thread can be read and written at once.
bool fits_registers(const AddNormKernelArgs& args) {
  const auto is_aligned = [](const void* data, int64_t stride, int64_t size) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * size % 16 == 0;
  };
  const auto is_plain_aligned = [&](const ConstPlainMatrix& m) {
    return is_aligned(m.data, m.stride, m.is_bf16 ? 2 : 4);
  };
  const int64_t out_size = args.out.format == ActFormat::e4m3   ? 1
                           : args.out.format == ActFormat::bf16 ? 2
                                                                : 4;
  return args.hidden % static_cast<int32_t>(kQuantGroup) == 0 &&
         args.hidden <= kMaxRowThreads * kPerThread && is_plain_aligned(args.addend) &&
         is_plain_aligned(args.residual) && is_aligned(args.weight.data, 0, 1) &&
         is_plain_aligned(args.out_plain) && is_aligned(args.out.data, args.out.stride, out_size);
}

}  // namespace

void CudaOps::add_norm(const AddNormArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("add_norm", check(args), stream);
  if (args.comm != nullptr && args.comm->world_size() > 1) {
    args.comm->all_reduce_sum(args.addend, stream);
  }
  const int64_t rows = args.residual.shape[0];
  AddNormKernelArgs kernel{};
  kernel.residual = plain_matrix(args.residual);
  kernel.weight = plain_matrix(args.weight);
  kernel.out = act_matrix(args.out);
  kernel.hidden = static_cast<int32_t>(args.residual.shape[1]);
  kernel.eps = args.eps;
  kernel.overwrite_residual = args.overwrite_residual;
  if (!args.addend.empty()) {
    kernel.addend = plain_matrix(args.addend);
  }
  if (!args.out_plain.empty()) {
    kernel.out_plain = plain_matrix(args.out_plain);
  }
  if (rows > 0 && fits_registers(kernel)) {
    const int32_t threads = (kernel.hidden / kPerThread + 31) / 32 * 32;
    launch_early(add_norm_row_kernel,
                 dim3(static_cast<uint32_t>(rows)),
                 dim3(static_cast<uint32_t>(threads)),
                 0,
                 handle,
                 kernel);
  } else if (rows > 0) {
    const size_t shared_bytes = static_cast<size_t>(kernel.hidden) * sizeof(float);
    HADAL_CHECK(static_cast<int64_t>(shared_bytes) < device_.max_shared_bytes - 1024,
                "add_norm: rows of " + std::to_string(kernel.hidden) + " do not fit a block");
    HADAL_CUDA_CHECK(cudaFuncSetAttribute(add_norm_kernel,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(shared_bytes)));
    add_norm_kernel<<<static_cast<uint32_t>(rows), kThreads, shared_bytes, handle>>>(kernel);
  }
  end("add_norm", handle);
}

}  // namespace hadal::cuda
