// argparse's reading of the command line, and the config file.
#include "arguments.h"

#include "catch.h"
#include "cli.h"

using namespace hadal;

namespace {

using Words = std::vector<std::string>;

std::string resolved(std::string_view name) {
  auto flag = resolve_flag(name, kServe);
  return flag ? std::string(flag.value()->name) : flag.error().message;
}

Words canonical(const Words& words) {
  auto result = canonical_arguments(words, kServe);
  REQUIRE(result);
  return result.value();
}

std::string usage_error(const Words& words) {
  auto line = parse_command_line(words);
  REQUIRE_FALSE(line);
  CHECK(line.error().code == ErrorCode::invalid_argument);
  return line.error().message;
}

}  // namespace

TEST_CASE("arguments: the prefixes that manifests use mean what SGLang takes them for", "[app]") {
  CHECK(resolved("tp") == "tp-size");
  CHECK(resolved("tensor") == "tp-size");
  CHECK(resolved("dp") == "dp-size");
  CHECK(resolved("model") == "model-path");
  CHECK(resolved("disable-radix") == "disable-radix-cache");
  CHECK(resolved("disable-overlap") == "disable-overlap-schedule");
  CHECK(resolved("nccl-init") == "dist-init-addr");
  CHECK(resolved("dist") == "dist-init-addr");
  CHECK(resolved("trust-remote") == "trust-remote-code");
  CHECK(resolved("speculative-algo") == "speculative-algorithm");
  CHECK(resolved("speculative-draft") == "speculative-draft-model-path");
  CHECK(resolved("sh") == "show-time-cost");  // --shutdown-grace is ours and gives way
  CHECK(resolved("max_running_requests") == "max-running-requests");
  CHECK(resolved("runner") == "runner");
}

TEST_CASE("arguments: ambiguous and unknown flags say what was meant", "[app]") {
  CHECK(resolved("max") ==
        "--max is ambiguous; it could be --max-running-requests, --max-total-tokens, "
        "--max-prefill-tokens, --max-loras-per-batch");
  CHECK(resolved("modle-path") == "unknown flag --modle-path; the nearest is --model-path");
  CHECK(resolved("tp-sizes") == "unknown flag --tp-sizes; the nearest is --tp-size");
  CHECK(usage_error({"serve", "--contxt-length", "5"}).find("--context-length") !=
        std::string::npos);
}

TEST_CASE("arguments: equals signs, negative numbers, lists and words", "[app]") {
  CHECK(canonical({"--tp", "16", "--chunked-prefill-size", "-1", "--port=80"}) ==
        Words{"--tp-size=16", "--chunked-prefill-size=-1", "--port=80"});
  CHECK(
      canonical({"--cuda-graph-bs", "1", "2", "4", "--trust-remote-code"}) ==
      Words{"--cuda-graph-bs=1", "--cuda-graph-bs=2", "--cuda-graph-bs=4", "--trust-remote-code"});
  CHECK(canonical({"word", "--", "--tp", "2"}) == Words{"word", "--", "--tp", "2"});
  CHECK(canonical_arguments(Words{"--port", "--tp"}, kServe).error().message ==
        "--port: expected a value");
  CHECK(canonical_arguments(Words{"--port", "eighty"}, kServe).error().message ==
        "--port: expected an integer, got 'eighty'");
  CHECK(canonical_arguments(Words{"--trust-remote-code=1"}, kServe).error().message ==
        "--trust-remote-code: takes no value");
}

TEST_CASE("command line: the last of two equal flags wins", "[app]") {
  auto line = parse_command_line(Words{"serve", "--port", "1", "--model", "m", "--port=2"});
  REQUIRE(line);
  CHECK(line.value().values.at("port") == Words{"2"});
  CHECK(line.value().values.at("model-path") == Words{"m"});
}

TEST_CASE("command line: commands have their own flags and words", "[app]") {
  auto line = parse_command_line(Words{"generate", "--model", "m", "hello there"});
  REQUIRE(line);
  CHECK(line.value().words == Words{"hello there"});
  CHECK(usage_error({"serve", "hello"}).find("hello") != std::string::npos);
  CHECK(usage_error({"serve", "--raw"}).find("unknown flag --raw") != std::string::npos);
  CHECK(usage_error({"sreve"}).find("unknown command 'sreve'") != std::string::npos);
  CHECK(usage_error({}).find("no command") != std::string::npos);
}

TEST_CASE("command line: help and version are answers", "[app]") {
  auto help = parse_command_line(Words{"serve", "--help"});
  REQUIRE(help);
  REQUIRE(help.value().immediate_output);
  CHECK(help.value().immediate_output->find("--tp-size") != std::string::npos);
  auto version = parse_command_line(Words{"--version"});
  REQUIRE(version);
  CHECK(version.value().immediate_output->starts_with("hadal 0."));
}

TEST_CASE("config file: keys are flags, values have their kinds", "[app]") {
  auto values = parse_config_file(
      R"({"tp_size": 4, "model-path": "/m", "trust_remote_code": true, "enable_metrics": false,
          "cuda_graph_bs": [1, 2], "json_model_override_args": {"num_hidden_layers": 2},
          "api_key": null, "mem_fraction_static": 0.5})",
      "c.json",
      kServe);
  REQUIRE(values);
  CHECK(values.value().at("tp-size") == Words{"4"});
  CHECK(values.value().at("cuda-graph-bs") == Words{"1", "2"});
  CHECK(values.value().at("json-model-override-args") == Words{R"({"num_hidden_layers":2})"});
  CHECK(values.value().at("trust-remote-code") == Words{"true"});
  CHECK(values.value().count("enable-metrics") == 0);
  CHECK(values.value().count("api-key") == 0);
}

TEST_CASE("config file: what is wrong is named with the file", "[app]") {
  const auto message = [](std::string_view json) {
    auto values = parse_config_file(json, "c.json", kServe);
    REQUIRE_FALSE(values);
    return values.error().message;
  };
  CHECK(message(R"({"tp_sise": 4})") == "c.json: unknown flag --tp-sise; the nearest is --tp-size");
  CHECK(message(R"({"port": "x"})") == "c.json: --port: expected an integer, got 'x'");
  CHECK(message(R"({"port": [1]})") == "c.json: key 'port': expected one value");
  CHECK(message(R"({"host": {}})") ==
        "c.json: key 'host': expected a string, number or boolean, got object");
  CHECK(message("[]") == "c.json: expected one JSON object of flags");
  CHECK(message(R"({"config": "other"})") == "c.json: a config file cannot name another one");
  CHECK(message(std::string(5000, '[')) == "c.json: expected one JSON object of flags");
}
