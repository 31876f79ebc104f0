// Views: slices address what they should, and activation layouts do not overlap.
#include <array>
#include <vector>

#include <hadal/tensor/activation.h>
#include <hadal/tensor/tensor.h>

#include "catch.h"

namespace hadal {

TEST_CASE("TensorView: rows and columns address the same elements as the whole", "[tensor]") {
  std::array<int32_t, 24> data{};
  for (int32_t i = 0; i < 24; ++i) {
    data[static_cast<size_t>(i)] = i;
  }
  const TensorView whole =
      make_view(reinterpret_cast<std::byte*>(data.data()), DType::i32, Shape{4, 6});
  const TensorView part = whole.rows(1, 2).columns(2, 3);
  CHECK(part.shape == Shape{2, 3});
  CHECK(part.row<int32_t>(0)[0] == 8);
  CHECK(part.row<int32_t>(1)[2] == 16);
  CHECK(ConstTensorView(whole).has_dense_rows());
  CHECK(ConstTensorView(part).has_dense_rows());
  CHECK(to_string(part.shape) == "[2, 3]");
  const TensorView deep = make_view(whole.data, DType::i32, Shape{2, 3, 4});
  CHECK(deep.strides == Shape{12, 4, 1});
  CHECK_FALSE(ConstTensorView(deep.columns(0, 2)).strides[0] == 8);
}

TEST_CASE("Activation: scales lie behind the values and follow row slices", "[tensor]") {
  const int64_t bytes = activation_bytes(ActFormat::e4m3, 5, 200);
  std::vector<std::byte> memory(static_cast<size_t>(bytes));
  const ActivationView view = place_activation(memory.data(), ActFormat::e4m3, 5, 200, Device{});
  CHECK(view.values.shape == Shape{5, 200});
  CHECK(view.scales.shape == Shape{5, 2});
  CHECK(view.scales.data >= view.values.data + 1000);
  CHECK(view.scales.data + 5 * 2 * 4 <= memory.data() + bytes);
  const ActivationView tail = view.rows(3, 2);
  CHECK(tail.scales.as<float>() == view.scales.as<float>() + 3);
  CHECK(tail.values.data == view.values.data + 600);
  CHECK(activation_bytes(ActFormat::bf16, 3, 3) == 256);
}

}  // namespace hadal
