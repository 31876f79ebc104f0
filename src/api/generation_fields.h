// The request fields that /v1/chat/completions and /v1/completions share: sampling, stops, limits,
// streaming. Everything is range-checked here, before the engine sees a number.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <hadal/api/server.h>
#include <hadal/plan/batch_plan.h>

#include "field_reader.h"

namespace hadal::api {

/// What values are checked against and default to.
struct FieldContext {
  SamplingDefaults defaults;
  int32_t vocab_size = 0;
};

struct GenerationFields {
  std::string model;  ///< as sent; empty when absent
  SamplingParams sampling;
  std::optional<uint64_t> seed;
  std::optional<int32_t> max_tokens;
  std::vector<std::string> stops;
  std::vector<TokenId> stop_token_ids;
  bool ignores_eos = false;
  bool keeps_stop = false;
  bool skips_special_tokens = true;
  int32_t num_choices = 1;
  bool is_stream = false;
  bool includes_usage = false;
  bool includes_continuous_usage = false;
  int32_t priority = 0;
  std::string cache_salt;
};

inline constexpr int64_t kChoicesMax = 128;
inline constexpr size_t kStopsMax = 64;
inline constexpr size_t kStopBytesMax = 4096;
inline constexpr size_t kStopTokensMax = 1024;
inline constexpr size_t kLogitBiasMax = 1024;
inline constexpr size_t kModelNameBytesMax = 1024;
inline constexpr int64_t kTopLogprobsMax = 20;

/// Reads everything but logprobs. Errors go to the reader.
GenerationFields read_generation_fields(FieldReader& fields, const FieldContext& context);

}  // namespace hadal::api
