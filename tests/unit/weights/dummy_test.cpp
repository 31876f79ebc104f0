// The generator against values computed by an independent numpy program, and slices against the
// whole.
#include <cstring>
#include <span>

#include <hadal/tensor/dtype.h>
#include <hadal/weights/weight_store.h>

#include "catch.h"

namespace hadal {
namespace {

/// Bits of elements 0, 1, 7 and 199 of a [20, 10] (or [200]) tensor.
std::vector<uint32_t> bits_of(const WeightSpec& spec, uint64_t seed) {
  const auto store = make_dummy_weights(seed);
  const auto size = static_cast<size_t>(stored_size(spec.type));
  std::vector<std::byte> bytes(200 * size);
  REQUIRE(store->read(spec, whole(spec.shape), bytes));
  std::vector<uint32_t> result;
  for (const size_t i : {0U, 1U, 7U, 199U}) {
    uint32_t bits = 0;
    std::memcpy(&bits, bytes.data() + i * size, size);
    result.push_back(bits);
  }
  return result;
}

using Bits = std::vector<uint32_t>;

TEST_CASE("dummy weights: equal an independent implementation", "[weights]") {
  const std::string o_proj = "model.layers.0.self_attn.o_proj.weight";
  CHECK(bits_of({o_proj, {20, 10}, StoredType::f8_e4m3, 10}, 0) == Bits{0xf7, 0x75, 0xfb, 0xe8});
  CHECK(bits_of({o_proj, {20, 10}, StoredType::f8_e4m3, 10}, 12345678901234567890U) ==
        Bits{0x6f, 0x7d, 0x6f, 0xf5});
  CHECK(bits_of({o_proj + "_scale_inv", {20, 10}, StoredType::f32, 1280}, 0) ==
        Bits{0x38f37dc2, 0x38a70e0a, 0x39121b6a, 0x38f487ae});
  CHECK(bits_of({"model.layers.1.enorm.weight", {200}, StoredType::bf16, 1}, 0) ==
        Bits{0x3f99, 0x3f54, 0x3f8d, 0x3f9c});
  CHECK(bits_of({"model.norm.weight", {200}, StoredType::bf16, 1}, 0) ==
        Bits{0x3f46, 0x3f52, 0x3f47, 0x3f62});
  CHECK(bits_of({"model.layers.1.mlp.gate.e_score_correction_bias", {200}, StoredType::f32, 1},
                3) == Bits{0x3e8e938c, 0x3e6f2620, 0x3e5ca3cd, 0x3d8efd1e});
  CHECK(bits_of({"model.embed_tokens.weight", {20, 10}, StoredType::bf16, 10}, 0) ==
        Bits{0xbee4, 0xbf20, 0x3e43, 0xbe4d});
  CHECK(bits_of({"lm_head.weight", {20, 10}, StoredType::bf16, 10}, 0) ==
        Bits{0x3f0a, 0x3f08, 0xbeb6, 0xbc43});
}

TEST_CASE("dummy weights: a slice equals the same part of the whole", "[weights]") {
  const auto store = make_dummy_weights(7);
  const WeightSpec spec{"x.weight", {9, 13}, StoredType::f8_e4m3, 13};
  std::vector<std::byte> all(9 * 13);
  REQUIRE(store->read(spec, whole(spec.shape), all));
  const WeightSlice slice{2, 5, 3, 7};
  std::vector<std::byte> part(5 * 7);
  REQUIRE(store->read(spec, slice, part));
  for (size_t row = 0; row < 5; ++row) {
    CHECK(std::memcmp(part.data() + row * 7, all.data() + (row + 2) * 13 + 3, 7) == 0);
  }
}

TEST_CASE("dummy weights: a type that has no recipe is refused by name", "[weights]") {
  const auto found = make_dummy_weights(0)->find({"x.weight", {2}, StoredType::i64, 1});
  REQUIRE_FALSE(found);
  CHECK_THAT(found.error().message, Catch::Matchers::Contains("'x.weight'"));
}

TEST_CASE("dummy weights: a slice's formula gives what reading it gives", "[weights]") {
  const auto store = make_dummy_weights(7);
  const WeightSpec spec{"model.layers.3.mlp.gate.weight", {16, 24}, StoredType::bf16, 24};
  const WeightSlice slice{5, 9, 8, 11};
  const auto formula = store->generated(spec, slice);
  REQUIRE(formula);
  std::vector<uint16_t> read(9 * 11);
  REQUIRE(store->read(spec, slice, std::as_writable_bytes(std::span(read))));
  for (int64_t row = 0; row < 9; ++row) {
    for (int64_t column = 0; column < 11; ++column) {
      const int64_t index = formula->first_index + row * formula->row_indices + column;
      const float value = formula->factor * generated_unit(formula->start, index);
      CHECK(read[static_cast<size_t>(row * 11 + column)] == f32_to_bf16(value));
    }
  }
  CHECK_FALSE(store->generated({"model.norm.weight", {24}, StoredType::bf16, 1}, {0, 1, 0, 24}));
}

}  // namespace
}  // namespace hadal
