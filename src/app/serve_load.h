// An open-loop client of any OpenAI-compatible server: requests leave at their times whatever the
// answers do, because a client that waits for answers hides the overload that it should measure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/base/result.h>

namespace hadal {

struct ServeLoad {
  std::string base_url = "http://127.0.0.1:30000";  ///< http only; a path in front of /v1 is kept
  std::string model;                                ///< empty = none is named
  std::string api_key;                              ///< empty = none is sent
  double requests_per_s = 1;                        ///< mean of a Poisson process
  int32_t num_prompts = 100;
  int32_t input_words = 128;  ///< of a prompt: about as many tokens, the server's usage says
  int32_t output_tokens = 64;
  uint64_t seed = 1;
  double timeout_s = 600;  ///< of one request
};

/// Times in seconds from when the request was due.
struct ServeOutcome {
  int status = 0;            ///< 0 = no answer
  bool is_complete = false;  ///< 200 and a whole stream without an error
  std::string error;
  std::string gate;  ///< x-hadal-gate of a refusal
  double due_s = 0;  ///< from the start of the run
  double first_token_s = 0;
  double end_s = 0;
  std::vector<double> gaps_s;  ///< between events with text
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
};

/// Reads one HTTP answer with a stream of server-sent events, as it arrives.
class StreamReader {
 public:
  /// `now_s` is given to what the bytes bring. False when the answer is whole or broken.
  bool feed(std::string_view bytes, double now_s);
  /// The connection has ended.
  void end(double now_s);

  const ServeOutcome& outcome() const { return outcome_; }

 private:
  bool read_head();
  void take_body(double now_s);
  void take_lines(double now_s);
  void on_event(std::string_view data, double now_s);
  void finish(double now_s);

  std::string raw_;   ///< not yet read
  std::string text_;  ///< the body without chunks, from the last whole line on
  ServeOutcome outcome_;
  bool has_head_ = false;
  bool is_chunked_ = false;
  int64_t body_left_ = -1;   ///< by Content-Length; -1 = until the end
  int64_t chunk_left_ = -1;  ///< -1 = a size comes next
  bool is_done_ = false;     ///< the stream said so
  bool is_over_ = false;
  double last_s_ = 0;
};

/// Sends all requests and returns their outcomes in order. invalid_argument for a URL that is none,
/// unavailable when the host has no address.
Result<std::vector<ServeOutcome>> drive_load(const ServeLoad& load);

struct ServeTargets {
  double ttft_ms = 2000;
  double tpot_ms = 100;
};

/// Numbers under the names that SGLang's and vLLM's bench_serving use.
std::map<std::string, double> summarize(const std::vector<ServeOutcome>& outcomes,
                                        const ServeTargets& targets);

}  // namespace hadal
