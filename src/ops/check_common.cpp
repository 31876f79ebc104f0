// Checks that all ops share.
#include "check_common.h"

#include <algorithm>

namespace hadal::ops_check {

Status tensor(std::string_view field,
              const ConstTensorView& view,
              std::initializer_list<DType> dtypes,
              const Shape& shape) {
  if (view.data == nullptr && shape.numel() > 0) {
    return fail(field, "a tensor " + to_string(shape), "none");
  }
  if (std::find(dtypes.begin(), dtypes.end(), view.dtype) == dtypes.end()) {
    std::string names;
    for (const DType dtype : dtypes) {
      names += (names.empty() ? "" : " or ") + std::string(to_string(dtype));
    }
    return fail(field, names, std::string(to_string(view.dtype)));
  }
  if (!(view.shape == shape)) {
    return fail(field, to_string(shape), to_string(view.shape));
  }
  if (shape.numel() > 0 && !view.has_dense_rows()) {
    return fail(field, "dense rows", "strides " + to_string(view.strides));
  }
  if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(size_of(view.dtype)) != 0) {
    return fail(field, "aligned elements", "an odd address");
  }
  return ok_status();
}

Status optional_tensor(std::string_view field,
                       const ConstTensorView& view,
                       std::initializer_list<DType> dtypes,
                       const Shape& shape) {
  if (view.empty()) {
    return ok_status();
  }
  return tensor(field, view, dtypes, shape);
}

Status activation(std::string_view field,
                  const ConstActivationView& view,
                  int64_t rows,
                  int64_t columns) {
  HADAL_RETURN_IF_ERROR(
      tensor(field, view.values, {value_dtype(view.format)}, Shape{rows, columns}));
  if (view.format != ActFormat::e4m3) {
    return ok_status();
  }
  const Shape groups{rows, (columns + kQuantGroup - 1) / kQuantGroup};
  const std::string name = std::string(field) + " (scales)";
  if (view.scales.data == nullptr && rows > 0) {
    return fail(name, to_string(groups), "none");
  }
  if (view.scales.dtype != DType::f32 || !(view.scales.shape == groups)) {
    return fail(name,
                "f32 " + to_string(groups),
                std::string(to_string(view.scales.dtype)) + " " + to_string(view.scales.shape));
  }
  return ok_status();
}

Status weight(std::string_view field, const Weight* weight, WeightRole role) {
  if (weight == nullptr) {
    return fail(field, "a weight", "none");
  }
  if (weight->role() != role) {
    return fail(field,
                "role " + std::to_string(static_cast<int>(role)),
                std::to_string(static_cast<int>(weight->role())));
  }
  return ok_status();
}

Status that(bool holds, std::string_view field, std::string_view expected) {
  if (holds) {
    return ok_status();
  }
  return fail(field, std::string(expected), "something else");
}

}  // namespace hadal::ops_check
