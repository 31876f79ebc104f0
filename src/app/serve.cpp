// `hadal serve`: load, warm up, open the port, wait for a signal, drain.
//
// Signals are blocked in every thread and waited for here alone, so nothing runs in a handler. The
// serving port opens only after a first answer was generated.
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include <hadal/api/server.h>
#include <hadal/cluster/plan_log.h>
#include <hadal/metrics/metrics.h>

#include "api_key_file.h"
#include "assembly.h"
#include "byte_model.h"
#include "cli.h"
#include "commands.h"
#include "exit_code.h"
#include "group_setup.h"
#include "rank_seat.h"
#include "server_args.h"
#include "step_log.h"
#include "waiting_sink.h"

#include <sys/resource.h>

namespace hadal {

namespace {

using namespace std::chrono_literals;

constexpr auto kPollInterval = 200ms;
constexpr auto kGroupPollInterval = 20ms;
constexpr double kFailureDrainSeconds = 2;
constexpr int kWarmUpTokens = 8;

sigset_t ending_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

timespec timespec_of(std::chrono::milliseconds time) {
  timespec result{};
  result.tv_sec = time.count() / 1000;
  result.tv_nsec = (time.count() % 1000) * 1'000'000;
  return result;
}

/// True when SIGTERM or SIGINT came within `timeout`.
bool wait_for_signal(std::chrono::milliseconds timeout) {
  const sigset_t signals = ending_signals();
  const timespec wait = timespec_of(timeout);
  return sigtimedwait(&signals, nullptr, &wait) > 0;
}

sigset_t reload_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGHUP);
  return signals;
}

/// `--api-key-file` again when SIGHUP has come: blocked and pending until it is asked for here. A
/// file that is wrong changes nothing.
void reload_keys_if_asked(const Config& config, ApiServer& server) {
  const sigset_t signals = reload_signals();
  const timespec no_wait{};
  if (config.api_key_file.empty() || sigtimedwait(&signals, nullptr, &no_wait) <= 0) {
    return;
  }
  auto keys = load_api_keys(config.api_key_file);
  if (!keys) {
    log_error("The API keys stay as they were: " + keys.error().message);
    return;
  }
  server.set_keys(keys.value());
  log_info("API keys read again: " + std::to_string(keys.value().size()));
}

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%g s", seconds);
  return text;
}

TimePoint after(double seconds) {
  return system_clock().now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                    std::chrono::duration<double>(seconds));
}

/// Ends the process when a signal comes while nothing is served yet. Stopped before serving.
class LoadingSignals {
 public:
  LoadingSignals() : thread_([this](std::stop_token stop) { watch(stop); }) {}

 private:
  void watch(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      if (wait_for_signal(kPollInterval)) {
        log_info("Stopped while loading");
        std::_Exit(kExitOk);
      }
    }
  }

  std::jthread thread_;
};

/// Fires when work is there but no step has ended for too long.
class Watchdog {
 public:
  explicit Watchdog(double timeout_s) : timeout_s_(timeout_s) {}

  bool is_hung(const EngineStats& stats, TimePoint now) {
    const bool is_idle = stats.num_running == 0 && stats.num_queued == 0;
    if (is_idle || stats.last_step_id != step_id_ || since_ == TimePoint{}) {
      since_ = now;
      step_id_ = stats.last_step_id;
    }
    return std::chrono::duration<double>(now - since_).count() > timeout_s_;
  }

 private:
  double timeout_s_;
  uint64_t step_id_ = 0;
  TimePoint since_{};
};

struct Parts {
  TextParts text;
  GenerationConfig generation;
  std::filesystem::path model_dir;
};

Result<Parts> load_parts(const Config& config, const Environment& environment) {
  if (config.runner.null_step_us && config.model.query.name.empty()) {
    auto text = make_byte_model();
    if (!text) {
      return text.error();
    }
    return Parts{std::move(text).value(), {}, {}};
  }
  auto model_dir = find_model_dir(config.model.query, environment);
  if (!model_dir) {
    return model_dir.error();
  }
  auto text = load_text_parts(config, model_dir.value());
  if (!text) {
    return text.error();
  }
  auto generation = load_generation_config(model_dir.value());
  if (!generation) {
    return generation.error();
  }
  return Parts{
      std::move(text).value(), std::move(generation).value(), std::move(model_dir).value()};
}

