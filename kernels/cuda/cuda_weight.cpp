// Checkpoint slices to device memory, by strided copies straight from the mapped file.
#include "cuda_weight.h"

#include <string>
#include <vector>

#include <hadal/backend/check_weight.h>

#include "attention.h"
#include "cuda_check.h"
#include "generate.h"

namespace hadal::cuda {

namespace {

/// Parts of one expert: gate and up, or one matrix; everything for stacked roles.
size_t parts_per_expert(const WeightSource& source) {
  switch (source.role) {
    case WeightRole::gate_up:
      return 2;
    case WeightRole::down:
      return 1;
    default:
      return source.parts.size();
  }
}

Status copy_to_device(void* dst, const void* src, int64_t bytes) {
  return to_status(cudaMemcpy(dst, src, static_cast<size_t>(bytes), cudaMemcpyHostToDevice),
                   "prepare_weight: cannot copy " + std::to_string(bytes) + " bytes to the device");
}

Status copy_rows(std::byte* dst, int64_t dst_pitch, const ConstTensorView& src) {
  const int64_t size = size_of(src.dtype);
  return to_status(cudaMemcpy2D(dst,
                                static_cast<size_t>(dst_pitch),
                                src.data,
                                static_cast<size_t>(src.strides[0] * size),
                                static_cast<size_t>(src.shape[1] * size),
                                static_cast<size_t>(src.shape[0]),
                                cudaMemcpyHostToDevice),
                   "prepare_weight: cannot copy " + to_string(src.shape) + " to the device");
}

Status fill_rows(std::byte* dst, int64_t dst_pitch, const RawMatrix& part) {
  if (part.generated == nullptr) {
    return copy_rows(dst, dst_pitch, part.values);
  }
  launch_generate(*part.generated, part.values.dtype, part.values.shape, dst, dst_pitch, nullptr);
  return to_status(cudaPeekAtLastError(), "prepare_weight: cannot generate");
}

/// Scales of all experts one after the other, and the scale row of every row of one expert. With
/// parts of one shape every expert has the same number of scale rows, but gate_up's first expert
/// may differ in offsets from its second: then the indices of the first would be wrong.
Result<std::vector<int32_t>> gather_scales(const WeightSource& source, std::vector<float>& scales) {
  const size_t stride = parts_per_expert(source);
  std::vector<int32_t> scale_rows;
  int64_t scale_row = 0;
  for (size_t i = 0; i < source.parts.size(); ++i) {
    const RawMatrix& part = source.parts[i];
    if (part.row_offset != source.parts[i % stride].row_offset) {
      return Error{ErrorCode::invalid_argument,
                   "prepare_weight: expected the same row offset in all experts"};
    }
    if (i < stride) {
      for (int64_t row = 0; row < part.values.shape[0]; ++row) {
        scale_rows.push_back(
            static_cast<int32_t>(scale_row + (part.row_offset + row) / kScaleBlock));
      }
      scale_row += part.scale_inv.shape[0];
    }
    for (int64_t row = 0; row < part.scale_inv.shape[0]; ++row) {
      const auto* values = part.scale_inv.row<float>(row);
      scales.insert(scales.end(), values, values + part.scale_inv.shape[1]);
    }
  }
  return scale_rows;
}

Status upload_scales(Backend& backend, const WeightSource& source, CudaWeight& weight) {
  std::vector<float> scales;
  auto scale_rows = gather_scales(source, scales);
  if (!scale_rows) {
    return scale_rows.error();
  }
  const auto scale_bytes = static_cast<int64_t>(scales.size() * sizeof(float));
  const auto row_bytes = static_cast<int64_t>(scale_rows.value().size() * sizeof(int32_t));
  auto scale_buffer = backend.allocate(scale_bytes, MemoryKind::device);
  if (!scale_buffer) {
    return scale_buffer.error();
  }
  auto row_buffer = backend.allocate(row_bytes, MemoryKind::device);
  if (!row_buffer) {
    return row_buffer.error();
  }
  weight.scales = std::move(scale_buffer).value();
  weight.scale_rows = std::move(row_buffer).value();
  HADAL_RETURN_IF_ERROR(copy_to_device(weight.scales.data(), scales.data(), scale_bytes));
  HADAL_RETURN_IF_ERROR(
      copy_to_device(weight.scale_rows.data(), scale_rows.value().data(), row_bytes));
  DeviceMatrix& m = weight.matrix;
  m.scales = reinterpret_cast<const float*>(weight.scales.data());
  m.scale_rows = reinterpret_cast<const int32_t*>(weight.scale_rows.data());
  m.has_whole_blocks = true;
  for (size_t n = 0; n < scale_rows.value().size(); ++n) {
    m.has_whole_blocks =
        m.has_whole_blocks && scale_rows.value()[n] == static_cast<int32_t>(n / kScaleBlock);
  }
  m.num_groups = static_cast<int32_t>(source.parts.front().scale_inv.shape[1]);
  m.column_offset = static_cast<int32_t>(source.parts.front().column_offset);
  m.expert_scales = static_cast<int64_t>(scales.size()) / weight.num_experts();
  return ok_status();
}

/// The forms of kv_b that the tensor core kernels read, when its sizes are theirs.
Status prepare_attention(Backend& backend, CudaWeight& weight) {
  const DeviceMatrix& m = weight.matrix;
  const bool is_standard = m.columns == kLatents && weight.qk_nope_head_dim == kNope &&
                           weight.v_head_dim == kValue &&
                           m.row_bytes == m.columns * size_of(m.dtype);
  if (!is_standard || (m.dtype != DType::f8_e4m3 && m.dtype != DType::bf16)) {
    return ok_status();
  }
  auto keys =
      backend.allocate(int64_t{weight.num_heads} * kLatents * kNope * 2, MemoryKind::device);
  if (!keys) {
    return keys.error();
  }
  weight.key_transposed = std::move(keys).value();
  if (m.dtype != DType::bf16) {
    auto dense = backend.allocate(int64_t{m.rows} * kLatents * 2, MemoryKind::device);
    if (!dense) {
      return dense.error();
    }
    weight.dense = std::move(dense).value();
  }
  launch_kv_b(m,
              weight.num_heads,
              reinterpret_cast<uint16_t*>(weight.dense.data()),
              reinterpret_cast<uint16_t*>(weight.key_transposed.data()),
              nullptr);
  HADAL_RETURN_IF_ERROR(to_status(cudaPeekAtLastError(), "prepare_weight: kv_b"));
  return to_status(cudaStreamSynchronize(nullptr), "prepare_weight: kv_b");
}

}  // namespace

Result<std::unique_ptr<Weight>> prepare_cuda_weight(Backend& backend, const WeightSource& source) {
  HADAL_RETURN_IF_ERROR(check(source));
  const ConstTensorView& first = source.parts.front().values;
  const size_t stride = parts_per_expert(source);
  const auto num_experts = static_cast<int32_t>(source.parts.size() / stride);
  int64_t rows = 0;
  for (size_t i = 0; i < stride; ++i) {
    rows += source.parts[i].values.shape[0];
  }
  const int64_t out_features = source.role == WeightRole::gate_up ? rows / 2 : rows;
  auto weight = std::make_unique<CudaWeight>(
      source.role, first.dtype, out_features, first.shape[1], num_experts);
  weight->num_heads = source.num_heads;
  weight->qk_nope_head_dim = source.qk_nope_head_dim;
  weight->v_head_dim = source.v_head_dim;
  DeviceMatrix& m = weight->matrix;
  m.dtype = first.dtype;
  m.rows = static_cast<int32_t>(rows);
  m.columns = static_cast<int32_t>(first.shape[1]);
  m.row_bytes =
      (first.shape[1] + kScaleBlock - 1) / kScaleBlock * kScaleBlock * size_of(first.dtype);
  m.expert_bytes = rows * m.row_bytes;
  auto values = backend.allocate(num_experts * m.expert_bytes, MemoryKind::device);
  if (!values) {
    return values.error();
  }
  weight->values = std::move(values).value();
  m.data = weight->values.data();
  std::byte* dst = weight->values.data();
  for (const RawMatrix& part : source.parts) {
    HADAL_RETURN_IF_ERROR(fill_rows(dst, m.row_bytes, part));
    dst += part.values.shape[0] * m.row_bytes;
  }
  if (first.dtype == DType::f8_e4m3) {
    HADAL_RETURN_IF_ERROR(upload_scales(backend, source, *weight));
  }
  if (source.role == WeightRole::kv_b) {
    HADAL_RETURN_IF_ERROR(prepare_attention(backend, *weight));
  }
  HADAL_RETURN_IF_ERROR(to_status(cudaStreamSynchronize(nullptr), "prepare_weight"));
  return std::unique_ptr<Weight>(std::move(weight));
}

}  // namespace hadal::cuda
