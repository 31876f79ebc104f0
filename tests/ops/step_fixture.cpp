// See step_fixture.h.
#include "step_fixture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace hadal::test {

namespace {

constexpr int64_t kLayers = 3;
constexpr int64_t kLayer = 1;

/// One token as FP8 pages hold it, by double arithmetic; `exact` is what they then say.
void write_fp8(const double* in, const KvRecord& record, std::byte* to, double* exact) {
  for (int64_t group = 0; group < record.num_groups(); ++group) {
    const int64_t begin = group * kQuantGroup;
    const int64_t end = std::min(record.latents, begin + kQuantGroup);
    double amax = 0.0;
    for (int64_t d = begin; d < end; ++d) {
      amax = std::max(amax, std::fabs(in[d]));
    }
    const double scale = kv_scale(amax);
    const auto stored = static_cast<float>(scale);
    std::memcpy(to + record.scales_at() + 4 * group, &stored, sizeof stored);
    for (int64_t d = begin; d < end; ++d) {
      const uint8_t code = f32_to_e4m3(static_cast<float>(in[d] / scale));
      to[d] = std::byte{code};
      exact[d] = static_cast<double>(e4m3_to_f32(code)) * scale;
    }
  }
  for (int64_t i = 0; i < record.rope; ++i) {
    const uint16_t bits = f32_to_bf16(static_cast<float>(in[record.latents + i]));
    std::memcpy(to + record.rope_at() + 2 * i, &bits, sizeof bits);
    exact[record.latents + i] = static_cast<double>(bf16_to_f32(bits));
  }
}

/// All tokens of a sequence as records, one after the other.
Matrix write_records(const Matrix& values, const KvRecord& record, std::byte* to) {
  if (!record.is_fp8()) {
    const Operand rounded = make_operand(values, record.dtype);
    std::memcpy(to, rounded.view().data, static_cast<size_t>(values.rows * record.size_bytes()));
    return rounded.exact;
  }
  Matrix exact(values.rows, values.columns);
  for (int64_t t = 0; t < values.rows; ++t) {
    const auto at = static_cast<size_t>(t * values.columns);
    write_fp8(&values.values[at], record, to + t * record.size_bytes(), &exact.values[at]);
  }
  return exact;
}

}  // namespace

StepFixture::StepFixture(Random& random,
                         const std::vector<int32_t>& sequences,
                         const std::vector<RowSpec>& rows)
    : rows_(rows) {
  std::vector<int32_t> sizes;
  for (const int32_t tokens : sequences) {
    sizes.push_back((tokens + kKvPageTokens - 1) / kKvPageTokens);
  }
  num_pages_ = std::accumulate(sizes.begin(), sizes.end(), 0) + 3;  // some pages stay unused
  std::vector<int32_t> deck(static_cast<size_t>(num_pages_));
  std::iota(deck.begin(), deck.end(), 0);
  std::shuffle(deck.begin(), deck.end(), random);
  for (const int32_t size : sizes) {
    pages_.emplace_back(deck.end() - size, deck.end());
    deck.resize(deck.size() - static_cast<size_t>(size));
  }
  const int32_t max_pages = *std::max_element(sizes.begin(), sizes.end()) + 2;
  const auto num_rows = static_cast<int32_t>(rows.size());
  std::vector<int32_t> offsets{0};
  std::vector<int32_t> token_rows;
  std::vector<int32_t> positions;
  std::vector<int32_t> lengths;
  page_table_ = GuardedTensor(DType::i32, Shape{num_rows, max_pages});
  forms_ = GuardedTensor(DType::u8, Shape{num_rows});
  for (int32_t r = 0; r < num_rows; ++r) {
    const RowSpec& row = rows[static_cast<size_t>(r)];
    for (int32_t i = 0; i < row.count; ++i) {
      token_rows.push_back(r);
      positions.push_back(row.begin + i);
    }
    const int32_t length = row.begin + row.count;
    offsets.push_back(offsets.back() + row.count);
    lengths.push_back(length);
    const auto& pages = pages_[static_cast<size_t>(row.sequence)];
    std::copy_n(pages.begin(),
                (length + kKvPageTokens - 1) / kKvPageTokens,
                page_table_.view().row<int32_t>(r));
    forms_.view().as<uint8_t>()[r] = row.form;
    if (row.form == kFormPrompt) {
      ++geometry_.num_prompt_rows;
      geometry_.num_prompt_tokens += row.count;
      geometry_.num_prompt_pages += (length + kKvPageTokens - 1) / kKvPageTokens;
    }
    geometry_.max_row_tokens = std::max(geometry_.max_row_tokens, row.count);
    geometry_.max_kv_length = std::max(geometry_.max_kv_length, length);
  }
  row_offsets_ = make_ints(offsets, Shape{num_rows + 1});
  const auto num_tokens = static_cast<int32_t>(token_rows.size());
  token_rows_ = make_ints(token_rows, Shape{num_tokens});
  positions_ = make_ints(positions, Shape{num_tokens});
  kv_lengths_ = make_ints(lengths, Shape{num_rows});
  geometry_.row_offsets = row_offsets_.view();
  geometry_.token_rows = token_rows_.view();
  geometry_.positions = positions_.view();
  geometry_.kv_lengths = kv_lengths_.view();
  geometry_.page_table = page_table_.view();
  geometry_.forms = forms_.view();
  geometry_.num_tokens = num_tokens;
  geometry_.num_rows = num_rows;
}

double kv_scale(double amax) {
  return std::exp2(std::ceil(std::log2(std::max(amax, 1e-4) / 448.0)));
}

CacheFixture::CacheFixture(const StepFixture& step,
                           const std::vector<Matrix>& values,
                           DType dtype,
                           int64_t latents)
    : record{dtype, latents, values.front().columns - latents} {
  pool = GuardedTensor(dtype, Shape{step.num_pages(), kLayers, kKvPageTokens, record.elements()});
  const int64_t size = record.size_bytes();
  for (size_t s = 0; s < values.size(); ++s) {
    std::vector<std::byte> records(static_cast<size_t>(values[s].rows * size));
    exact.push_back(write_records(values[s], record, records.data()));
    for (int32_t p = 0; p < values[s].rows; ++p) {
      const int64_t page = step.page(static_cast<int32_t>(s), p);
      const TensorView target = layer();
      std::memcpy(
          target.data + page * target.strides[0] * size_of(dtype) + p % kKvPageTokens * size,
          records.data() + p * size,
          static_cast<size_t>(size));
    }
  }
}

TensorView CacheFixture::layer() const {
  TensorView view = pool.view();
  const Shape& shape = pool.view().shape;
  view.data += kLayer * view.strides[1] * size_of(view.dtype);
  view.strides = Shape{view.strides[0], shape[3], 1};
  view.shape = Shape{shape[0], shape[2], shape[3]};
  return view;
}

}  // namespace hadal::test
