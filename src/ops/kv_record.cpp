// See kv_record.h.
#include <algorithm>
#include <bit>
#include <cstring>

#include <hadal/ops/kv_record.h>

namespace hadal {

namespace {

void write_bf16(const float* in, int64_t count, std::byte* to) {
  auto* out = reinterpret_cast<uint16_t*>(to);
  for (int64_t i = 0; i < count; ++i) {
    out[i] = f32_to_bf16(in[i]);
  }
}

/// One group of latents; its scale goes to `scale`.
void write_group(const float* in, int64_t count, std::byte* to, std::byte* scale) {
  uint32_t amax = 0;  // as bits: magnitudes order as their bits do, NaN above all
  for (int64_t i = 0; i < count; ++i) {
    amax = std::max(amax, std::bit_cast<uint32_t>(in[i]) & 0x7fffffffU);
  }
  const uint32_t bits = kv_scale_bits(amax);
  std::memcpy(scale, &bits, sizeof bits);
  const auto inverse = std::bit_cast<float>(kv_scale_inverse_bits(bits));
  for (int64_t i = 0; i < count; ++i) {
    to[i] = std::byte{f32_to_e4m3(in[i] * inverse)};
  }
}

}  // namespace

void write_kv_record(const KvRecord& record, const float* token, std::byte* to) {
  const int64_t numbers = record.latents + record.rope;
  switch (record.dtype) {
    case DType::f32:
      std::memcpy(to, token, static_cast<size_t>(numbers) * sizeof(float));
      return;
    case DType::bf16:
      write_bf16(token, numbers, to);
      return;
    default:
      break;
  }
  for (int64_t group = 0; group < record.num_groups(); ++group) {
    const int64_t begin = group * kQuantGroup;
    write_group(token + begin,
                std::min(kQuantGroup, record.latents - begin),
                to + begin,
                to + record.scales_at() + 4 * group);
  }
  write_bf16(token + record.latents, record.rope, to + record.rope_at());
}

}  // namespace hadal
