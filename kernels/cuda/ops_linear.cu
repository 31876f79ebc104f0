// linear, gate_up, lm_head: one product each.
#include "cuda_ops.h"
#include "product.h"

namespace hadal::cuda {

namespace {

ProductArgs dense_product(const ConstActivationView& x,
                          const Weight* weight,
                          const ActMatrix& out) {
  ProductArgs args;
  args.x = act_matrix(x);
  args.weight = cuda_weight(weight).matrix;
  args.num_rows = static_cast<int32_t>(x.values.shape[0]);
  args.out = out;
  args.out_columns = static_cast<int32_t>(weight->out_features());
  return args;
}

ActMatrix plain_act(const TensorView& view) {
  ActMatrix result;
  result.data = view.data;
  result.stride = view.strides[0];
  result.format = view.dtype == DType::bf16 ? ActFormat::bf16 : ActFormat::f32;
  return result;
}

}  // namespace

void CudaOps::linear(const LinearArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("linear", check(args), stream);
  run_product(dense_product(args.x, args.weight, plain_act(args.out)), false, handle);
  end("linear", handle);
}

void CudaOps::gate_up(const GateUpArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("gate_up", check(args), stream);
  run_product(dense_product(args.x, args.weight, act_matrix(args.out)), true, handle);
  end("gate_up", handle);
}

void CudaOps::lm_head(const LmHeadArgs& args, Stream& stream) {
  const cudaStream_t handle = begin("lm_head", check(args), stream);
  ProductArgs product = dense_product(args.x, args.weight, plain_act(args.out));
  product.num_rows = static_cast<int32_t>(args.rows.shape[0]);
  product.gather = args.rows.as<int32_t>();
  run_product(product, false, handle);
  end("lm_head", handle);
}

}  // namespace hadal::cuda
