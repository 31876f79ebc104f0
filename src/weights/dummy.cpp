// The counter generator of src/weights/DUMMY.md: every element is a function of the tensor's name,
// its index in the unsharded tensor and a seed, so a slice needs nothing but itself. Built without
// fused multiply-add: each float32 operation rounds once, as in the specification.
#include <algorithm>
#include <cmath>
#include <cstring>

#include <hadal/tensor/dtype.h>
#include <hadal/weights/weight_store.h>

namespace hadal {
namespace {

uint64_t fnv1a(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : name) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  }
  return hash;
}

constexpr float kE4m3Factor = 448.0F;  ///< of v, for an FP8 code

enum class Kind : uint8_t { fp8, scale, norm, bias, plain };

/// How a tensor's values follow from v.
struct Recipe {
  Kind kind = Kind::plain;
  float factor = 1.0F;

  float value(float v) const {
    switch (kind) {
      case Kind::fp8:
        return kE4m3Factor * v;
      case Kind::scale: {
        const float wave = 0.5F * v;
        return factor * (1.0F + wave);
      }
      case Kind::norm: {
        const float wave = 0.25F * v;
        return 1.0F + wave;
      }
      case Kind::bias: {
        const float wave = 0.15F * v;
        return 0.2F + wave;
      }
      case Kind::plain:
        return factor * v;
    }
    return 0.0F;
  }
};

Recipe recipe_for(const WeightSpec& spec) {
  const std::string_view name = spec.name;
  const double features = static_cast<double>(std::max<int64_t>(1, spec.in_features));
  if (name.ends_with(".weight_scale_inv")) {
    return {Kind::scale, static_cast<float>(std::sqrt(3.0 / features) / 448.0)};
  }
  if (spec.type == StoredType::f8_e4m3) {
    return {Kind::fp8, 1.0F};
  }
  if (name.ends_with("norm.weight")) {
    return {Kind::norm, 1.0F};
  }
  if (name.ends_with(".e_score_correction_bias")) {
    return {Kind::bias, 1.0F};
  }
  if (name.ends_with("embed_tokens.weight")) {
    return {Kind::plain, static_cast<float>(std::sqrt(3.0))};
  }
  return {Kind::plain, static_cast<float>(std::sqrt(3.0 / features))};
}

/// Stores one value in the tensor's type and moves on.
std::byte* store(std::byte* out, StoredType type, float value) {
  if (type == StoredType::f8_e4m3) {
    *out = static_cast<std::byte>(f32_to_e4m3(value));
    return out + 1;
  }
  if (type == StoredType::bf16) {
    const uint16_t bits = f32_to_bf16(value);
    std::memcpy(out, &bits, sizeof bits);
    return out + sizeof bits;
  }
  std::memcpy(out, &value, sizeof value);
  return out + sizeof value;
}

class DummyWeights final : public WeightStore {
 public:
  explicit DummyWeights(uint64_t seed) : seed_(seed) {}

  bool has(std::string_view /*name*/) const override { return true; }

  Result<StoredType> find(const WeightSpec& spec) const override {
    if (spec.type != StoredType::f8_e4m3 && spec.type != StoredType::bf16 &&
        spec.type != StoredType::f32) {
      return Error{ErrorCode::unsupported,
                   "weights: dummy tensor '" + spec.name + "' of " +
                       std::string(stored_name(spec.type)) + ", expected F8_E4M3, BF16 or F32"};
    }
    return spec.type;
  }

  Status read(const WeightSpec& spec,
              const WeightSlice& slice,
              std::span<std::byte> out) const override {
    const auto type = find(spec);
    if (!type) {
      return type.error();
    }
    const WeightSlice all = whole(spec.shape);
    HADAL_CHECK(slice.row_begin >= 0 && slice.num_rows >= 0 && slice.col_begin >= 0 &&
                    slice.num_cols >= 0 && slice.num_rows <= all.num_rows - slice.row_begin &&
                    slice.num_cols <= all.num_cols - slice.col_begin,
                "slice outside tensor " + spec.name);
    HADAL_CHECK(static_cast<int64_t>(out.size()) ==
                    slice.num_rows * slice.num_cols * stored_size(spec.type),
                "read buffer of the wrong size for " + spec.name);
    const Recipe recipe = recipe_for(spec);
    const uint64_t start = start_of(spec);
    std::byte* at = out.data();
    for (int64_t row = slice.row_begin; row < slice.row_begin + slice.num_rows; ++row) {
      const int64_t first = row * all.num_cols + slice.col_begin;
      for (int64_t i = first; i < first + slice.num_cols; ++i) {
        at = store(at, spec.type, recipe.value(generated_unit(start, i)));
      }
    }
    return ok_status();
  }

  std::optional<GeneratedValues> generated(const WeightSpec& spec,
                                           const WeightSlice& slice) const override {
    const Recipe recipe = recipe_for(spec);
    if (recipe.kind != Kind::fp8 && recipe.kind != Kind::plain) {
      return std::nullopt;
    }
    const int64_t columns = whole(spec.shape).num_cols;
    return GeneratedValues{start_of(spec),
                           slice.row_begin * columns + slice.col_begin,
                           columns,
                           recipe.kind == Kind::fp8 ? kE4m3Factor : recipe.factor};
  }

  std::string describe() const override {
    return "dummy weights (seed " + std::to_string(seed_) + ")";
  }

 private:
  uint64_t start_of(const WeightSpec& spec) const {
    return fnv1a(spec.name) ^ (seed_ * kGeneratedStep);
  }

  uint64_t seed_;
};

}  // namespace

std::unique_ptr<WeightStore> make_dummy_weights(uint64_t seed) {
  return std::make_unique<DummyWeights>(seed);
}

}  // namespace hadal
