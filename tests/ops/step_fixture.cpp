// See step_fixture.h.
#include "step_fixture.h"

#include <algorithm>
#include <numeric>

namespace hadal::test {

namespace {

constexpr int64_t kLayers = 3;
constexpr int64_t kLayer = 1;

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

CacheFixture::CacheFixture(const StepFixture& step,
                           const std::vector<Matrix>& values,
                           DType dtype) {
  const int64_t width = values.front().columns;
  pool = GuardedTensor(dtype, Shape{step.num_pages(), kLayers, kKvPageTokens, width});
  for (size_t s = 0; s < values.size(); ++s) {
    const Operand rounded = make_operand(values[s], dtype);
    exact.push_back(rounded.exact);
    const int64_t size = size_of(dtype) * width;
    for (int32_t p = 0; p < values[s].rows; ++p) {
      const int64_t page = step.page(static_cast<int32_t>(s), p);
      const TensorView target = layer();
      std::memcpy(
          target.data + page * target.strides[0] * size_of(dtype) + p % kKvPageTokens * size,
          rounded.view().data + p * size,
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