ServedModel served_model(const Config& config,
                         const Parts& parts,
                         Engine& engine,
                         Metrics& metrics) {
  ServedModel served;
  served.engine = &engine;
  served.metrics = &metrics;
  served.tokenizer = &parts.text.tokenizer;
  served.chat_template = &parts.text.chat_template;
  const GenerationConfig& generation = parts.generation;
  served.sampling.temperature = static_cast<float>(generation.temperature.value_or(1));
  served.sampling.top_p = static_cast<float>(generation.top_p.value_or(1));
  served.sampling.top_k = static_cast<int32_t>(std::max<int64_t>(generation.top_k.value_or(0), 0));
  served.sampling.repetition_penalty =
      static_cast<float>(generation.repetition_penalty.value_or(1));
  served.eos_token_ids = stop_tokens(generation, parts.text.tokenizer);
  served.context_length = engine.limits().max_context_tokens;
  served.model_path = config.model.query.name;
  served.tokenizer_path = config.model.tokenizer_path.empty()
                              ? served.model_path
                              : config.model.tokenizer_path.string();
  served.server_args_json = server_args_json(config);
  return served;
}

/// Where the seconds of the start went, for one log line.
class StartTimes {
 public:
  /// The time since the last call, or since the start, was spent on `what`.
  void add(const std::string& what) {
    const TimePoint now = system_clock().now();
    text_ += (text_.empty() ? "" : ", ") + what + " " + text_of(now - last_);
    last_ = now;
  }

  /// "Started in 3.21 s: tokenizer 0.10 s, ...".
  std::string text() const { return "Started in " + text_of(last_ - begin_) + ": " + text_; }

 private:
  static std::string text_of(std::chrono::steady_clock::duration time) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2f s", std::chrono::duration<double>(time).count());
    return text;
  }

  TimePoint begin_ = system_clock().now();
  TimePoint last_ = begin_;
  std::string text_;
};

/// One short greedy answer: the first step allocates, pages in weights and finds what is broken.
/// The same question is the canary when the engine has to prove later that it still works.
Result<Canary> warm_up(Engine& engine, const Tokenizer& tokenizer) {
  Canary canary;
  canary.prompt = {tokenizer.bos_id().value_or(0)};
  GenerateRequest request;
  request.prompt = canary.prompt;
  request.sampling.temperature = 0;
  request.max_new_tokens = kWarmUpTokens;
  request.ignore_stop_tokens = true;
  auto sink = std::make_shared<WaitingSink>();
  if (auto id = engine.submit(std::move(request), sink); !id) {
    return id.error();
  }
  while (true) {
    const TokenEvent event = sink->next();
    if (event.finish == FinishReason::error || event.finish == FinishReason::deadline) {
      return Error{ErrorCode::unavailable, "warm-up: " + event.error};
    }
    if (event.token) {
      canary.answer.push_back(*event.token);
    }
    if (event.finish) {
      return canary;
    }
  }
}

Result<std::unique_ptr<Runner>> make_served_runner(const Config& config,
                                                   const Parts& parts,
                                                   RankSeat* seat,
                                                   StartTimes& times) {
  const int32_t vocab_size = parts.text.tokenizer.vocab_size();
  const PhaseFn on_phase = [&times](const std::string& name) { times.add(name); };
  auto runner = seat == nullptr ? make_runner(config, parts.model_dir, vocab_size, on_phase)
                                : seat->make_runner(config, parts.model_dir, vocab_size, on_phase);
  if (!runner || config.rank.record_plans.empty()) {
    return runner;
  }
  return make_recording_runner(std::move(runner).value(), config.rank.record_plans);
}

void print_ready(const Config& config, const ApiServer& server) {
  const std::string host = config.api.host == "0.0.0.0" ? "127.0.0.1" : config.api.host;
  const std::string url = "http://" + host + ":" + std::to_string(server.port());
  log_info("Serving '" + config.model.served_name + "' on " + url + ". Try:");
  std::fprintf(stderr,
               "\n  curl %s/v1/chat/completions -H 'Content-Type: application/json' \\\n"
               "    -d '{\"model\": \"%s\", \"messages\": [{\"role\": \"user\", \"content\": "
               "\"What is 12 + 30?\"}]}'\n\n",
               url.c_str(),
               config.model.served_name.c_str());
}

/// Until the last connection is closed; a second signal ends every stream now.
void drain(ApiServer& server, double grace_s) {
  server.request_drain(after(grace_s));
  std::atomic<bool> is_drained{false};
  std::jthread waiter([&] {
    server.wait_drained();
    is_drained.store(true);
  });
  while (!is_drained.load()) {
    if (wait_for_signal(50ms)) {
      log_warning("Second signal: ending every stream");
      server.request_drain(system_clock().now());
    }
  }
}

