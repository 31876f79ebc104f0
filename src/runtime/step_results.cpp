// See step_results.h.
#include "step_results.h"

namespace hadal {
namespace {

constexpr int64_t kAlign = 256;

}  // namespace

SampleOutputs place_results(std::byte* base, Device device, int64_t num_entries, int64_t num_top) {
  SampleOutputs out;
  const auto take = [&](DType dtype, const Shape& shape) {
    std::byte* at = base == nullptr ? nullptr : base + out.size_bytes;
    const TensorView view = make_view(at, dtype, shape, device);
    out.size_bytes += (shape.numel() * size_of(dtype) + kAlign - 1) / kAlign * kAlign;
    return view;
  };
  out.tokens = take(DType::i32, Shape{num_entries});
  out.logprobs = take(DType::f32, Shape{num_entries});
  out.has_nan = take(DType::u8, Shape{num_entries});
  if (num_top > 0) {
    out.top_tokens = take(DType::i32, Shape{num_entries, num_top});
    out.top_logprobs = take(DType::f32, Shape{num_entries, num_top});
  }
  return out;
}

int64_t result_bytes(int64_t num_entries, int64_t num_top) {
  return place_results(nullptr, Device{}, num_entries, num_top).size_bytes;
}

StepResult read_results(uint64_t step_id,
                        const std::vector<PlanRow>& rows,
                        const SamplePlan& sampling,
                        const SampleOutputs& host) {
  StepResult result;
  result.step_id = step_id;
  std::vector<size_t> places(rows.size());
  for (size_t r = 0; r < rows.size(); ++r) {
    if (rows[r].num_logits > 0) {
      places[r] = result.rows.size();
      result.rows.push_back({});
      result.rows.back().slot = rows[r].slot;
    }
  }
  for (size_t i = 0; i < sampling.asks.size(); ++i) {
    RowResult& row = result.rows[places[sampling.asks[i].row]];
    const auto index = static_cast<int64_t>(i);
    std::vector<TokenLogprob> top;
    for (int32_t t = 0; t < sampling.num_top[i]; ++t) {
      top.push_back(
          {host.top_tokens.row<int32_t>(index)[t], host.top_logprobs.row<float>(index)[t]});
    }
    const TokenLogprob token{host.tokens.as<int32_t>()[i], host.logprobs.as<float>()[i]};
    row.has_nan = row.has_nan || host.has_nan.as<uint8_t>()[i] != 0;
    if (sampling.asks[i].is_prompt) {
      row.prompt_logprobs.push_back(token);
      row.prompt_top.push_back(std::move(top));
    } else {
      row.token = token.token;
      row.logprob = token.logprob;
      row.top = std::move(top);
    }
  }
  return result;
}

}  // namespace hadal
