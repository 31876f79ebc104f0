// Residual add, RMSNorm and quantisation in one pass: a block a row, the row in shared memory
// between the two.
#include <hadal/comm/communicator.h>

#include "cuda_check.h"
#include "cuda_ops.h"
#include "device_math.cuh"

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
  const size_t shared_bytes = static_cast<size_t>(kernel.hidden) * sizeof(float);
  HADAL_CHECK(static_cast<int64_t>(shared_bytes) < device_.max_shared_bytes - 1024,
              "add_norm: rows of " + std::to_string(kernel.hidden) + " do not fit a block");
  HADAL_CUDA_CHECK(cudaFuncSetAttribute(add_norm_kernel,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared_bytes)));
  if (rows > 0) {
    add_norm_kernel<<<static_cast<uint32_t>(rows), kThreads, shared_bytes, handle>>>(kernel);
  }
  end("add_norm", handle);
}

}  // namespace hadal::cuda
