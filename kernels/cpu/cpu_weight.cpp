// Packs checkpoint slices into panels. The hard thing: scale blocks are 128 x 128 in the unsharded
// matrix, so a slice may begin inside a block, and stacked parts each have their own alignment.
#include "cpu_weight.h"

#include <algorithm>
#include <cstring>

#include <hadal/backend/check_weight.h>

namespace hadal::cpu {

namespace {

PanelType panel_type(DType dtype) {
  switch (dtype) {
    case DType::f8_e4m3:
      return PanelType::e4m3;
    case DType::bf16:
      return PanelType::bf16;
    default:
      return PanelType::f32;
  }
}

int64_t element_size(PanelType type) {
  return type == PanelType::e4m3 ? 1 : type == PanelType::bf16 ? 2 : 4;
}

/// A feature of a packed matrix: a row of a part, or (transposed) a column of it.
struct Feature {
  const RawMatrix* part = nullptr;  ///< null = padding, zeros
  int64_t index = 0;
};

}  // namespace

/// Fills a PanelStorage from features given in order.
class PanelBuilder {
 public:
  /// With `transposed`, features are columns of the part and k runs over its rows row_begin...
  PanelBuilder(DType dtype, int64_t columns, bool transposed, int64_t row_begin)
      : type_(panel_type(dtype)),
        columns_(columns),
        transposed_(transposed),
        row_begin_(row_begin) {}

  PanelStorage build(const std::vector<Feature>& features) {
    PanelStorage s;
    const Feature& first = features.front();
    make_groups(*first.part, s.group_ends_);
    const auto num_panels = static_cast<int64_t>(features.size()) / kLanes;
    const auto num_groups = static_cast<int64_t>(s.group_ends_.size());
    s.data_.resize(static_cast<size_t>(num_panels * columns_ * kLanes * element_size(type_)));
    if (type_ == PanelType::e4m3) {
      s.scales_.resize(static_cast<size_t>(num_panels * num_groups * kLanes));
    }
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      const Feature* lanes = features.data() + panel * kLanes;
      fill_panel(lanes, panel, s);
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        if (type_ == PanelType::e4m3 && lanes[lane].part != nullptr) {
          fill_scales(lanes[lane], panel, lane, s);
        }
      }
    }
    s.matrix_ = PanelMatrix{type_,
                            num_panels,
                            columns_,
                            s.data_.data(),
                            s.scales_.data(),
                            s.group_ends_.data(),
                            num_groups};
    return s;
  }

 private:
  /// Groups of k end where a scale block does, so each has one scale a feature.
  void make_groups(const RawMatrix& part, std::vector<int32_t>& ends) const {
    const int64_t offset =
        transposed_ ? (part.row_offset + row_begin_) % kScaleBlock : part.column_offset;
    for (int64_t end = kScaleBlock - offset; end < columns_; end += kScaleBlock) {
      ends.push_back(static_cast<int32_t>(end));
    }
    ends.push_back(static_cast<int32_t>(columns_));
  }

  void fill_panel(const Feature* lanes, int64_t panel, PanelStorage& s) const {
    std::byte* out = s.data_.data() + panel * columns_ * kLanes * element_size(type_);
    switch (lanes[0].part->values.dtype) {
      case DType::f8_e4m3:
        interleave(
            lanes, reinterpret_cast<uint8_t*>(out), +[](uint8_t code) { return code; });
        return;
      case DType::bf16:
        interleave(
            lanes, reinterpret_cast<uint16_t*>(out), +[](uint16_t bits) { return bits; });
        return;
      case DType::f16:
        interleave(
            lanes, reinterpret_cast<float*>(out), +[](uint16_t bits) { return f16_to_f32(bits); });
        return;
      default:
        interleave(
            lanes, reinterpret_cast<float*>(out), +[](float value) { return value; });
    }
  }

  /// out[k][lane] = convert(element k of the lane's feature); padding lanes stay zero.
  template <class Out, class In>
  void interleave(const Feature* lanes, Out* out, Out (*convert)(In)) const {
    const In* sources[kLanes] = {};
    int64_t step = 1;
    int64_t count = 0;
    for (; count < kLanes && lanes[count].part != nullptr; ++count) {
      const ConstTensorView& values = lanes[count].part->values;
      step = transposed_ ? values.strides[0] : 1;
      sources[count] = transposed_ ? values.row<In>(row_begin_) + lanes[count].index
                                   : values.row<In>(lanes[count].index);
    }
    for (int64_t k = 0; k < columns_; ++k) {
      for (int64_t lane = 0; lane < count; ++lane) {
        out[k * kLanes + lane] = convert(sources[lane][k * step]);
      }
    }
  }

  void fill_scales(const Feature& feature, int64_t panel, int64_t lane, PanelStorage& s) const {
    const RawMatrix& part = *feature.part;
    const auto num_groups = static_cast<int64_t>(s.group_ends_.size());
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t k = group == 0 ? 0 : s.group_ends_[static_cast<size_t>(group - 1)];
      const int64_t row = transposed_ ? row_begin_ + k : feature.index;
      const int64_t column = transposed_ ? feature.index : k;
      const float scale = part.scale_inv.row<float>(
          (part.row_offset + row) / kScaleBlock)[(part.column_offset + column) / kScaleBlock];
      const int64_t at = (panel * num_groups + group) * kLanes + lane;
      s.scales_[static_cast<size_t>(at)] = scale * 256.0F;
    }
  }

  PanelType type_;
  int64_t columns_;
  bool transposed_;
  int64_t row_begin_;
};

