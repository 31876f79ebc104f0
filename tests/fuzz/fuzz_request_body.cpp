// A request body: what is accepted has every number in its range and every list within its bound.
#include <cmath>

#include "chat_request.h"
#include "completion_request.h"
#include "fuzz_input.h"
#include "request_json.h"

namespace {

using namespace hadal;

constexpr int32_t kVocabSize = 1000;

void check_fields(const api::GenerationFields& fields) {
  const SamplingParams& sampling = fields.sampling;
  fuzz::expect(std::isfinite(sampling.temperature) && sampling.temperature >= 0, "temperature");
  fuzz::expect(sampling.top_p > 0 && sampling.top_p <= 1, "top_p");
  fuzz::expect(sampling.min_p >= 0 && sampling.min_p <= 1, "min_p");
  fuzz::expect(sampling.top_k >= 0, "top_k");
  fuzz::expect(std::isfinite(sampling.repetition_penalty) && sampling.repetition_penalty > 0,
               "repetition_penalty");
  fuzz::expect(fields.num_choices >= 1 && fields.num_choices <= api::kChoicesMax, "n");
  fuzz::expect(fields.stops.size() <= api::kStopsMax, "stop");
  fuzz::expect(fields.stop_token_ids.size() <= api::kStopTokensMax, "stop_token_ids");
  fuzz::expect(!fields.max_tokens || *fields.max_tokens >= 0, "max_tokens");
  for (const auto& [token, bias] : sampling.logit_bias) {
    fuzz::expect(token >= 0 && token < kVocabSize && std::isfinite(bias), "logit_bias");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto body = api::parse_request_json(fuzz::as_text(data, size));
  if (!body) {
    return 0;
  }
  const api::FieldContext context{.defaults = {}, .vocab_size = kVocabSize};
  if (auto chat = api::parse_chat_request(body.value(), context)) {
    check_fields(chat.value().fields);
    fuzz::expect(chat.value().messages.size() <= api::kMessagesMax, "messages");
    fuzz::expect(chat.value().tools.size() <= api::kToolsMax, "tools");
  }
  if (auto completion = api::parse_completion_request(body.value(), context)) {
    check_fields(completion.value().fields);
    fuzz::expect(completion.value().prompts.size() <= api::kPromptsMax, "prompt");
  }
  return 0;
}
