// The checks of check_weight.h.
#include <string>

#include <hadal/backend/check_weight.h>

namespace hadal {

namespace {

Error bad_source(const std::string& message) {
  return Error{ErrorCode::invalid_argument, "prepare_weight: " + message};
}

int64_t blocks(int64_t offset, int64_t count) {
  return (offset + count + kScaleBlock - 1) / kScaleBlock;
}

bool has_nan_code(const ConstTensorView& values) {
  for (int64_t row = 0; row < values.shape[0]; ++row) {
    const auto* codes = values.row<uint8_t>(row);
    uint8_t found = 0;  // no early exit inside a row: the loop vectorises
    for (int64_t k = 0; k < values.shape[1]; ++k) {
      found = static_cast<uint8_t>(found | ((codes[k] & 0x7fU) == 0x7fU ? 1U : 0U));
    }
    if (found != 0) {
      return true;
    }
  }
  return false;
}

Status check_scales(const RawMatrix& part, const RawMatrix& first) {
  const ConstTensorView& v = part.values;
  if (part.row_offset < 0 || part.row_offset >= kScaleBlock || part.column_offset < 0 ||
      part.column_offset >= kScaleBlock || part.column_offset != first.column_offset) {
    return bad_source("expected offsets in 0..127, the column offset the same in all parts");
  }
  const Shape scales{blocks(part.row_offset, v.shape[0]), blocks(part.column_offset, v.shape[1])};
  if (part.scale_inv.data == nullptr || part.scale_inv.dtype != DType::f32 ||
      !(part.scale_inv.shape == scales)) {
    return bad_source("expected f32 scales " + to_string(scales) + ", got " +
                      std::string(to_string(part.scale_inv.dtype)) + " " +
                      to_string(part.scale_inv.shape));
  }
  if (part.generated == nullptr && has_nan_code(v)) {
    return bad_source("an f8_e4m3 weight holds NaN");
  }
  return ok_status();
}

Status check_part(const RawMatrix& part, const RawMatrix& first) {
  const ConstTensorView& v = part.values;
  if ((v.data == nullptr && part.generated == nullptr) || v.shape.rank != 2 ||
      v.shape.numel() <= 0 || !v.has_dense_rows()) {
    return bad_source("expected a matrix with dense rows, got " + to_string(v.shape));
  }
  if (v.dtype != first.values.dtype || v.shape[1] != first.values.shape[1]) {
    return bad_source("expected parts of one dtype and width, " +
                      std::string(to_string(first.values.dtype)) + " " +
                      to_string(first.values.shape) + ", got " + std::string(to_string(v.dtype)) +
                      " " + to_string(v.shape));
  }
  if (v.dtype != DType::f32 && v.dtype != DType::bf16 && v.dtype != DType::f16 &&
      v.dtype != DType::f8_e4m3) {
    return bad_source("expected f32, bf16, f16 or f8_e4m3, got " + std::string(to_string(v.dtype)));
  }
  return v.dtype == DType::f8_e4m3 ? check_scales(part, first) : ok_status();
}

Status check_kv_b(const WeightSource& source) {
  const int64_t nope = source.qk_nope_head_dim;
  const int64_t value = source.v_head_dim;
  const int64_t rows = source.parts.front().values.shape[0];
  if (source.num_heads < 1 || nope < 1 || value < 1 || rows != source.num_heads * (nope + value)) {
    return bad_source("expected kv_b with num_heads * (qk_nope_head_dim + v_head_dim) = " +
                      std::to_string(source.num_heads * (nope + value)) + " rows, got " +
                      std::to_string(rows));
  }
  return ok_status();
}

}  // namespace

Status check(const WeightSource& source) {
  if (source.parts.empty()) {
    return bad_source("expected at least one part, got none");
  }
  for (const RawMatrix& part : source.parts) {
    HADAL_RETURN_IF_ERROR(check_part(part, source.parts.front()));
    const bool stacked = source.role == WeightRole::linear;
    if (!stacked && !(part.values.shape == source.parts.front().values.shape)) {
      return bad_source("expected parts of one shape, got " + to_string(part.values.shape));
    }
  }
  switch (source.role) {
    case WeightRole::linear:
    case WeightRole::down:
      return ok_status();
    case WeightRole::gate_up:
      return source.parts.size() % 2 == 0
                 ? ok_status()
                 : bad_source("expected pairs of gate and up, got an odd number of parts");
    case WeightRole::kv_b:
    case WeightRole::router:
    case WeightRole::lm_head:
      if (source.parts.size() != 1) {
        return bad_source("expected one part, got " + std::to_string(source.parts.size()));
      }
      return source.role == WeightRole::kv_b ? check_kv_b(source) : ok_status();
  }
  return bad_source("unknown role");
}

}  // namespace hadal
