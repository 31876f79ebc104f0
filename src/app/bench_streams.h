// Streams through a running engine, without HTTP: greedy, of random prompts, timed token by token.
#pragma once

#include <cstdint>

#include <hadal/engine/engine.h>

namespace hadal {

struct StreamScenario {
  const char* name;
  int32_t num_streams;
  int32_t prompt_tokens;
  int32_t new_tokens;
};

struct StreamTimes {
  double prefill_s = 0;  ///< submit to the first token of the last stream
  double decode_tokens_per_s = 0;
  TimePoint all_decode;  ///< from here to first_end every stream decodes
  TimePoint first_end;
};

class StreamBench {
 public:
  StreamBench(Engine& engine, int32_t vocab_size) : engine_(engine), vocab_size_(vocab_size) {}

  /// Runs all streams of the scenario to their ends. unavailable when one fails.
  Result<StreamTimes> run(const StreamScenario& scenario);

 private:
  GenerateRequest make_request(const StreamScenario& scenario);

  Engine& engine_;
  int32_t vocab_size_;
  uint64_t state_ = 1;
};

}  // namespace hadal
