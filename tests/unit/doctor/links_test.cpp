// The doctors of several nodes really meet here, as threads over loopback; planted measurements
// show what is called slow.
#include <atomic>
#include <thread>

#include <hadal/doctor/doctor.h>

#include "catch.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

using namespace hadal;

namespace {

/// A port that was free a moment ago.
uint16_t free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  REQUIRE(::bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0);
  REQUIRE(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  ::close(fd);
  return ntohs(address.sin_port);
}

DoctorConfig node_config(int32_t num_nodes, int32_t rank, uint16_t port) {
  DoctorConfig config;
  config.num_nodes = num_nodes;
  config.node_rank = rank;
  config.leader_host = "127.0.0.1";
  config.leader_port = port;
  config.timeout_s = 60;
  config.build = "test";
  config.secret = {"s3cret"};
  return config;
}

DoctorProbes probes_with_clock(int64_t offset_us) {
  DoctorProbes probes = system_probes();
  probes.wall_clock_us = [real = probes.wall_clock_us, offset_us] { return real() + offset_us; };
  return probes;
}

/// A stranger: sends these bytes and returns what comes back until the other end hangs up.
std::string knock(uint16_t port, const std::string& bytes) {
  for (int attempt = 0; attempt < 200; ++attempt) {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    const bool is_open = ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    const bool is_sent = is_open && ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) > 0;
    std::string answer;
    char buffer[512];
    for (ssize_t n = 0; is_sent && (n = ::recv(fd, buffer, sizeof buffer, 0)) > 0;) {
      answer.append(buffer, static_cast<size_t>(n));
    }
    ::close(fd);
    if (is_sent) {
      return answer;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return "nobody listens";
}

LinkMeasurement link(int32_t low, int32_t high, double up, double down) {
  return {low, high, 50, up, down, {}};
}

std::string failures_of(const LinkReport& report, double rated = 0) {
  std::string text;
  for (const Finding& finding : judge_links(report, rated)) {
    if (finding.level == FindingLevel::failed) {
      text += to_text(finding);
    }
  }
  return text;
}

LinkReport four_nodes() {
  LinkReport report;
  report.names = {"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"};
  for (int32_t low = 0; low < 4; ++low) {
    for (int32_t high = low + 1; high < 4; ++high) {
      report.links.push_back(link(low, high, 1000 + low, 1100 + high));
    }
  }
  return report;
}

}  // namespace

TEST_CASE("doctor: three nodes meet and measure every pair", "[doctor]") {
  const uint16_t port = free_port();
  std::vector<std::optional<Result<Meeting>>> meetings(3);
  {
    std::vector<std::jthread> threads;
    for (int32_t rank = 2; rank >= 0; --rank) {
      threads.emplace_back([&meetings, rank, port] {
        const DoctorProbes probes = probes_with_clock(rank == 2 ? 90'000'000 : 0);
        meetings[static_cast<size_t>(rank)] = measure_links(node_config(3, rank, port), probes);
      });
      if (rank == 1) {
        threads.emplace_back([port] { knock(port, std::string(200, '\xff')); });
      }
    }
  }
  for (const auto& meeting : meetings) {
    REQUIRE(meeting);
    INFO((*meeting ? "" : meeting->error().message));
    REQUIRE(*meeting);
  }
  const LinkReport& report = meetings[0]->value().report;
  INFO(link_table(report));
  CHECK(report.missing_nodes.empty());
  REQUIRE(report.links.size() == 3);
  for (const LinkMeasurement& measured : report.links) {
    CHECK(measured.error.empty());
    CHECK(measured.round_trip_us > 0);
    CHECK(measured.low_to_high_mb_per_s > 0);
    CHECK(measured.high_to_low_mb_per_s > 0);
  }
  CHECK(report.all_reduce_error.empty());
  CHECK(report.all_reduce_bytes > 0);
  CHECK(report.all_reduce_ms > 0);
  CHECK(report.strangers_dropped <= 1);
  REQUIRE(report.clocks.size() == 2);
  CHECK(std::abs(report.clocks[0].offset_ms) < 1000);
  CHECK(report.clocks[1].offset_ms == Approx(90'000).margin(1000));
  std::string skew;
  for (const Finding& finding : meetings[0]->value().findings) {
    skew += finding.check == "clock skew" ? to_text(finding) : "";
  }
  CHECK_THAT(skew, Catch::Matchers::Contains("is 90.0 s ahead of node 0"));
  CHECK_THAT(skew, Catch::Matchers::Contains("chrony"));
  CHECK(meetings[1]->value().findings.front().level == FindingLevel::failed);
}

TEST_CASE("doctor: a node that does not come is named", "[doctor]") {
  DoctorConfig config = node_config(2, 0, free_port());
  config.timeout_s = 1;
  const auto meeting = measure_links(config, system_probes());
  REQUIRE(meeting);
  CHECK(meeting.value().report.missing_nodes == std::vector<int32_t>{1});
  CHECK_THAT(to_text(meeting.value().findings.front()), Catch::Matchers::Contains("--node-rank 1"));
}

TEST_CASE("doctor: a leader that is not there is told from a wrong flag", "[doctor]") {
  const uint16_t port = free_port();
  DoctorConfig config = node_config(2, 1, port);
  config.timeout_s = 1;
  const auto alone = measure_links(config, system_probes());
  REQUIRE_FALSE(alone);
  CHECK_THAT(alone.error().message, Catch::Matchers::Contains("Connection refused"));
  CHECK_THAT(alone.error().message, Catch::Matchers::Contains("\nrun hadal doctor on node 0"));

  DoctorConfig leader = node_config(3, 0, port);
  leader.timeout_s = 2;
  config.timeout_s = 60;
  std::optional<Result<Meeting>> result;
  std::jthread worker([&] { result = measure_links(config, system_probes()); });
  const auto meeting = measure_links(leader, system_probes());
  worker.join();
  REQUIRE(meeting);
  CHECK(meeting.value().report.missing_nodes.size() == 2);
  REQUIRE(meeting.value().report.refusals.size() == 1);
  CHECK(meeting.value().findings.front().check == "other flags");
  REQUIRE(result);
  REQUIRE_FALSE(*result);
  CHECK_THAT(result->error().message,
             Catch::Matchers::Contains("--nnodes is 2 there and 3 on node 0"));
}

/// A hello as the protocol has it, and a proof made of zeros.
std::string unproven_hello() {
  std::string bytes(88 + 64, '\0');
  bytes.replace(0, 8, "hadaldr2");
  bytes[12] = 1;  // node rank
  bytes[16] = 2;  // nodes
  bytes[20] = 1;  // ranks a node
  return bytes;
}

TEST_CASE("doctor: who does not prove the secret takes no part and learns nothing", "[doctor]") {
  const uint16_t port = free_port();
  DoctorConfig config = node_config(2, 0, port);
  config.timeout_s = 2;
  std::string answer;
  std::jthread stranger([&] { answer = knock(port, unproven_hello()); });
  const auto meeting = measure_links(config, system_probes());
  stranger.join();
  REQUIRE(meeting);
  CHECK(meeting.value().report.missing_nodes == std::vector<int32_t>{1});
  CHECK(meeting.value().report.wrong_secrets == std::vector<std::string>{"127.0.0.1"});
  // The challenge, then zeros instead of a proof.
  REQUIRE(answer.size() == 40 + 32);
  CHECK(answer.substr(40) == std::string(32, '\0'));
}

TEST_CASE("doctor: another secret is named on both sides", "[doctor]") {
  const uint16_t port = free_port();
  DoctorConfig leader = node_config(2, 0, port);
  leader.timeout_s = 2;
  DoctorConfig worker = node_config(2, 1, port);
  worker.secret = {"another"};
  std::optional<Result<Meeting>> result;
  std::jthread thread([&] { result = measure_links(worker, system_probes()); });
  const auto meeting = measure_links(leader, system_probes());
  thread.join();
  REQUIRE(meeting);
  const std::string text = to_text(meeting.value().findings.front());
  CHECK_THAT(text, Catch::Matchers::Contains("that of 127.0.0.1 is not node 0's"));
  CHECK_THAT(text, Catch::Matchers::Contains("mount the same secret at /etc/hadal/group-secret"));
  REQUIRE(result);
  REQUIRE_FALSE(*result);
  CHECK_THAT(result->error().message,
             Catch::Matchers::Contains("the group secret is not the same on both nodes\nmount"));
}

TEST_CASE("doctor: without a secret nodes meet on loopback alone", "[doctor]") {
  const uint16_t port = free_port();
  for (const int32_t rank : {0, 1}) {
    DoctorConfig config = node_config(2, rank, port);
    config.secret = {};
    config.leader_host = "0.0.0.0";
    const auto refused = measure_links(config, system_probes());
    REQUIRE_FALSE(refused);
    CHECK_THAT(refused.error().message,
               Catch::Matchers::Contains("is not a loopback address: the nodes need a shared"));
  }
  std::vector<std::optional<Result<Meeting>>> meetings(2);
  {
    std::vector<std::jthread> threads;
    for (int32_t rank = 0; rank < 2; ++rank) {
      threads.emplace_back([&meetings, rank, port] {
        DoctorConfig config = node_config(2, rank, port);
        config.secret = {};
        meetings[static_cast<size_t>(rank)] = measure_links(config, system_probes());
      });
    }
  }
  for (const auto& meeting : meetings) {
    REQUIRE(meeting);
    INFO((*meeting ? "" : meeting->error().message));
    CHECK(*meeting);
  }
}

TEST_CASE("doctor: slow links are told from ordinary spread", "[doctor]") {
  LinkReport report = four_nodes();
  CHECK(failures_of(report).empty());
  SECTION("one slow direction of one link") {
    report.links[3].low_to_high_mb_per_s = 300;  // node 1 to node 2
    const std::string text = failures_of(report);
    CHECK_THAT(text, Catch::Matchers::Contains("node 1 (10.0.0.2) to node 2 (10.0.0.3): 300 MB/s"));
    CHECK(std::count(text.begin(), text.end(), '\n') == 2);
  }
  SECTION("a long round trip") {
    report.links[0].round_trip_us = 50'000;
    CHECK_THAT(failures_of(report), Catch::Matchers::Contains("round trip of 50.0 ms"));
  }
  SECTION("a link that does not open") {
    report.links[5].error = "Connection refused";
    report.all_reduce_error = "not run: a link is broken";
    const std::string text = failures_of(report);
    CHECK_THAT(text, Catch::Matchers::Contains("node 3 (10.0.0.4) to node 2 (10.0.0.3): Conn"));
    CHECK(std::count(text.begin(), text.end(), '\n') == 2);
  }
  SECTION("a wrong sum") {
    report.all_reduce_error = "node 2: sum 5 is 1, expected 2";
    CHECK_THAT(failures_of(report), Catch::Matchers::Contains("sum 5"));
  }
}

TEST_CASE("doctor: two nodes have only each other and the rated speed", "[doctor]") {
  LinkReport report;
  report.links = {link(0, 1, 100, 110)};
  CHECK(failures_of(report).empty());
  CHECK_THAT(failures_of(report, 12500), Catch::Matchers::Contains("100 MB/s, expected 625"));
  CHECK(failures_of(report, 125).empty());
  report.links = {link(0, 1, 1200, 110)};
  CHECK_THAT(failures_of(report), Catch::Matchers::Contains("node 1 to node 0: 110 MB/s"));
}

TEST_CASE("doctor: a clock offset within its uncertainty is no skew", "[doctor]") {
  LinkReport report;
  report.clocks = {{1, 1500, 900}, {2, -1500, 10}};
  const std::string text = failures_of(report);
  CHECK_THAT(text, Catch::Matchers::Contains("node 2 is 1.5 s behind node 0"));
  CHECK(text.find("node 1") == std::string::npos);
}
