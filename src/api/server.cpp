// Ports, threads and the end of things: who listens where, and how all connections come to a close.
//
// The admin port has an io_context and a thread of its own, so that probes are answered whatever
// the serving threads do.
#include <condition_variable>
#include <map>
#include <thread>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <hadal/api/server.h>
#include <hadal/base/log.h>

#include "server_core.h"
#include "session.h"
#include "traffic_monitor.h"

namespace hadal {

namespace asio = boost::asio;
using asio::ip::tcp;

namespace api {

namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr double kAfterDrainSeconds = 5;
constexpr double kCutSeconds = 2;

/// One listening port, its threads and its connections.
class Port {
 public:
  Port(ServerCore& core, PortScope scope, int32_t num_threads)
      : core_(core),
        scope_(scope),
        num_threads_(num_threads),
        text_pool_(static_cast<size_t>(core.config().text_threads)),
        acceptor_(asio::make_strand(io_)),
        drain_timer_(acceptor_.get_executor()) {}

  ~Port() { stop(); }

  Status open(const std::string& host, uint16_t port) {
    const std::string where = host + ":" + std::to_string(port);
    boost::system::error_code error;
    tcp::resolver resolver(io_);
    const auto found =
        resolver.resolve(host, std::to_string(port), tcp::resolver::numeric_service, error);
    if (error || found.empty()) {
      return Error{ErrorCode::unavailable, "cannot listen on " + where + ": unknown host"};
    }
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) {
      acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    }
    if (!error) {
      acceptor_.bind(endpoint, error);
    }
    if (!error) {
      acceptor_.listen(1024, error);
    }
    if (error) {
      return Error{ErrorCode::unavailable, "cannot listen on " + where + ": " + error.message()};
    }
    port_.store(acceptor_.local_endpoint().port());
    asio::co_spawn(acceptor_.get_executor(), accept(), asio::detached);
    for (int32_t i = 0; i < num_threads_; ++i) {
      threads_.emplace_back([this] { io_.run(); });
    }
    return ok_status();
  }

  uint16_t port() const { return port_.load(); }

  void request_drain(TimePoint deadline) {
    asio::post(acceptor_.get_executor(), [this, deadline] {
      boost::system::error_code ignored;
      acceptor_.close(ignored);
      for_all_sessions([](Session& session) { session.begin_drain(); });
      drain_timer_.expires_at(deadline);
      drain_timer_.async_wait([this](boost::system::error_code error) {
        if (!error) {
          for_all_sessions([](Session& session) { session.end_drain(); });
        }
      });
    });
  }

  /// Every connection looks again at what it waits for.
  void wake_sessions() {
    for_all_sessions([](Session& session) { session.wake(); });
  }

  /// False when connections are left at `deadline()`, which is asked again after each change.
  template <class Deadline>
  bool wait_empty(Deadline deadline) {
    std::unique_lock lock(mutex_);
    while (!sessions_.empty()) {
      const TimePoint until = deadline();
      if (until <= system_clock().now()) {
        return false;
      }
      changed_.wait_until(lock, std::min(until, after_seconds(0.5)));
    }
    return true;
  }

  void stop() {
    if (has_stopped_) {
      return;
    }
    has_stopped_ = true;
    if (!threads_.empty()) {
      asio::post(acceptor_.get_executor(), [this] {
        boost::system::error_code ignored;
        acceptor_.close(ignored);
        drain_timer_.cancel();
        for_all_sessions([](Session& session) { session.cut(); });
      });
      const TimePoint until = after_seconds(kCutSeconds);
      wait_empty([until] { return until; });
    }
    text_pool_.join();
    io_.stop();
    threads_.clear();
  }

 private:
  asio::awaitable<void> accept() {
    while (acceptor_.is_open()) {
      auto [error, socket] = co_await acceptor_.async_accept(asio::make_strand(io_), kAwait);
      if (error == asio::error::operation_aborted) {
        co_return;
      }
      if (error) {  // out of descriptors, most likely: give others time to close
        asio::steady_timer pause(acceptor_.get_executor(), std::chrono::milliseconds(50));
        co_await pause.async_wait(kAwait);
        continue;
      }
      begin_session(std::move(socket));
    }
  }

  void begin_session(tcp::socket socket) {
    std::shared_ptr<Session> session;
    uint64_t key = 0;
    {
      const std::lock_guard lock(mutex_);
      if (std::ssize(sessions_) >= core_.config().limits.connections_max) {
        core_.traffic().count_refusal(Gate::accept);
        return;  // the socket closes
      }
      session = std::make_shared<Session>(std::move(socket), core_, scope_, text_pool_);
      key = next_key_++;
      sessions_.emplace(key, session);
    }
    if (scope_ == PortScope::serving) {
      core_.begin_connection();
    }
    asio::co_spawn(
        session->executor(), run_session(session), [this, key](std::exception_ptr error) {
          if (error) {
            log_error("http: a connection failed and was closed");
          }
          if (scope_ == PortScope::serving) {
            core_.end_connection();
          }
          const std::lock_guard lock(mutex_);
          sessions_.erase(key);
          changed_.notify_all();
        });
  }

