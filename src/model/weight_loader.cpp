// Host buffers live only inside one call: an R1 layer's experts are 11 GB unsharded.
#include "weight_loader.h"

#include <algorithm>
#include <vector>

namespace hadal {
namespace {

/// Types that a prepared weight or a table may have.
std::optional<DType> tensor_type(StoredType type) {
  switch (type) {
    case StoredType::f32:
      return DType::f32;
    case StoredType::f16:
      return DType::f16;
    case StoredType::bf16:
      return DType::bf16;
    case StoredType::f8_e4m3:
      return DType::f8_e4m3;
    case StoredType::f64:
    case StoredType::f8_e5m2:
    case StoredType::i64:
    case StoredType::i32:
    case StoredType::i16:
    case StoredType::i8:
    case StoredType::u8:
    case StoredType::boolean:
      return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

/// Bytes of one part and the matrix that looks at them.
struct WeightLoader::HostMatrix {
  std::vector<std::byte> values;
  std::vector<float> scales;
  std::optional<GeneratedValues> generated;  ///< set = values stay empty
  RawMatrix matrix;
};

WeightLoader::WeightLoader(const WeightStore& store, Backend& backend, LoadMeter* meter)
    : store_(store), backend_(backend), meter_(meter), stream_(backend.create_stream()) {}

Result<WeightLoader::HostMatrix> WeightLoader::read(const TensorPart& part,
                                                    int64_t padded_rows,
                                                    bool may_generate) {
  const auto stored = store_.find(part.values);
  if (!stored) {
    return stored.error();
  }
  const std::optional<DType> dtype = tensor_type(stored.value());
  HADAL_CHECK(dtype.has_value(), "unexpected stored type of " + part.values.name);
  const WeightSlice& slice = part.slice;
  const int64_t num_rows = std::max(slice.num_rows, padded_rows);
  const auto read_bytes =
      static_cast<size_t>(slice.num_rows * slice.num_cols * stored_size(stored.value()));
  HostMatrix host;
  if (may_generate && num_rows == slice.num_rows && backend_.generates_weights()) {
    host.generated = store_.generated(part.values, slice);
  }
  if (!host.generated) {
    host.values.resize(static_cast<size_t>(num_rows * slice.num_cols * size_of(*dtype)));
    HADAL_RETURN_IF_ERROR(
        store_.read(part.values, slice, std::span(host.values).first(read_bytes)));
  }
  const std::byte* data = host.generated ? nullptr : host.values.data();
  host.matrix.values = make_view(data, *dtype, Shape{num_rows, slice.num_cols});
  host.matrix.row_offset = slice.row_begin % kScaleBlock;
  host.matrix.column_offset = slice.col_begin % kScaleBlock;
  auto bytes = static_cast<int64_t>(read_bytes);
  if (part.scale) {
    const WeightSlice blocks = part.scale_slice();
    host.scales.resize(static_cast<size_t>(blocks.num_rows * blocks.num_cols));
    HADAL_RETURN_IF_ERROR(read_f32(store_, *part.scale, blocks, host.scales));
    host.matrix.scale_inv = make_view(reinterpret_cast<std::byte*>(host.scales.data()),
                                      DType::f32,
                                      Shape{blocks.num_rows, blocks.num_cols});
    bytes += static_cast<int64_t>(host.scales.size() * sizeof(float));
  }
  if (meter_ != nullptr) {
    meter_->add(bytes);
  }
  return host;
}

Result<std::unique_ptr<Weight>> WeightLoader::weight(WeightRole role,
                                                     std::span<const TensorPart* const> parts,
                                                     const KvBHeads& heads,
                                                     int64_t padded_rows) {
  std::vector<HostMatrix> hosts;
  std::vector<RawMatrix> matrices;
  hosts.reserve(parts.size());
  for (const TensorPart* part : parts) {
    auto host = read(*part, padded_rows, true);
    if (!host) {
      return host.error();
    }
    hosts.push_back(std::move(host).value());
    if (hosts.back().generated) {
      hosts.back().matrix.generated = &*hosts.back().generated;
    }
    matrices.push_back(hosts.back().matrix);
  }
  WeightSource source;
  source.role = role;
  source.parts = matrices;
  source.num_heads = static_cast<int32_t>(heads.num_heads);
  source.qk_nope_head_dim = static_cast<int32_t>(heads.qk_nope_head_dim);
  source.v_head_dim = static_cast<int32_t>(heads.v_head_dim);
  auto prepared = backend_.prepare_weight(source);
  if (!prepared) {
    return Error{prepared.error().code,
                 "weights: tensor '" + parts.front()->values.name + "'" +
                     (parts.size() > 1 ? " and those stacked on it: " : ": ") +
                     prepared.error().message};
  }
  return prepared;
}

Result<DeviceTensor> WeightLoader::upload(ConstTensorView host) {
  const int64_t bytes = host.shape.numel() * size_of(host.dtype);
  auto memory = backend_.allocate(bytes, MemoryKind::device);
  if (!memory) {
    return memory.error();
  }
  DeviceTensor tensor;
  tensor.memory = std::move(memory).value();
  tensor.view = make_view(tensor.memory.data(), host.dtype, host.shape, backend_.device());
  backend_.copy(tensor.view, host, *stream_);
  stream_->synchronize();
  return tensor;
}

Result<DeviceTensor> WeightLoader::vector_f32(const TensorPart& part) {
  std::vector<float> values(static_cast<size_t>(part.slice.num_cols));
  HADAL_RETURN_IF_ERROR(read_f32(store_, part.values, part.slice, values));
  if (meter_ != nullptr) {
    meter_->add(part.size_bytes());
  }
  return upload(make_view(
      reinterpret_cast<std::byte*>(values.data()), DType::f32, Shape{part.slice.num_cols}));
}

Result<bool> WeightLoader::are_equal(const TensorPart& a, const TensorPart& b) {
  constexpr int64_t kBlockRows = 512;
  const auto type = store_.find(a.values);
  const auto other_type = store_.find(b.values);
  if (!type || !other_type) {
    return type ? other_type.error() : type.error();
  }
  if (type.value() != other_type.value()) {
    return false;
  }
  std::vector<std::byte> first;
  std::vector<std::byte> second;
  for (int64_t row = 0; row < a.slice.num_rows; row += kBlockRows) {
    WeightSlice block = a.slice;
    block.row_begin += row;
    block.num_rows = std::min(kBlockRows, a.slice.num_rows - row);
    first.resize(static_cast<size_t>(block.num_rows * block.num_cols * stored_size(type.value())));
    second.resize(first.size());
    HADAL_RETURN_IF_ERROR(store_.read(a.values, block, first));
    HADAL_RETURN_IF_ERROR(store_.read(b.values, block, second));
    if (first != second) {
      return false;
    }
  }
  return true;
}

Result<DeviceTensor> WeightLoader::table(const TensorPart& part, int64_t padded_rows) {
  auto host = read(part, padded_rows, false);
  if (!host) {
    return host.error();
  }
  const ConstTensorView& values = host.value().matrix.values;
  if (values.dtype != DType::f16) {
    return upload(values);
  }
  std::vector<float> wide(static_cast<size_t>(values.shape.numel()));
  for (size_t i = 0; i < wide.size(); ++i) {
    wide[i] = f16_to_f32(values.as<uint16_t>()[i]);
  }
  return upload(make_view(reinterpret_cast<std::byte*>(wide.data()), DType::f32, values.shape));
}

}  // namespace hadal
