// The file of `--api-key-file`: what is wrong is named, and a key never is.
#include "api_key_file.h"

#include "catch.h"

using namespace hadal;

TEST_CASE("API keys: a file with everything, and one with the least", "[app]") {
  const auto keys = parse_api_keys(R"({"keys": [
      {"name": "team-a", "key": "sk-aaaaaaaa", "weight": 2.5, "class": "interactive",
       "requests_per_minute": 600, "tokens_per_minute": 200000, "concurrency": 32},
      {"name": "team-b", "key": "sk-bbbbbbbb"}]})",
                                   "keys.json");
  REQUIRE(keys);
  REQUIRE(keys.value().size() == 2);
  const ApiKey& a = keys.value()[0];
  CHECK(a.name == "team-a");
  CHECK(a.secret == "sk-aaaaaaaa");
  CHECK(a.weight == 2.5);
  CHECK(a.traffic_class == TrafficClass::interactive);
  CHECK(a.limits.requests_per_minute == 600);
  CHECK(a.limits.tokens_per_minute == 200000);
  CHECK(a.limits.concurrency == 32);
  const ApiKey& b = keys.value()[1];
  CHECK(b.weight == 1.0);
  CHECK(b.traffic_class == TrafficClass::normal);
  CHECK(b.limits.concurrency == 0);
}

TEST_CASE("API keys: a wrong file is refused whole", "[app]") {
  struct Case {
    const char* text;
    const char* expected;
  };

  for (
      const Case& bad : {
          Case{"", "expected one JSON object"},
          Case{"[]", "expected one JSON object"},
          Case{R"({"keys": []})", "1 to 4096 keys"},
          Case{R"({"keys": [], "more": 1})", "expected {\"keys\""},
          Case{R"({"keys": [3]})", "key 1: expected an object"},
          Case{R"({"keys": [{"name": "a"}]})", "key: expected a string"},
          Case{R"({"keys": [{"name": "a b", "key": "sk-secret"}]})", "name: expected"},
          Case{R"({"keys": [{"name": "a", "key": "sk-s"}]})", "8 to 512"},
          Case{R"({"keys": [{"name": "a", "key": "sk secret"}]})", "8 to 512"},
          Case{R"({"keys": [{"name": "a", "key": "sk-secret", "weight": 0}]})", "weight"},
          Case{R"({"keys": [{"name": "a", "key": "sk-secret", "class": "vip"}]})", "class"},
          Case{R"({"keys": [{"name": "a", "key": "sk-secret", "rpm": 3}]})", "unknown member"},
          Case{R"({"keys": [{"name": "a", "key": "sk-secret", "concurrency": "3"}]})",
               "concurrency: expected a number"},
          Case{
              R"({"keys": [{"name": "a", "key": "sk-secret"}, {"name": "a", "key": "sk-other1"}]})",
              "another key's"},
          Case{
              R"({"keys": [{"name": "a", "key": "sk-secret"}, {"name": "b", "key": "sk-secret"}]})",
              "the same as another"},
      }) {
    INFO(bad.text);
    const auto keys = parse_api_keys(bad.text, "keys.json");
    REQUIRE_FALSE(keys);
    CHECK(keys.error().code == ErrorCode::invalid_argument);
    CHECK(keys.error().message.find("keys.json: ") == 0);
    CHECK(keys.error().message.find(bad.expected) != std::string::npos);
    CHECK(keys.error().message.find("sk-") == std::string::npos);
  }
  CHECK_FALSE(parse_api_keys(std::string(1000, '['), "deep"));
  CHECK_FALSE(load_api_keys("/nowhere/keys.json"));
}
