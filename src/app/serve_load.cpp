// One thread, one poll loop, one connection a request: thousands of streams without a thread each,
// and no answer delays another's request.
#include "serve_load.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include <nlohmann/json.hpp>

#include <hadal/base/clock.h>
#include <hadal/net/tcp.h>

#include <poll.h>
#include <sys/socket.h>

namespace hadal {

namespace {

using nlohmann::json;

constexpr int kTurnMs = 50;
constexpr size_t kReadBytes = 64 << 10;

struct Target {
  std::string host;
  uint16_t port = 80;
  std::string path;  ///< in front of /v1
};

Result<Target> parse_url(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  const Error wrong{ErrorCode::invalid_argument,
                    "--base-url: expected http://HOST[:PORT][/PATH], got '" + url + "'"};
  if (!url.starts_with(kScheme))
    return wrong;
  std::string_view rest = std::string_view(url).substr(kScheme.size());
  Target target;
  const size_t slash = std::min(rest.find('/'), rest.size());
  target.path = rest.substr(slash);
  while (target.path.ends_with('/'))
    target.path.pop_back();
  if (target.path.ends_with("/v1"))
    target.path.resize(target.path.size() - 3);
  std::string_view authority = rest.substr(0, slash);
  const size_t colon = authority.rfind(':');
  if (colon != std::string_view::npos && authority.find(']', colon) == std::string_view::npos) {
    int port = 0;
    for (const char c : authority.substr(colon + 1))
      port = c >= '0' && c <= '9' && port < 65536 ? port * 10 + (c - '0') : 65536;
    if (port < 1 || port > 65535)
      return wrong;
    target.port = static_cast<uint16_t>(port);
    authority = authority.substr(0, colon);
  }
  if (authority.starts_with('[') && authority.ends_with(']'))
    authority = authority.substr(1, authority.size() - 2);
  target.host = authority;
  return target.host.empty() ? Result<Target>(wrong) : Result<Target>(target);
}

/// The text of a request; words are drawn anew each time, so that no cache answers.
std::string request_text(const ServeLoad& load, const Target& target, std::mt19937_64& random) {
  constexpr std::array<std::string_view, 16> kWords = {"sun",
                                                       "tree",
                                                       "river",
                                                       "stone",
                                                       "light",
                                                       "cloud",
                                                       "wind",
                                                       "house",
                                                       "road",
                                                       "bird",
                                                       "sea",
                                                       "night",
                                                       "hand",
                                                       "song",
                                                       "gold",
                                                       "fire"};
  std::string prompt;
  for (int32_t i = 0; i < load.input_words; ++i)
    prompt += (i == 0 ? "" : " ") + std::string(kWords[random() % kWords.size()]);
  json body = {{"prompt", prompt},
               {"max_tokens", load.output_tokens},
               {"temperature", 0},
               {"ignore_eos", true},
               {"stream", true},
               {"stream_options", {{"include_usage", true}}}};
  if (!load.model.empty())
    body["model"] = load.model;
  const std::string text = body.dump(-1, ' ', false, json::error_handler_t::replace);
  return "POST " + target.path + "/v1/completions HTTP/1.1\r\nHost: " + target.host +
         "\r\nContent-Type: application/json\r\nConnection: close\r\n" +
         (load.api_key.empty() ? "" : "Authorization: Bearer " + load.api_key + "\r\n") +
         "Content-Length: " + std::to_string(text.size()) + "\r\n\r\n" + text;
}

/// One request on its way.
struct Flow {
  size_t index = 0;
  FileDescriptor socket;
  std::string out;
  size_t sent = 0;
  double due_s = 0;
  StreamReader reader;
};

class LoadRun {
 public:
  LoadRun(const ServeLoad& load, Target target, TcpAddress address)
      : load_(load), target_(std::move(target)), address_(address), random_(load.seed) {
    double due_s = 0;
    for (int32_t i = 0; i < load.num_prompts; ++i) {
      due_.push_back(due_s);
      const double uniform = static_cast<double>(random_() >> 11U) * 0x1.0p-53;
      due_s += -std::log1p(-uniform) / load.requests_per_s;
    }
    outcomes_.resize(due_.size());
  }

