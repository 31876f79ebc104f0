// One generation request from validated fields to response text: makes the engine's requests, takes
// their events, and writes either one JSON body or the events of a stream.
//
// Knows no sockets: a session moves requests, events and text between a job and the outside. Every
// choice ends once; the first error ends the whole job.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <hadal/engine/engine.h>

#include "api_error.h"
#include "generation_fields.h"
#include "json_writer.h"
#include "serving_context.h"
#include "text_stream.h"

namespace hadal::api {

/// A generated or echoed token with its logprob; absent for the first token of an echoed prompt.
struct TokenEntry {
  TokenId token = 0;
  std::optional<float> logprob;
  std::vector<TokenLogprob> top;
};

class GenerationJob {
 public:
  virtual ~GenerationJob() = default;
  GenerationJob(const GenerationJob&) = delete;
  GenerationJob& operator=(const GenerationJob&) = delete;

  /// One per choice, in order of index; call once.
  std::vector<GenerateRequest> take_requests() { return std::move(requests_); }

  /// Events after a choice's end are ignored.
  void on_event(size_t choice, TokenEvent event);
  /// Ends the job with an error unless it is done.
  void fail(ApiError error);

  /// Choices that a stop string ended while the engine still runs them.
  std::vector<size_t> take_cancels() { return std::exchange(cancels_, {}); }

  bool is_done() const { return error_ || num_open_ == 0; }

  const std::optional<ApiError>& error() const { return error_; }

  bool is_stream() const { return fields_.is_stream; }

  /// Stream: the server-sent events that are ready, in order.
  std::string take_stream() { return std::exchange(stream_, {}); }

  bool has_stream() const { return !stream_.empty(); }

  /// Stream, when done: writes usage or the error, and the end mark.
  void end_stream();
  /// Not a stream, when done without error.
  std::string response() const;

  const std::string& id() const { return id_; }

  int64_t prompt_tokens() const { return prompt_tokens_; }

  int64_t completion_tokens() const;

  /// More answers or alternatives than a server under pressure gives.
  bool is_costly() const {
    return fields_.num_choices > 1 || fields_.sampling.num_top_logprobs > kDegradedLogprobs;
  }

 protected:
  struct Choice {
    explicit Choice(TextStream text_stream) : text(std::move(text_stream)) {}

    TextStream text;
    TextDelta pending;                ///< not yet sent (stream), or all of it (no stream)
    std::vector<TokenEntry> entries;  ///< the same for logprobs
    int64_t num_tokens = 0;
    int32_t num_pending_tokens = 0;
    int32_t num_cached_tokens = 0;
    bool is_first_of_prompt = false;
    bool has_events = false;
    bool has_sent = false;
    std::string finish_reason;          ///< empty while open
    std::string matched_stop = "null";  ///< JSON
  };

  struct Setup {
    std::string id;
    std::string object;                ///< of the response
    std::string stream_object;         ///< of an event of the stream
    int32_t max_tokens_if_absent = 0;  ///< 0 = the rest of the context
    bool wants_prompt_logprobs = false;
    TextStream::Options text;
  };

  GenerationJob(const ServingContext& context, GenerationFields fields, Setup setup);

  /// Makes the choices of one prompt; 400 when it does not fit.
  std::optional<ApiError> add_prompt(std::vector<TokenId> prompt);

  /// Stream: appends the events for what is pending, and the choice's end if it has one.
  virtual void write_pending(size_t index, Choice& choice) = 0;
  virtual void write_choice(JsonWriter& json, size_t index, const Choice& choice) const = 0;
  /// Called with the prompt's logprobs, before anything else of the choice.
  virtual void on_first_event(size_t index, Choice& choice, const TokenEvent& event);
  /// Members of usage beyond the token counts.
  virtual void write_usage_details(JsonWriter& json) const;

  JsonWriter begin_event() const { return JsonWriter(event_start_); }

  /// Closes the event's object and appends it to the stream.
  void end_event(JsonWriter json);
  void write_usage(JsonWriter& json) const;

  const ServingContext& context() const { return context_; }

  const GenerationFields& fields() const { return fields_; }

  bool wants_logprobs() const { return fields_.sampling.num_top_logprobs >= 0; }

  const std::vector<Choice>& choices() const { return choices_; }

 private:
  void add_token(Choice& choice, const TokenEvent& event);
  void finish_choice(size_t index, std::string reason);
  void finish_by_engine(size_t index, const TokenEvent& event);

  ServingContext context_;
  GenerationFields fields_;
  Setup setup_;
  std::string id_;
  int64_t created_;
  std::string model_;
  std::string event_start_;
  std::vector<GenerateRequest> requests_;
  std::vector<Choice> choices_;
  std::vector<size_t> cancels_;
  size_t num_open_ = 0;
  int64_t prompt_tokens_ = 0;
  std::optional<ApiError> error_;
  std::string stream_;
};

/// Body of /v1/chat/completions to a job. Renders and tokenises: may take long for long prompts.
ApiResult<std::unique_ptr<GenerationJob>> make_chat_job(const ServingContext& context,
                                                        std::string_view body);
/// Body of /v1/completions to a job.
ApiResult<std::unique_ptr<GenerationJob>> make_completion_job(const ServingContext& context,
                                                              std::string_view body);

/// 404 when the name is another model's and the server is strict.
std::optional<ApiError> check_model_name(const ServingContext& context, const std::string& name);

/// `text` cut into pieces of at most `bytes_max` bytes between characters; at least one piece.
std::vector<std::string_view> split_text(std::string_view text, size_t bytes_max);

/// Longest text in one event of a stream: some clients read lines of 64 KiB at most.
inline constexpr size_t kEventTextBytesMax = 8 << 10;

}  // namespace hadal::api
