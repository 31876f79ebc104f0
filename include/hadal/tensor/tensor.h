// Views of n-dimensional arrays in host or device memory.
//
// A view never owns and is trivially copyable, so it can be a field of a kernel's arguments.
// Strides are in elements; a "matrix" in hadal is row-major unless a declaration says otherwise.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include <hadal/base/check.h>
#include <hadal/tensor/dtype.h>

namespace hadal {

enum class DeviceType : uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int32_t index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

/// Up to four dimensions, outermost first. Rank 0 marks an absent (optional) tensor.
struct Shape {
  static constexpr int32_t kMaxRank = 4;
  std::array<int64_t, 4> dims{};
  int32_t rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes);
  int64_t numel() const;

  int64_t operator[](int32_t i) const { return dims[static_cast<size_t>(i)]; }

  friend bool operator==(const Shape&, const Shape&) = default;
};

/// Strides of a dense row-major array.
Shape dense_strides(const Shape& shape);
/// "[2, 64, 576]".
std::string to_string(const Shape& shape);

struct ConstTensorView {
  const std::byte* data = nullptr;
  DType dtype = DType::f32;
  Device device;
  Shape shape;
  Shape strides;  ///< in elements

  bool empty() const { return data == nullptr; }

  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data);
  }

  /// Address of row `i` of dimension 0.
  template <class T>
  const T* row(int64_t i) const {
    return as<T>() + i * strides[0];
  }

  ConstTensorView rows(int64_t begin, int64_t count) const;
  /// Columns [begin, begin + count) of a matrix.
  ConstTensorView columns(int64_t begin, int64_t count) const;
  /// Inner dimensions are dense (dimension 0 may be strided).
  bool has_dense_rows() const;
};

struct TensorView {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  Device device;
  Shape shape;
  Shape strides;  ///< in elements

  bool empty() const { return data == nullptr; }

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }

  template <class T>
  T* row(int64_t i) const {
    return as<T>() + i * strides[0];
  }

  TensorView rows(int64_t begin, int64_t count) const;
  TensorView columns(int64_t begin, int64_t count) const;

  /// The same bytes, read only.
  operator ConstTensorView() const {  // NOLINT(google-explicit-constructor)
    return ConstTensorView{data, dtype, device, shape, strides};
  }
};

/// Dense row-major view of `memory`.
TensorView make_view(std::byte* memory, DType dtype, const Shape& shape, Device device = {});
ConstTensorView make_view(const std::byte* memory,
                          DType dtype,
                          const Shape& shape,
                          Device device = {});

}  // namespace hadal