namespace {

void add_rows(std::vector<Feature>& features, const RawMatrix& part, int64_t begin, int64_t count) {
  for (int64_t row = begin; row < begin + count; ++row) {
    features.push_back(Feature{&part, row});
  }
}

void pad_to_panel(std::vector<Feature>& features) {
  while (features.size() % static_cast<size_t>(kLanes) != 0) {
    features.push_back(Feature{});
  }
}

PanelStorage build_rows(const RawMatrix& part, int64_t begin, int64_t count) {
  std::vector<Feature> features;
  add_rows(features, part, begin, count);
  pad_to_panel(features);
  PanelBuilder builder(part.values.dtype, part.values.shape[1], false, 0);
  return builder.build(features);
}

Result<std::unique_ptr<Weight>> prepare_stacked(const WeightSource& source) {
  std::vector<Feature> features;
  for (const RawMatrix& part : source.parts) {
    add_rows(features, part, 0, part.values.shape[0]);
  }
  const auto out_features = static_cast<int64_t>(features.size());
  pad_to_panel(features);
  const ConstTensorView& first = source.parts.front().values;
  auto weight =
      std::make_unique<CpuWeight>(source.role, first.dtype, out_features, first.shape[1], 1);
  PanelBuilder builder(first.dtype, first.shape[1], false, 0);
  weight->matrices.push_back(builder.build(features));
  return std::unique_ptr<Weight>(std::move(weight));
}

Result<std::unique_ptr<Weight>> prepare_gate_up(const WeightSource& source) {
  const ConstTensorView& first = source.parts.front().values;
  const int64_t intermediate = first.shape[0];
  const auto num_experts = static_cast<int32_t>(source.parts.size() / 2);
  auto weight = std::make_unique<CpuWeight>(
      source.role, first.dtype, intermediate, first.shape[1], num_experts);
  for (size_t expert = 0; expert < source.parts.size(); expert += 2) {
    std::vector<Feature> features;
    for (int64_t begin = 0; begin < intermediate; begin += kLanes) {
      const int64_t count = std::min(kLanes, intermediate - begin);
      add_rows(features, source.parts[expert], begin, count);
      pad_to_panel(features);
      add_rows(features, source.parts[expert + 1], begin, count);
      pad_to_panel(features);
    }
    PanelBuilder builder(first.dtype, first.shape[1], false, 0);
    weight->matrices.push_back(builder.build(features));
  }
  return std::unique_ptr<Weight>(std::move(weight));
}

Result<std::unique_ptr<Weight>> prepare_down(const WeightSource& source) {
  const ConstTensorView& first = source.parts.front().values;
  auto weight = std::make_unique<CpuWeight>(source.role,
                                            first.dtype,
                                            first.shape[0],
                                            first.shape[1],
                                            static_cast<int32_t>(source.parts.size()));
  for (const RawMatrix& part : source.parts) {
    weight->matrices.push_back(build_rows(part, 0, part.values.shape[0]));
  }
  return std::unique_ptr<Weight>(std::move(weight));
}

Result<std::unique_ptr<Weight>> prepare_kv_b(const WeightSource& source) {
  const RawMatrix& part = source.parts.front();
  const int64_t nope = source.qk_nope_head_dim;
  const int64_t value = source.v_head_dim;
  const int64_t rows = part.values.shape[0];
  const int64_t lora = part.values.shape[1];
  auto weight = std::make_unique<CpuWeight>(source.role, part.values.dtype, rows, lora, 1);
  weight->num_heads = source.num_heads;
  weight->qk_nope_head_dim = source.qk_nope_head_dim;
  weight->v_head_dim = source.v_head_dim;
  std::vector<Feature> latents;
  for (int64_t column = 0; column < lora; ++column) {
    latents.push_back(Feature{&part, column});
  }
  pad_to_panel(latents);
  for (int64_t head = 0; head < source.num_heads; ++head) {
    const int64_t begin = head * (nope + value);
    weight->matrices.push_back(build_rows(part, begin, nope));
    weight->matrices.push_back(build_rows(part, begin + nope, value));
    PanelBuilder builder(part.values.dtype, nope, true, begin);
    weight->matrices.push_back(builder.build(latents));
  }
  return std::unique_ptr<Weight>(std::move(weight));
}

}  // namespace

int64_t PanelStorage::size_bytes() const {
  return static_cast<int64_t>(data_.size() + scales_.size() * sizeof(float));
}

int64_t CpuWeight::size_bytes() const {
  int64_t total = 0;
  for (const PanelStorage& matrix : matrices) {
    total += matrix.size_bytes();
  }
  return total;
}

Result<std::unique_ptr<Weight>> prepare_cpu_weight(const WeightSource& source) {
  HADAL_RETURN_IF_ERROR(check(source));
  switch (source.role) {
    case WeightRole::linear:
      return prepare_stacked(source);
    case WeightRole::gate_up:
      return prepare_gate_up(source);
    case WeightRole::down:
      return prepare_down(source);
    case WeightRole::kv_b:
      return prepare_kv_b(source);
    case WeightRole::router:
    case WeightRole::lm_head:
      return prepare_stacked(source);
  }
  return Error{ErrorCode::invalid_argument, "prepare_weight: unknown role"};
}

}  // namespace hadal::cpu
