// Packs checkpoint slices into panels. The hard thing: scale blocks are 128 x 128 in the unsharded
// matrix, so a slice may begin inside a block, and stacked parts each have their own alignment.
#include "cpu_weight.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace hadal::cpu {

namespace {

Error bad_source(const std::string& message) {
  return Error{ErrorCode::invalid_argument, "prepare_weight: " + message};
}

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

int64_t blocks(int64_t offset, int64_t count) {
  return (offset + count + kScaleBlock - 1) / kScaleBlock;
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

/// NaN codes mean a damaged or misread checkpoint; the kernels' conversion does not keep them.
bool has_nan_code(const ConstTensorView& values) {
  for (int64_t row = 0; row < values.shape[0]; ++row) {
    const auto* codes = values.row<uint8_t>(row);
    if (std::any_of(
            codes, codes + values.shape[1], [](uint8_t c) { return (c & 0x7fU) == 0x7fU; })) {
      return true;
    }
  }
  return false;
}

Status check_part(const RawMatrix& part, const RawMatrix& first) {
  const ConstTensorView& v = part.values;
  if (v.data == nullptr || v.shape.rank != 2 || v.shape.numel() <= 0 || !v.has_dense_rows()) {
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
  if (v.dtype != DType::f8_e4m3) {
    return ok_status();
  }
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
  if (has_nan_code(v)) {
    return bad_source("an f8_e4m3 weight holds NaN");
  }
  return ok_status();
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
  if (source.parts.size() % 2 != 0) {
    return bad_source("expected pairs of gate and up, got an odd number of parts");
  }
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
  if (source.num_heads < 1 || nope < 1 || value < 1 || rows != source.num_heads * (nope + value)) {
    return bad_source("expected kv_b with num_heads * (qk_nope_head_dim + v_head_dim) = " +
                      std::to_string(source.num_heads * (nope + value)) + " rows, got " +
                      std::to_string(rows));
  }
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
      return prepare_stacked(source);
    case WeightRole::gate_up:
      return prepare_gate_up(source);
    case WeightRole::down:
      return prepare_down(source);
    case WeightRole::kv_b:
    case WeightRole::router:
    case WeightRole::lm_head:
      if (source.parts.size() != 1) {
        return bad_source("expected one part, got " + std::to_string(source.parts.size()));
      }
      return source.role == WeightRole::kv_b ? prepare_kv_b(source) : prepare_stacked(source);
  }
  return bad_source("unknown role");
}

}  // namespace hadal::cpu