  static asio::awaitable<void> run_session(std::shared_ptr<Session> session) {
    co_await session->run();
  }

  template <class Call>
  void for_all_sessions(Call call) {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, weak] : sessions_) {
      if (std::shared_ptr<Session> session = weak.lock()) {
        asio::post(session->executor(), [session, call] { call(*session); });
      }
    }
  }

  ServerCore& core_;
  PortScope scope_;
  int32_t num_threads_;
  asio::io_context io_;
  asio::thread_pool text_pool_;
  tcp::acceptor acceptor_;
  asio::steady_timer drain_timer_;
  std::atomic<uint16_t> port_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, std::weak_ptr<Session>> sessions_;
  uint64_t next_key_ = 0;
  bool has_stopped_ = false;
  std::vector<std::jthread> threads_;
};

}  // namespace

}  // namespace api

struct ApiServer::Impl {
  Impl(ApiConfig config, const MetricsPage& metrics)
      : core(std::move(config), metrics),
        admin(core, api::PortScope::admin, 1),
        serving(core, api::PortScope::serving, core.config().io_threads),
        worker(core, api::PortScope::admin, 1) {}

  api::ServerCore core;
  api::Port admin;
  api::Port serving;
  api::Port worker;  ///< the serving port of a node without an engine
  std::optional<api::TrafficMonitor> monitor;
  std::atomic<bool> has_drain{false};
  std::atomic<TimePoint::rep> drain_deadline{0};
};

ApiServer::ApiServer(ApiConfig config, const MetricsPage& metrics)
    : impl_(std::make_unique<Impl>(std::move(config), metrics)) {}

ApiServer::~ApiServer() {
  stop();
}

Status ApiServer::start() {
  const ApiConfig& config = impl_->core.config();
  return config.admin_port ? impl_->admin.open(config.admin_host, *config.admin_port) : ok_status();
}

Status ApiServer::open(const ServedModel& model) {
  HADAL_CHECK(model.engine != nullptr && model.tokenizer != nullptr, "a model needs both");
  if (impl_->has_drain.load()) {
    return Error{ErrorCode::unavailable, "the server is shutting down"};
  }
  impl_->core.set_model(model);
  const ApiConfig& config = impl_->core.config();
  HADAL_RETURN_IF_ERROR(impl_->serving.open(config.host, config.port));
  impl_->core.set_state(ServerState::ready);
  impl_->monitor.emplace(impl_->core, [impl = impl_.get()] { impl->serving.wake_sessions(); });
  return ok_status();
}

Status ApiServer::open_worker() {
  const ApiConfig& config = impl_->core.config();
  HADAL_RETURN_IF_ERROR(impl_->worker.open(config.host, config.port));
  impl_->core.set_state(ServerState::ready);
  return ok_status();
}

void ApiServer::set_keys(const std::vector<ApiKey>& keys) {
  impl_->core.traffic().set_keys(keys);
}

void ApiServer::set_failed(const std::string& why) {
  impl_->core.set_failed(why);
}

void ApiServer::request_drain(TimePoint deadline) {
  const bool is_first = !impl_->has_drain.exchange(true);
  const TimePoint::rep ticks = deadline.time_since_epoch().count();
  TimePoint::rep old = impl_->drain_deadline.load();
  do {
    if (!is_first && ticks >= old) {
      return;
    }
  } while (!impl_->drain_deadline.compare_exchange_weak(old, ticks));
  if (impl_->core.state() != ServerState::failed) {
    impl_->core.set_state(ServerState::draining);
  }
  impl_->serving.request_drain(deadline);
}

void ApiServer::wait_drained() {
  impl_->serving.wait_empty([this] {
    return TimePoint(TimePoint::duration(impl_->drain_deadline.load())) +
           std::chrono::duration_cast<TimePoint::duration>(
               std::chrono::duration<double>(api::kAfterDrainSeconds));
  });
}

void ApiServer::stop() {
  impl_->monitor.reset();
  impl_->serving.stop();
  impl_->worker.stop();
  impl_->admin.stop();
}

ServerState ApiServer::state() const {
  return impl_->core.failure() ? ServerState::failed : impl_->core.state();
}

uint16_t ApiServer::port() const {
  return impl_->serving.port();
}

uint16_t ApiServer::admin_port() const {
  return impl_->admin.port();
}

}  // namespace hadal
