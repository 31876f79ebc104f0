// The step plan's frame: whatever decodes is executable as to shape, and encodes to the same bytes.
#include <algorithm>
#include <span>
#include <vector>

#include <hadal/plan/batch_plan.h>

#include "fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto plan = hadal::decode_batch_plan(bytes);
  if (!plan) {
    fuzz::expect(plan.error().code == hadal::ErrorCode::data_loss, "damage is data loss");
    return 0;
  }
  int64_t num_tokens = 0;
  for (const hadal::PlanRow& row : plan.value().rows) {
    fuzz::expect(row.num_tokens > 0 && row.num_logits <= row.num_tokens, "rows are consistent");
    num_tokens += row.num_tokens;
  }
  fuzz::expect(num_tokens == static_cast<int64_t>(plan.value().tokens.size()), "tokens of rows");
  const std::vector<std::byte> again = hadal::encode(plan.value());
  fuzz::expect(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()), "same bytes");
  return 0;
}
