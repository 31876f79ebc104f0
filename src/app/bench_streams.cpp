// A decode rate counts the tokens after each stream's first one, over the time from the moment all
// streams decode to the moment the first one ends: prefill and thinning batches stay out of it.
#include "bench_streams.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include <hadal/base/clock.h>

namespace hadal {

namespace {

using Seconds = std::chrono::duration<double>;

/// Times of the tokens of one stream; written by the engine thread.
class TimingSink final : public TokenSink {
 public:
  explicit TimingSink(std::atomic<int32_t>& num_ended) : num_ended_(num_ended) {}

  void on_event(TokenEvent event) noexcept override {
    if (event.token) {
      times_.push_back(system_clock().now());
    }
    if (event.finish) {
      failed_ = *event.finish == FinishReason::error || *event.finish == FinishReason::deadline;
      num_ended_.fetch_add(1, std::memory_order_release);
      num_ended_.notify_one();
    }
  }

  /// After the stream has ended.
  const std::vector<TimePoint>& times() const { return times_; }

  bool failed() const { return failed_; }

 private:
  std::atomic<int32_t>& num_ended_;
  std::vector<TimePoint> times_;
  bool failed_ = false;
};

Result<StreamTimes> measure(const std::vector<std::shared_ptr<TimingSink>>& sinks,
                            TimePoint start) {
  TimePoint all_decode = start;
  TimePoint first_end = TimePoint::max();
  for (const auto& sink : sinks) {
    if (sink->failed() || sink->times().empty()) {
      return Error{ErrorCode::unavailable, "a stream failed"};
    }
    all_decode = std::max(all_decode, sink->times().front());
    first_end = std::min(first_end, sink->times().back());
  }
  int64_t tokens = 0;
  for (const auto& sink : sinks) {
    tokens += std::count_if(sink->times().begin(), sink->times().end(), [&](TimePoint time) {
      return time > all_decode && time <= first_end;
    });
  }
  StreamTimes result;
  result.prefill_s = Seconds(all_decode - start).count();
  const double decode_s = Seconds(first_end - all_decode).count();
  result.decode_tokens_per_s = decode_s > 0 ? static_cast<double>(tokens) / decode_s : 0;
  result.all_decode = all_decode;
  result.first_end = first_end;
  return result;
}

}  // namespace

Result<StreamTimes> StreamBench::run(const StreamScenario& scenario) {
  std::atomic<int32_t> num_ended{0};
  std::vector<std::shared_ptr<TimingSink>> sinks;
  const TimePoint start = system_clock().now();
  for (int32_t i = 0; i < scenario.num_streams; ++i) {
    sinks.push_back(std::make_shared<TimingSink>(num_ended));
    if (auto id = engine_.submit(make_request(scenario), sinks.back()); !id) {
      return id.error();
    }
  }
  for (int32_t ended = 0; ended < scenario.num_streams; ended = num_ended.load()) {
    num_ended.wait(ended);
  }
  return measure(sinks, start);
}

GenerateRequest StreamBench::make_request(const StreamScenario& scenario) {
  GenerateRequest request;
  request.sampling.temperature = 0;
  request.max_new_tokens = scenario.new_tokens;
  request.ignore_stop_tokens = true;
  for (int32_t i = 0; i < scenario.prompt_tokens; ++i) {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    request.prompt.push_back(
        static_cast<TokenId>((state_ >> 33U) % static_cast<uint64_t>(vocab_size_)));
  }
  return request;
}

}  // namespace hadal
