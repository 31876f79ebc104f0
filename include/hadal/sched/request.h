// A request as the engine and the scheduler see it, and the events that answer it.
//
// These types live below both, so that the scheduler can be driven without the engine (tests, the
// simulator).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <hadal/base/clock.h>
#include <hadal/plan/batch_plan.h>

namespace hadal {

using RequestId = uint64_t;

/// Why a sequence ended; every accepted request gets exactly one of these.
enum class FinishReason : uint8_t {
  stop,
  length,
  cancelled,
  error,     ///< see TokenEvent::error
  deadline,  ///< GenerateRequest::deadline came first; `error` says so
};

/// One sequence to generate; already validated against the model's limits by the caller.
struct GenerateRequest {
  std::vector<TokenId> prompt;  ///< not empty
  SamplingParams sampling;
  int32_t max_new_tokens = 0;  ///< 0 = only the prompt (echo, scoring)
  std::vector<TokenId> stop_token_ids;
  bool ignore_stop_tokens = false;  ///< `ignore_eos`
  bool wants_prompt_logprobs = false;
  int32_t priority = 0;         ///< larger is more urgent, policy `priority` only
  std::string cache_namespace;  ///< prefixes are shared only inside one namespace
  std::string share_key;        ///< whose share of the machine it uses: a tenant, an API key
  double share_weight = 1.0;    ///< of that key, positive: 2 may use twice as much as 1
  TimePoint deadline = TimePoint::max();  ///< then it ends with finish = deadline
};

struct TokenEvent {
  RequestId id = 0;
  std::optional<TokenId> token;  ///< absent in a terminal event that carries no token
  std::optional<TokenLogprob> logprob;
  std::vector<TokenLogprob> top_logprobs;
  /// First event only: logprob of prompt token i + 1 given tokens 0..i, and the best alternatives.
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<std::vector<TokenLogprob>> prompt_top_logprobs;
  int32_t num_cached_tokens = 0;  ///< prompt tokens served from the radix cache
  std::optional<FinishReason> finish;
  std::optional<TokenId> matched_stop_token;
  std::string error;  ///< with finish == error or deadline: what the client is told
};

/// Called on the engine thread, in order, ending with exactly one event that has `finish`. Must not
/// block.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void on_event(TokenEvent event) noexcept = 0;
};

/// `--radix-eviction-policy`: which unleased page of the radix cache goes first.
enum class EvictionPolicy : uint8_t {
  lru,  ///< the one unused for longest
  lfu,  ///< of the least used ones (counted exactly to 15, then by doublings), with aging: a page
        ///< that was popular once sinks as others go
  priority,  ///< of those whose users had the lowest priority (of -16..15; others count as the
             ///< ends)
};

/// `--schedule-policy`.
enum class SchedulePolicy : uint8_t { lpm, fcfs, random, dfs_weight, priority };

}  // namespace hadal
