// Shapes, strides and slices of tensor views, and the memory layout of activations.
#include <string>

#include <hadal/tensor/activation.h>
#include <hadal/tensor/tensor.h>

namespace hadal {

namespace {

constexpr int64_t kAlignment = 256;

int64_t align_up(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

template <class View>
View slice(const View& view, int32_t dim, int64_t begin, int64_t count) {
  HADAL_CHECK(dim < view.shape.rank,
              "slice of dimension " + std::to_string(dim) + " of " + to_string(view.shape));
  const int64_t size = view.shape[dim];
  HADAL_CHECK(begin >= 0 && count >= 0 && begin + count <= size,
              "slice " + std::to_string(begin) + " + " + std::to_string(count) + " of " +
                  std::to_string(size));
  View result = view;
  result.data += begin * view.strides[dim] * size_of(view.dtype);
  result.shape.dims[static_cast<size_t>(dim)] = count;
  return result;
}

}  // namespace

Shape::Shape(std::initializer_list<int64_t> sizes) {
  HADAL_CHECK(sizes.size() <= static_cast<size_t>(kMaxRank), "a shape has up to four dimensions");
  for (const int64_t size : sizes) {
    dims[static_cast<size_t>(rank++)] = size;
  }
}

int64_t Shape::numel() const {
  int64_t count = 1;
  for (int32_t i = 0; i < rank; ++i) {
    count *= (*this)[i];
  }
  return count;
}

Shape dense_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int32_t i = shape.rank; i-- > 0;) {
    strides.dims[static_cast<size_t>(i)] = step;
    step *= shape[i];
  }
  return strides;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int32_t i = 0; i < shape.rank; ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

ConstTensorView ConstTensorView::rows(int64_t begin, int64_t count) const {
  return slice(*this, 0, begin, count);
}

ConstTensorView ConstTensorView::columns(int64_t begin, int64_t count) const {
  return slice(*this, 1, begin, count);
}

bool ConstTensorView::has_dense_rows() const {
  int64_t step = 1;
  for (int32_t i = shape.rank; i-- > 1;) {
    if (strides[i] != step) {
      return false;
    }
    step *= shape[i];
  }
  return shape.rank <= 1 ? shape.rank == 0 || strides[0] == 1 : strides[0] >= step;
}

TensorView TensorView::rows(int64_t begin, int64_t count) const {
  return slice(*this, 0, begin, count);
}

TensorView TensorView::columns(int64_t begin, int64_t count) const {
  return slice(*this, 1, begin, count);
}

TensorView make_view(std::byte* memory, DType dtype, const Shape& shape, Device device) {
  return TensorView{memory, dtype, device, shape, dense_strides(shape)};
}

ConstTensorView make_view(const std::byte* memory, DType dtype, const Shape& shape, Device device) {
  return ConstTensorView{memory, dtype, device, shape, dense_strides(shape)};
}

DType value_dtype(ActFormat format) {
  switch (format) {
    case ActFormat::f32:
      return DType::f32;
    case ActFormat::bf16:
      return DType::bf16;
    case ActFormat::e4m3:
      return DType::f8_e4m3;
  }
  return DType::f32;
}

int64_t activation_bytes(ActFormat format, int64_t rows, int64_t columns) {
  const int64_t values = align_up(rows * columns * size_of(value_dtype(format)));
  if (format != ActFormat::e4m3) {
    return values;
  }
  const int64_t groups = (columns + kQuantGroup - 1) / kQuantGroup;
  return values + align_up(rows * groups * size_of(DType::f32));
}

ActivationView place_activation(
    std::byte* memory, ActFormat format, int64_t rows, int64_t columns, Device device) {
  ActivationView view;
  view.format = format;
  view.values = make_view(memory, value_dtype(format), Shape{rows, columns}, device);
  if (format == ActFormat::e4m3) {
    const int64_t groups = (columns + kQuantGroup - 1) / kQuantGroup;
    view.scales =
        make_view(memory + align_up(rows * columns), DType::f32, Shape{rows, groups}, device);
    view.scales.strides = Shape{1, rows};
  }
  return view;
}

ActivationView ActivationView::rows(int64_t begin, int64_t count) const {
  ActivationView result = *this;
  result.values = values.rows(begin, count);
  if (format == ActFormat::e4m3) {
    result.scales = scales.rows(begin, count);
  }
  return result;
}

ConstActivationView ConstActivationView::rows(int64_t begin, int64_t count) const {
  ConstActivationView result = *this;
  result.values = values.rows(begin, count);
  if (format == ActFormat::e4m3) {
    result.scales = scales.rows(begin, count);
  }
  return result;
}

}  // namespace hadal
