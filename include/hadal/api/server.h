// The HTTP front of one process: OpenAI's API on the serving port, probes and metrics on the admin
// port.
//
// Two steps, because a probe must be answered while the weights still load: start() opens the admin
// port, open() gives the server a model and opens the serving port. The hard part is the end of
// things: a client that leaves, a peer that does not read, a drain. Each accepted request ends in
// exactly one response or one terminal event of its stream.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <hadal/base/clock.h>
#include <hadal/base/result.h>
#include <hadal/engine/engine.h>
#include <hadal/metrics/metrics.h>
#include <hadal/text/chat_template.h>
#include <hadal/text/tokenizer.h>
#include <hadal/traffic/traffic_config.h>

namespace hadal {

/// What a request gets when it names no value: generation_config.json's, or OpenAI's.
struct SamplingDefaults {
  float temperature = 1.0F;
  float top_p = 1.0F;
  int32_t top_k = 0;  ///< 0 = all
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
};

/// Bounds that hold before anything is allocated for a request.
struct HttpLimits {
  int32_t connections_max = 4096;
  int32_t header_bytes_max = 16 << 10;
  int32_t header_fields_max = 100;
  int64_t body_bytes_max = 8 << 20;
  int64_t buffered_body_bytes_max = 256 << 20;  ///< bodies of all connections together
  int32_t text_jobs_max = 64;  ///< long prompts waiting for the text threads; more are 503
  double header_timeout_s = 10;
  double body_timeout_s = 60;
  double idle_timeout_s = 90;   ///< keep-alive; longer than the clients' own
  double write_timeout_s = 30;  ///< a client that reads nothing for this long is cut off
  double health_generate_s = 20;
};

/// Known before the model is loaded. By value; const from then on.
struct ApiConfig {
  std::string host = "127.0.0.1";
  uint16_t port = 30000;  ///< 0 = any free port, see ApiServer::port()
  std::string admin_host = "127.0.0.1";
  std::optional<uint16_t> admin_port;  ///< nullopt = no admin port, 0 = any free port
  std::string served_model_name;
  bool strict_model_name = false;  ///< another name in a request is 404
  std::string api_key;             ///< one more key, without limits; empty = none
  std::vector<ApiKey> keys;        ///< no keys at all = none asked for
  TrafficConfig traffic;
  std::vector<std::string> cors_origins = {"*"};  ///< empty = no CORS headers
  bool separates_reasoning = false;  ///< `--reasoning-parser`: thinking as reasoning_content
  bool raw_prompts_may_hold_special_tokens = true;  ///< prompts of /v1/completions and /tokenize
  int32_t stream_interval = 1;                      ///< tokens per event of a stream
  bool logs_access = false;                         ///< one line per answered request
  std::optional<uint64_t> random_seed;              ///< where seeds of requests without one start
  double step_timeout_s = 300;  ///< /livez fails when work waits this long for a step
  int32_t io_threads = 2;
  int32_t text_threads = 1;
  std::string version = "0";
  HttpLimits limits;
};

/// A greedy question with a known answer, asked when nobody else may. No prompt = one token of the
/// tokenizer's; no answer = any of its length will do.
struct Canary {
  std::vector<TokenId> prompt;
  std::vector<TokenId> answer;
};

/// What answers: borrowed parts must outlive the server's stop().
struct ServedModel {
  Engine* engine = nullptr;
  const Tokenizer* tokenizer = nullptr;
  Metrics* metrics = nullptr;                   ///< what the front counts; nullptr = nothing
  const ChatTemplate* chat_template = nullptr;  ///< nullptr: /v1/chat/completions is refused
  SamplingDefaults sampling;
  Canary canary;
  std::vector<TokenId> eos_token_ids;
  int32_t context_length = 0;      ///< prompt plus generated; at most the runner's
  int32_t default_max_tokens = 0;  ///< for chats that name none; 0 = the rest of the context
  std::string model_path;
  std::string tokenizer_path;
  /// The text of a JSON object; its members are what /get_server_info says about the flags.
  std::string server_args_json = "{}";
};

/// What the probes say.
enum class ServerState : uint8_t { loading, ready, draining, failed };

/// All methods are thread-safe unless they say otherwise.
class ApiServer {
 public:
  /// `metrics` is borrowed. Opens nothing.
  ApiServer(ApiConfig config, const MetricsPage& metrics);
  ApiServer(const ApiServer&) = delete;
  ApiServer& operator=(const ApiServer&) = delete;
  /// Calls stop().
  ~ApiServer();

  /// Opens the admin port; the state is loading. unavailable names the address that cannot be
  /// bound.
  Status start();
  /// Opens the serving port for `model`; the state is ready. At most once, after start().
  Status open(const ServedModel& model);
  /// Opens the serving port of a node that has no engine, with the probes and /metrics alone (as
  /// SGLang's workers answer /health); the state is ready. At most once, instead of open().
  Status open_worker();
  /// Other keys than ApiConfig::keys from now on; requests in flight go on.
  void set_keys(const std::vector<ApiKey>& keys);
  /// The state is failed from now on; /livez answers `why`.
  void set_failed(const std::string& why);

  /// Stops accepting; idle connections close, requests in flight finish until `deadline`, then
  /// every one of them ends with an error. Returns at once. A later call with an earlier deadline
  /// moves it.
  void request_drain(TimePoint deadline);
  /// After request_drain: blocks until the last connection is closed, at most until 5 s after the
  /// deadline.
  void wait_drained();
  /// Cuts what is still open, cancels its requests, joins the threads. Idempotent; not from two
  /// threads.
  void stop();

  ServerState state() const;
  /// The bound ports; 0 before they are open.
  uint16_t port() const;
  uint16_t admin_port() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hadal
