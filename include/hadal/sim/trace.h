// What arrives in a simulation: requests with their times, tenants and token contents.
//
// Contents are segments: (seed, begin, count) stands for tokens that only depend on the seed, so a
// trace of millions of tokens is small, and two prompts share a prefix exactly when their segments
// do. An answer is a segment too, which is how the next turn of a conversation contains it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/base/result.h>
#include <hadal/text/token.h>

namespace hadal::sim {

inline constexpr int32_t kVocabSize = 50'000;
inline constexpr TokenId kStopToken = 0;  ///< no segment contains it

/// Tokens begin .. begin + count - 1 of the endless sequence that `seed` stands for.
struct TokenSegment {
  uint64_t seed = 0;
  int32_t begin = 0;
  int32_t count = 0;
};

/// Token `index` of a seed's sequence: 1 .. kVocabSize - 1.
TokenId token_of(uint64_t seed, int32_t index);

void append_tokens(const TokenSegment& segment, std::vector<TokenId>& out);

struct SimRequest {
  double arrival_s = 0.0;  ///< since the start; with `after`, since that request's end
  int32_t after = -1;      ///< earlier request whose end this one waits for; -1 = none
  std::string tenant;
  std::vector<TokenSegment> prompt;
  uint64_t output_seed = 0;
  int32_t output_tokens = 0;   ///< at least 1, kStopToken included when it ends by one
  int32_t max_new_tokens = 0;  ///< at least output_tokens; larger = it ends by kStopToken
  int32_t priority = 0;

  int32_t num_prompt_tokens() const;
};

struct Trace {
  std::string name;
  std::vector<SimRequest> requests;
};

/// Reads one JSON object a line: the Mooncake format (`timestamp` in ms, `input_length`,
/// `output_length`, `hash_ids` of 512-token blocks; its own `tenant` is optional) or hadal's own as
/// write_trace() makes it. invalid_argument names the line and the field.
Result<Trace> read_trace(std::string_view jsonl, std::string name);

/// hadal's own format: {"arrival_s","after","tenant","prompt":[[seed,begin,count],...],
/// "output":[seed,count],"max_new_tokens","priority"}; absent fields have their defaults.
std::string write_trace(const Trace& trace);

}  // namespace hadal::sim
