// The generating half of a session: submit, move events into the job, write what it has to say.
//
// The hard part is that four things can end it: the job, the peer, a drain, a peer that does not
// read. All of them wake the same loop; leaving it, by any way, cancels what the engine still runs.
#include <array>
#include <cstdio>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "session.h"

namespace hadal::api {

namespace asio = boost::asio;

namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

std::string chunk_head(size_t size) {
  std::array<char, 24> text{};
  std::snprintf(text.data(), text.size(), "%zx\r\n", size);
  return text.data();
}

}  // namespace

struct Session::Flight {
  Flight(ServerCore& server_core, const std::shared_ptr<Signal>& signal)
      : core(server_core), queue(std::make_shared<TokenQueue>([signal] {
          signal->try_send(boost::system::error_code{});
        })) {
    core.begin_work();
  }

  Flight(const Flight&) = delete;
  Flight& operator=(const Flight&) = delete;

  ~Flight() {
    queue->close();
    for (size_t i = 0; i < ids.size(); ++i) {
      cancel(i);
    }
    core.end_work();
  }

  std::optional<ApiError> submit(GenerateRequest request) {
    auto sink = std::make_shared<QueueSink>(queue, ids.size());
    QueueRefusal refusal;
    Result<RequestId> id =
        core.model()->engine->submit(std::move(request), std::move(sink), &refusal);
    if (!id) {
      return id.error().code == ErrorCode::resource_exhausted ? core.traffic().queue_error(refusal)
                                                              : from_error(id.error());
    }
    ids.push_back(id.value());
    has_ended.push_back(false);
    return std::nullopt;
  }

  void cancel(size_t choice) {
    if (!has_ended[choice]) {
      has_ended[choice] = true;
      core.model()->engine->cancel(ids[choice]);
    }
  }

  ServerCore& core;
  std::shared_ptr<TokenQueue> queue;
  std::vector<RequestId> ids;
  std::vector<bool> has_ended;
};

asio::awaitable<void> Session::generate(const Route& route,
                                        const RequestHead& head,
                                        const std::string& body) {
  TrafficControl& traffic = core_.traffic();
  std::string fingerprint = traffic.has_suspects() ? core_.ids().fingerprint(body) : "";
  std::optional<ApiError> error;
  ApiResult<std::unique_ptr<GenerationJob>> job = std::unique_ptr<GenerationJob>();
  if (!fingerprint.empty()) {
    error = traffic.refuse_suspect(fingerprint);
  }
  if (!error) {
    const std::function<void()> work = [&] {
      job = route.id == RouteId::chat_completions ? make_chat_job(core_.context(), body)
                                                  : make_completion_job(core_.context(), body);
    };
    error = co_await run_text(body.size(), work);
  }
  if (!error && !job) {
    error = job.error();
  }
  if (!error && traffic.level() >= 2 && job.value()->is_costly()) {
    error = ApiError{503,
                     "the server is under pressure: one answer and at most " +
                         std::to_string(kDegradedLogprobs) + " logprobs a request",
                     {},
                     "overloaded",
                     Gate::ladder};
  }
  if (error) {
    HttpReply reply = refuse(*error);
    co_await send(head, std::move(reply));
    co_return;
  }
  const bool is_good = co_await run_job(head, *job.value());
  if (!is_good || !fingerprint.empty()) {
    traffic.note_end(core_.ids().fingerprint(body), !is_good);
  }
}

asio::awaitable<bool> Session::run_job(const RequestHead& head, GenerationJob& job) {
  Flight flight(core_, signal_);
  for (GenerateRequest& request : job.take_requests()) {
    pass_->apply_to(request);
    if (const std::optional<ApiError> error = flight.submit(std::move(request))) {
      HttpReply reply = refuse(*error);
      co_await send(head, std::move(reply));
      co_return true;
    }
  }
  pass_->use(job.prompt_tokens());
  watch_peer();
  bool has_head = false;
  bool is_open = true;
  while (is_open && !job.is_done() && !is_peer_gone_) {
    co_await advance(flight, job);
    if (job.is_stream() && !is_peer_gone_ && job.has_stream()) {
      is_open = co_await send_stream(head, job, has_head);
    }
  }
  connection_->stop_watching();
  const bool is_good = !pass_->is_void();
  pass_->use(job.prompt_tokens() + job.completion_tokens());
  usage_note_ = " prompt=" + std::to_string(job.prompt_tokens()) +
                " completion=" + std::to_string(job.completion_tokens());
  if (!is_open || is_peer_gone_) {
    closes_ = true;
    log_access(head, 499);
    co_return is_good;
  }
  if (job.error() && !has_head) {
    HttpReply reply = refuse(*job.error());
    co_await send(head, std::move(reply));
  } else if (job.is_stream()) {
    job.end_stream();
    pass_.reset();
    is_open = co_await send_stream(head, job, has_head);
    if (is_open && head.is_http_11) {
      const double stall_s = core_.config().limits.write_timeout_s;
      const IoStatus status = co_await connection_->write("0\r\n\r\n", stall_s);
      is_open = status == IoStatus::ok;
    }
    closes_ = closes_ || !is_open || !head.is_http_11;
    log_access(head, job.error() ? job.error()->status : 200);
  } else {
    HttpReply reply;
    reply.body = job.response();
    co_await send(head, std::move(reply));
  }
  co_return is_good;
}

