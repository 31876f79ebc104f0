// generation_config.json, and the look-up of a model path.
#include "generation_config.h"

#include <fstream>

#include "catch.h"
#include "model_path.h"

using namespace hadal;
namespace fs = std::filesystem;

TEST_CASE("generation config: DeepSeek-R1's file", "[app]") {
  auto config = parse_generation_config(
      R"({"_from_model_config": true, "bos_token_id": 0, "eos_token_id": 1, "do_sample": true,
          "temperature": 0.6, "top_p": 0.95, "transformers_version": "4.39.3"})");
  REQUIRE(config);
  CHECK(config.value().eos_token_ids == std::vector<TokenId>{1});
  CHECK(config.value().temperature == 0.6);
  CHECK(config.value().top_p == 0.95);
  CHECK_FALSE(config.value().top_k);
}

TEST_CASE("generation config: several stop tokens, and greedy by do_sample", "[app]") {
  auto config = parse_generation_config(R"({"eos_token_id": [1, 7], "do_sample": false})");
  REQUIRE(config);
  CHECK(config.value().eos_token_ids == std::vector<TokenId>{1, 7});
  CHECK(config.value().temperature == 0.0);
}

TEST_CASE("generation config: a damaged field is named", "[app]") {
  const auto message = [](std::string_view json) {
    auto config = parse_generation_config(json);
    REQUIRE_FALSE(config);
    CHECK(config.error().code == ErrorCode::data_loss);
    return config.error().message;
  };
  CHECK(message("[") == "expected a JSON object");
  CHECK(message(R"({"temperature": "hot"})") == "temperature: expected a number");
  CHECK(message(R"({"top_p": 1.5})") == "top_p: expected a number in its range");
  CHECK(message(R"({"eos_token_id": -1})") == "eos_token_id: expected an id or a list of ids");
  CHECK(message(R"({"eos_token_id": 4294967296})").find("eos_token_id") == 0);
  CHECK(message(R"({"do_sample": 1})") == "do_sample: expected true or false");
}

TEST_CASE("model path: directories first, then the Hugging Face cache", "[app]") {
  const fs::path root = fs::temp_directory_path() / "hadal_model_path_test";
  fs::remove_all(root);
  const fs::path repository = root / "hub" / "models--org--name";
  fs::create_directories(repository / "snapshots" / "abc123");
  fs::create_directories(repository / "refs");
  std::ofstream(repository / "refs" / "main") << "abc123\n";
  const Environment environment{{{"HF_HOME", root.string()}}, "host"};

  CHECK(find_model_dir({.name = root.string()}, environment).value() == root);
  CHECK(find_model_dir({.name = "org/name"}, environment).value() ==
        repository / "snapshots" / "abc123");
  CHECK(find_model_dir({.name = "org/name", .revision = "abc123"}, environment).value() ==
        repository / "snapshots" / "abc123");
  CHECK(find_model_dir({.name = "org/name", .download_dir = root / "hub"}, {}).value() ==
        repository / "snapshots" / "abc123");
  for (const char* name : {"org/other", "/no/such/dir", "name", "org/../name"}) {
    auto missing = find_model_dir({.name = name}, environment);
    REQUIRE_FALSE(missing);
    CHECK(missing.error().code == ErrorCode::not_found);
    CHECK(missing.error().message.find(name) != std::string::npos);
  }
  fs::remove_all(root);
}