  std::vector<ServeOutcome> run() {
    begin_ = system_clock().now();
    while (next_ < due_.size() || !flows_.empty()) {
      while (next_ < due_.size() && due_[next_] <= now_s())
        start();
      turn();
    }
    return std::move(outcomes_);
  }

 private:
  double now_s() const {
    return std::chrono::duration<double>(system_clock().now() - begin_).count();
  }

  void start() {
    Flow flow;
    flow.index = next_;
    flow.due_s = due_[next_++];
    flow.out = request_text(load_, target_, random_);
    flow.socket =
        FileDescriptor(::socket(address_.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const bool is_good =
        flow.socket.is_open() &&
        (::connect(flow.socket.get(), address_.data(), address_.size) == 0 || errno == EINPROGRESS);
    if (is_good) {
      flows_.push_back(std::move(flow));
    } else {
      end(flow, std::strerror(errno));
    }
  }

  void end(Flow& flow, const std::string& error) {
    flow.reader.end(now_s() - flow.due_s);
    ServeOutcome& outcome = outcomes_[flow.index];
    outcome = flow.reader.outcome();
    outcome.due_s = flow.due_s;
    if (!error.empty() && outcome.status == 0)
      outcome.error = error;
    flow.socket = FileDescriptor();
  }

  void turn() {
    std::vector<pollfd> entries;
    for (const Flow& flow : flows_)
      entries.push_back({flow.socket.get(),
                         static_cast<int16_t>(flow.sent < flow.out.size() ? POLLOUT : POLLIN),
                         0});
    double wait_ms = kTurnMs;
    if (next_ < due_.size())
      wait_ms = std::clamp((due_[next_] - now_s()) * 1e3, 0.0, wait_ms);
    timespec wait{0, static_cast<long>(wait_ms * 1e6)};
    ::ppoll(entries.data(), entries.size(), &wait, nullptr);
    for (size_t i = 0; i < entries.size(); ++i) {
      Flow& flow = flows_[i];
      if (entries[i].revents != 0)
        move(flow);
      if (flow.socket.is_open() && now_s() - flow.due_s > load_.timeout_s)
        end(flow, "no answer in time");
    }
    std::erase_if(flows_, [](const Flow& flow) { return !flow.socket.is_open(); });
  }

  void move(Flow& flow) {
    if (flow.sent < flow.out.size()) {
      const ssize_t count = ::send(flow.socket.get(),
                                   flow.out.data() + flow.sent,
                                   flow.out.size() - flow.sent,
                                   MSG_NOSIGNAL);
      if (count > 0)
        flow.sent += static_cast<size_t>(count);
      else if (errno == EPIPE || errno == ECONNRESET)
        flow.sent = flow.out.size();  // it may have answered before it closed
      else if (errno != EAGAIN && errno != EINTR)
        end(flow, std::strerror(errno));
      return;
    }
    buffer_.resize(kReadBytes);
    const ssize_t count = ::recv(flow.socket.get(), buffer_.data(), buffer_.size(), 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
      return;
    if (count <= 0) {
      end(flow, count < 0 ? std::strerror(errno) : "the connection ended");
      return;
    }
    const std::string_view bytes(buffer_.data(), static_cast<size_t>(count));
    if (!flow.reader.feed(bytes, now_s() - flow.due_s))
      end(flow, "");
  }

  const ServeLoad& load_;
  const Target target_;
  const TcpAddress address_;
  std::mt19937_64 random_;
  std::vector<double> due_;
  std::vector<ServeOutcome> outcomes_;
  std::vector<Flow> flows_;
  std::string buffer_;
  size_t next_ = 0;
  TimePoint begin_{};
};

/// Mean, median, standard deviation, 90th, 95th and 99th percentile of seconds, in milliseconds.
void add_distribution(std::map<std::string, double>& out,
                      const std::vector<std::string>& names,
                      std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  const auto count = static_cast<double>(seconds.size());
  const double mean =
      seconds.empty() ? 0.0 : std::accumulate(seconds.begin(), seconds.end(), 0.0) / count;
  double squares = 0;
  for (const double each : seconds)
    squares += (each - mean) * (each - mean);
  const auto percentile = [&](double part) {  // between neighbours, as numpy does
    if (seconds.empty())
      return 0.0;
    const double at = part * (count - 1);
    const auto low = static_cast<size_t>(at);
    const size_t high = std::min(low + 1, seconds.size() - 1);
    return seconds[low] + (at - std::floor(at)) * (seconds[high] - seconds[low]);
  };
  for (const std::string& name : names) {
    out["mean_" + name] = 1e3 * mean;
    out["median_" + name] = 1e3 * percentile(0.5);
    out["std_" + name] = seconds.empty() ? 0.0 : 1e3 * std::sqrt(squares / count);
    out["p90_" + name] = 1e3 * percentile(0.90);
    out["p95_" + name] = 1e3 * percentile(0.95);
    out["p99_" + name] = 1e3 * percentile(0.99);
  }
}

}  // namespace

Result<std::vector<ServeOutcome>> drive_load(const ServeLoad& load) {
  auto target = parse_url(load.base_url);
  if (!target)
    return target.error();
  auto address = resolve(target.value().host, target.value().port);
  if (!address)
    return address.error();
  return LoadRun(load, std::move(target).value(), address.value()).run();
}

std::map<std::string, double> summarize(const std::vector<ServeOutcome>& outcomes,
                                        const ServeTargets& targets) {
  std::map<std::string, double> out;
  std::vector<double> first;
  std::vector<double> per_token;
  std::vector<double> gaps;
  std::vector<double> whole;
  std::vector<double> refusals;
  double input = 0;
  double output = 0;
  double duration = 0;
  double num_good = 0;
  for (const ServeOutcome& each : outcomes) {
    duration = std::max(duration, each.due_s + each.end_s);
    if (each.status >= 400)
      refusals.push_back(each.end_s);
    if (!each.is_complete)
      continue;
    input += static_cast<double>(each.prompt_tokens);
    output += static_cast<double>(each.completion_tokens);
    first.push_back(each.first_token_s);
    whole.push_back(each.end_s);
    gaps.insert(gaps.end(), each.gaps_s.begin(), each.gaps_s.end());
    double tpot_s = 0;
    if (each.completion_tokens > 1) {
      tpot_s = (each.end_s - each.first_token_s) / static_cast<double>(each.completion_tokens - 1);
      per_token.push_back(tpot_s);
    }
    const bool is_good =
        1e3 * each.first_token_s <= targets.ttft_ms && 1e3 * tpot_s <= targets.tpot_ms;
    num_good += is_good ? 1 : 0;
  }
  const double seconds = std::max(duration, 1e-9);
  const auto completed = static_cast<double>(whole.size());
  out["duration"] = duration;
  out["num_prompts"] = static_cast<double>(outcomes.size());
  out["completed"] = completed;
  out["failed"] = static_cast<double>(outcomes.size()) - completed;
  out["refused"] = static_cast<double>(refusals.size());
  out["total_input_tokens"] = input;
  out["total_output_tokens"] = output;
  out["request_throughput"] = completed / seconds;
  out["request_goodput"] = num_good / seconds;
  out["input_throughput"] = input / seconds;
  out["output_throughput"] = output / seconds;
  out["total_token_throughput"] = (input + output) / seconds;
  out["concurrency"] = std::accumulate(whole.begin(), whole.end(), 0.0) / seconds;
  add_distribution(out, {"ttft_ms"}, std::move(first));
  add_distribution(out, {"tpot_ms"}, std::move(per_token));
  add_distribution(out, {"itl_ms"}, std::move(gaps));
  add_distribution(out, {"e2e_latency_ms", "e2el_ms"}, std::move(whole));
  add_distribution(out, {"refusal_ms"}, std::move(refusals));
  return out;
}

}  // namespace hadal
