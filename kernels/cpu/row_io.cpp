// Conversions at the borders of ops. E4M3 groups are scaled by amax / 448 with amax at least 1e-4,
// as in the reference implementation of DeepSeek-V3.
#include "row_io.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace hadal::cpu {

namespace {

constexpr float kAmaxFloor = 1e-4F;
constexpr float kE4m3Max = 448.0F;

float group_scale(const float* x, int64_t count) {
  float amax = kAmaxFloor;
  for (int64_t i = 0; i < count; ++i) {
    amax = std::max(amax, std::fabs(x[i]));
  }
  return amax / kE4m3Max;
}

}  // namespace

void load_row(const KernelTable& kernels,
              const ConstTensorView& matrix,
              int64_t row,
              int64_t column,
              int64_t count,
              float* out) {
  if (matrix.dtype == DType::bf16) {
    kernels.bf16_to_f32(matrix.row<uint16_t>(row) + column, out, count);
  } else {
    std::memcpy(out, matrix.row<float>(row) + column, static_cast<size_t>(count) * sizeof(float));
  }
}

void store_row(const KernelTable& kernels,
               const TensorView& matrix,
               int64_t row,
               int64_t column,
               int64_t count,
               const float* in) {
  if (matrix.dtype == DType::bf16) {
    kernels.f32_to_bf16(in, matrix.row<uint16_t>(row) + column, count);
  } else {
    std::memcpy(matrix.row<float>(row) + column, in, static_cast<size_t>(count) * sizeof(float));
  }
}

void load_activation_row(const KernelTable& kernels,
                         const ConstActivationView& x,
                         int64_t row,
                         float* out) {
  const int64_t columns = x.values.shape[1];
  if (x.format != ActFormat::e4m3) {
    load_row(kernels, x.values, row, 0, columns, out);
    return;
  }
  const auto* codes = x.values.row<uint8_t>(row);
  for (int64_t k = 0; k < columns; ++k) {
    const float scale =
        x.scales.as<float>()[row * x.scales.strides[0] + k / kQuantGroup * x.scales.strides[1]];
    out[k] = e4m3_to_f32(codes[k]) * scale;
  }
}

void store_activation(const KernelTable& kernels,
                      const ActivationView& x,
                      int64_t row,
                      int64_t column,
                      int64_t count,
                      const float* in) {
  if (x.format != ActFormat::e4m3) {
    store_row(kernels, x.values, row, column, count, in);
    return;
  }
  auto* codes = x.values.row<uint8_t>(row);
  for (int64_t begin = 0; begin < count; begin += kQuantGroup) {
    const int64_t size = std::min(kQuantGroup, count - begin);
    const float scale = group_scale(in + begin, size);
    x.scales.as<float>()[row * x.scales.strides[0] +
                         (column + begin) / kQuantGroup * x.scales.strides[1]] = scale;
    for (int64_t i = 0; i < size; ++i) {
      codes[column + begin + i] = f32_to_e4m3(in[begin + i] / scale);
    }
  }
}

void load_kv_record(const KernelTable& kernels,
                    const KvRecord& record,
                    const std::byte* from,
                    float* out) {
  const int64_t numbers = record.latents + record.rope;
  switch (record.dtype) {
    case DType::f32:
      std::memcpy(out, from, static_cast<size_t>(numbers) * sizeof(float));
      return;
    case DType::bf16:
      kernels.bf16_to_f32(reinterpret_cast<const uint16_t*>(from), out, numbers);
      return;
    default:
      break;
  }
  const auto* codes = reinterpret_cast<const uint8_t*>(from);
  for (int64_t group = 0; group < record.num_groups(); ++group) {
    float scale = 0.0F;
    std::memcpy(&scale, from + record.scales_at() + 4 * group, sizeof scale);
    const int64_t begin = group * kQuantGroup;
    kernels.e4m3_to_f32(
        codes + begin, scale, out + begin, std::min(kQuantGroup, record.latents - begin));
  }
  const auto* rope = reinterpret_cast<const uint16_t*>(from + record.rope_at());
  kernels.bf16_to_f32(rope, out + record.latents, record.rope);
}

void round_to_e4m3(float* x, int64_t count) {
  for (int64_t begin = 0; begin < count; begin += kQuantGroup) {
    const int64_t size = std::min(kQuantGroup, count - begin);
    const float scale = group_scale(x + begin, size);
    for (int64_t i = 0; i < size; ++i) {
      x[begin + i] = e4m3_to_f32(f32_to_e4m3(x[begin + i] / scale)) * scale;
    }
  }
}

}  // namespace hadal::cpu
