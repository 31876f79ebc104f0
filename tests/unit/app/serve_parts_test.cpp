// The small parts around the server: what it tells about its flags, and the periodic log line.
#include <deque>

#include "catch.h"
#include "cli.h"
#include "config.h"
#include "server_args.h"
#include "step_log.h"

using namespace hadal;

namespace {

/// Gives back prepared results.
class ScriptedRunner final : public Runner {
 public:
  explicit ScriptedRunner(std::deque<StepResult> results) : results_(std::move(results)) {}

  const RunnerLimits& limits() const override { return limits_; }

  Status submit(const BatchPlan&) override { return ok_status(); }

  Result<StepResult> wait() override {
    StepResult result = std::move(results_.front());
    results_.pop_front();
    return result;
  }

 private:
  RunnerLimits limits_;
  std::deque<StepResult> results_;
};

}  // namespace

TEST_CASE("server args: keys are SGLang's, and the API key stays secret", "[app]") {
  auto line = parse_command_line(std::vector<std::string>{"serve",
                                                          "--model",
                                                          "/m",
                                                          "--tp",
                                                          "2",
                                                          "--api-key",
                                                          "s3cret",
                                                          "--trust-remote-code",
                                                          "--mem-fraction-static",
                                                          "0.5"});
  REQUIRE(line);
  auto config = build_config(line.value().values, {}, {});
  REQUIRE(config);
  const std::string json = server_args_json(config.value());
  CHECK(json.find("s3cret") == std::string::npos);
  CHECK(json.find("\"api_key\"") == std::string::npos);
  CHECK(json.find("\"tp_size\":2") != std::string::npos);
  CHECK(json.find("\"model_path\":\"/m\"") != std::string::npos);
  CHECK(json.find("\"trust_remote_code\":true") != std::string::npos);
  CHECK(json.find("\"mem_fraction_static\":0.5") != std::string::npos);
  CHECK(json.find("\"nnodes\":1") != std::string::npos);
}

TEST_CASE("step log: the line is the one that people grep for", "[app]") {
  EngineStats stats;
  stats.num_running = 3;
  stats.num_queued = 1;
  stats.pages_total = 100;
  stats.pages_leased = 25;
  CHECK(decode_line(stats, 123.456) ==
        "Decode batch. #running-req: 3, #token: 1600, token usage: 0.25, "
        "gen throughput (token/s): 123.46, #queue-req: 1");
}

TEST_CASE("step log: results pass through unchanged", "[app]") {
  StepResult sampled;
  sampled.step_id = 7;
  sampled.rows = {RowResult{}, RowResult{}};
  sampled.rows[0].token = 5;
  StepLog log(40);
  auto runner = log.wrap(std::make_unique<ScriptedRunner>(std::deque<StepResult>{sampled}));
  CHECK(runner->submit(BatchPlan{}));
  auto result = runner->wait();
  REQUIRE(result);
  CHECK(result.value().step_id == 7);
  REQUIRE(result.value().rows.size() == 2);
  CHECK(result.value().rows[0].token == 5);
}