void Session::watch_peer() {
  connection_->watch_peer([self = shared_from_this()] {
    self->is_peer_gone_ = true;
    self->wake();
  });
}

asio::awaitable<void> Session::advance(Flight& flight, GenerationJob& job) {
  for (;;) {
    for (TokenQueue::Item& item : flight.queue->take()) {
      if (item.event.finish) {
        flight.has_ended[item.choice] = true;
      }
      job.on_event(item.choice, std::move(item.event));
    }
    for (const size_t choice : job.take_cancels()) {
      flight.cancel(choice);
    }
    if (is_peer_gone_ || job.is_done() || job.has_stream()) {
      co_return;
    }
    if (pass_->is_void()) {
      job.fail({503,
                "the engine does not answer",
                {},
                "engine_unavailable",
                Gate::breaker,
                core_.config().traffic.breaker.cooldown_s});
      co_return;
    }
    if (is_drain_over_) {
      job.fail({503, "the server is shutting down", {}, "draining"});
      co_return;
    }
    co_await signal_->async_receive(kAwait);
  }
}

asio::awaitable<bool> Session::send_stream(const RequestHead& head,
                                           GenerationJob& job,
                                           bool& has_head) {
  const std::string data = job.take_stream();
  std::string out;
  if (!has_head) {
    has_head = true;
    closes_ = closes_ || !head.is_http_11;
    out = reply_head(head,
                     200,
                     "text/event-stream; charset=utf-8",
                     head.is_http_11 ? "Transfer-Encoding: chunked\r\n" : "");
    out += "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n\r\n";
  }
  if (head.is_http_11) {
    out += chunk_head(data.size()) + data + "\r\n";
  } else {
    out += data;
  }
  const IoStatus status = co_await connection_->write(out, core_.config().limits.write_timeout_s);
  co_return status == IoStatus::ok;
}

asio::awaitable<void> Session::health_generate(const RequestHead& head) {
  const ServedModel& model = *core_.model();
  const uint64_t first_step = model.engine->stats().last_step_id;
  const TimePoint deadline = after_seconds(core_.config().limits.health_generate_s);
  Flight flight(core_, signal_);
  GenerateRequest request;
  request.prompt = {model.tokenizer->bos_id().value_or(0)};
  request.max_new_tokens = 1;
  request.sampling.temperature = 0;
  std::optional<ApiError> error = flight.submit(std::move(request));
  const bool is_queue_full =
      error && (error->gate == Gate::queue ||
                error->gate == Gate::wait);  // busy is not ill: wait for progress
  error = is_queue_full ? std::nullopt : error;
  asio::steady_timer timer(executor());
  timer.expires_at(is_queue_full ? std::min(deadline, after_seconds(1)) : deadline);
  timer.async_wait([self = shared_from_this()](boost::system::error_code) { self->wake(); });
  bool has_answer = false;
  while (!error && !has_answer && !is_drain_over_ && timer.expiry() > system_clock().now()) {
    co_await signal_->async_receive(kAwait);
    for (const TokenQueue::Item& item : flight.queue->take()) {
      const std::optional<FinishReason> finish = item.event.finish;
      if (finish == FinishReason::error || finish == FinishReason::deadline) {
        error = ApiError{503, item.event.error, {}, "engine_error"};
      }
      flight.has_ended[item.choice] = item.event.finish.has_value();
      has_answer = has_answer || item.event.finish.has_value();
    }
  }
  timer.cancel();
  if (!error && !has_answer && model.engine->stats().last_step_id == first_step) {
    error = ApiError{503, "no token was generated in time", {}, "engine_error"};
  }
  HttpReply reply;
  reply.body = "{\"status\":\"ready\"}";
  if (error) {
    reply = refuse(*error);
  }
  co_await send(head, std::move(reply));
}

}  // namespace hadal::api
