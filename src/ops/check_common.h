// Helpers of the checks: each failure is one sentence naming the field, what was expected and
// found.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include <hadal/backend/weight.h>
#include <hadal/base/result.h>
#include <hadal/tensor/activation.h>
#include <hadal/tensor/tensor.h>

namespace hadal::ops_check {

inline Error fail(std::string_view field, const std::string& expected, const std::string& found) {
  return Error{ErrorCode::invalid_argument,
               std::string(field) + ": expected " + expected + ", got " + found};
}

/// The view is there, has this shape and one of these dtypes, dense rows, and aligned elements.
Status tensor(std::string_view field,
              const ConstTensorView& view,
              std::initializer_list<DType> dtypes,
              const Shape& shape);

/// As tensor, but absent is fine too.
Status optional_tensor(std::string_view field,
                       const ConstTensorView& view,
                       std::initializer_list<DType> dtypes,
                       const Shape& shape);

/// Values of the format's dtype, [rows, columns], and scales exactly for e4m3.
Status activation(std::string_view field,
                  const ConstActivationView& view,
                  int64_t rows,
                  int64_t columns);

Status weight(std::string_view field, const Weight* weight, WeightRole role);

Status that(bool holds, std::string_view field, std::string_view expected);

}  // namespace hadal::ops_check