/// The group's supervisors are ending every process; the clients are told why before that.
[[noreturn]] void end_with_group(ApiServer& server, const GroupEnd& end) {
  server.set_failed(end.text);
  server.request_drain(system_clock().now());
  server.wait_drained();
  std::_Exit(group_exit_code(end.reason));  // the engine may hang in a collective
}

/// Runs until a signal, a failed engine or a hung step; the exit code.
int watch(
    const Config& config, ApiServer& server, Engine& engine, StepLog& step_log, RankSeat* seat) {
  Watchdog watchdog(config.watchdog_timeout_s);
  while (true) {
    if (seat != nullptr && seat->board().end_reason() != EndReason::none) {
      end_with_group(server, seat->board().end());
    }
    if (wait_for_signal(seat != nullptr ? kGroupPollInterval : kPollInterval)) {
      log_info("Draining for at most " + seconds_text(config.shutdown_grace_s));
      drain(server, config.shutdown_grace_s);
      return kExitOk;
    }
    reload_keys_if_asked(config, server);
    const EngineStats stats = engine.stats();
    if (const auto error = engine.fatal_error()) {
      if (seat != nullptr && seat->board().end_reason() != EndReason::none) {
        continue;
      }
      log_error("The engine failed: " + *error);
      server.set_failed(*error);
      drain(server, kFailureDrainSeconds);
      return kExitInternal;
    }
    if (watchdog.is_hung(stats, system_clock().now())) {
      const std::string why = "step " + std::to_string(stats.last_step_id + 1) +
                              " did not end within " + seconds_text(config.watchdog_timeout_s);
      log_error(why);
      server.set_failed(why);
      server.request_drain(system_clock().now());
      server.wait_drained();
      std::_Exit(kExitInternal);  // the engine thread cannot be joined
    }
    step_log.report(stats, system_clock().now());
  }
}

/// Login shells give 1,024 descriptors softly and many more on request.
void raise_open_files_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

int fail(int code, const Error& error) {
  log_error(error.message);
  return code;
}

}  // namespace

int run_serve(const Config& config, const Environment& environment) {
  return has_rank_processes(config) ? run_supervisor(config, environment)
                                    : serve_model(config, environment, nullptr);
}

int serve_model(const Config& config, const Environment& environment, RankSeat* seat) {
  const sigset_t signals = ending_signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  if (!config.api_key_file.empty()) {  // without one, a closed terminal ends the server
    const sigset_t reload = reload_signals();
    pthread_sigmask(SIG_BLOCK, &reload, nullptr);
  }
  std::signal(SIGPIPE, SIG_IGN);
  raise_open_files_limit();
  StartTimes times;
  auto loading_signals = std::make_unique<LoadingSignals>();

  MetricsRegistry metrics(config.model.served_name);
  ApiConfig api_config = config.api;
  const std::string version = version_text();  // "hadal VERSION (...)\n"
  api_config.version = version.substr(6, version.size() - 7);
  ApiServer server(api_config, metrics);
  if (Status started = server.start(); !started) {
    return fail(kExitRetry, started.error());
  }
  warn_of_node_failures(config, environment);
  auto parts = load_parts(config, environment);
  if (!parts) {
    return fail(model_exit_code(parts.error()), parts.error());
  }
  times.add("node and tokenizer");
  auto runner = make_served_runner(config, parts.value(), seat, times);
  if (!runner) {
    return fail(model_exit_code(runner.error()), runner.error());
  }
  if (Status ready = seat == nullptr ? ok_status() : seat->wait_all_ready(); !ready) {
    return fail(group_exit_code(seat->board().end_reason()), ready.error());
  }
  times.add(seat == nullptr ? "runner" : "other ranks");
  StepLog step_log(config.decode_log_interval);
  Engine engine(
      config.engine, step_log.wrap(std::move(runner).value()), metrics.metrics(), system_clock());
  engine.start();
  auto canary = warm_up(engine, parts.value().text.tokenizer);
  if (!canary) {
    return fail(kExitInternal, canary.error());
  }
  times.add("first answer");
  loading_signals.reset();
  ServedModel served = served_model(config, parts.value(), engine, metrics.metrics());
  served.canary = std::move(canary).value();
  if (Status opened = server.open(served); !opened) {
    return fail(kExitRetry, opened.error());
  }
  log_info(times.text());
  print_ready(config, server);
  if (seat != nullptr) {
    seat->begin_serving();
  }
  const int code = watch(config, server, engine, step_log, seat);
  engine.drain_and_stop(system_clock().now());
  server.stop();
  if (seat != nullptr) {
    seat->forget_runner();
  }
  log_info("Stopped");
  return code;
}

}  // namespace hadal
