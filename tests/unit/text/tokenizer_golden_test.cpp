// Hugging Face's and tiktoken's results on a few strings of every class, for 17 ways to split text
// and for a rank file. tests/text_exactness compares many more where PyPI can be reached.
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <hadal/text/tokenizer.h>

#include "catch.h"

using hadal::AddedTokens;
using hadal::TokenId;
using hadal::Tokenizer;
using json = nlohmann::json;

namespace {

/// Of this process, so that a busy machine does not fail a test.
double cpu_seconds() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

const json& golden() {
  static const json value = [] {
    std::ifstream in(HADAL_SOURCE_DIR "/tests/text_exactness/golden.json", std::ios::binary);
    REQUIRE(static_cast<bool>(in));
    return json::parse(in);
  }();
  return value;
}

std::string decode_base64(const std::string& text) {
  const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  unsigned bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=')
      break;
    bits = bits << 6 | static_cast<unsigned>(alphabet.find(c));
    count += 6;
    if (count >= 8) {
      count -= 8;
      out += static_cast<char>(bits >> count & 0xFFU);
    }
  }
  return out;
}

std::vector<TokenId> unpack(const std::string& text) {
  const std::string bytes = decode_base64(text);
  std::vector<uint16_t> words(bytes.size() / 2);
  if (!words.empty())
    std::memcpy(words.data(), bytes.data(), words.size() * 2);
  return {words.begin(), words.end()};
}

/// [class, text, ids with added tokens, ids without ("": the same)]
void check_case(const Tokenizer& tokenizer, const json& c) {
  const std::string text = decode_base64(c[1]);
  const auto parsed = unpack(c[2]);
  const auto plain = c[3] == "" ? parsed : unpack(c[3]);
  INFO("class " << c[0] << ", text in base64 " << c[1]);
  CHECK(tokenizer.encode(text, AddedTokens::parse) == parsed);
  CHECK(tokenizer.encode(text, AddedTokens::as_text) == plain);
  const auto size = static_cast<int64_t>(text.size());
  CHECK(tokenizer.encode({text, {{0, size / 2}, {size / 2, size}}}) == plain);
}

void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  REQUIRE(static_cast<bool>(out.flush()));
}

/// A directory of its own below the working directory, removed at the end.
struct TemporaryDirectory {
  explicit TemporaryDirectory(const std::string& name)
      : path(std::filesystem::temp_directory_path() /
             (name + "." + std::to_string(std::random_device()()))) {
    std::filesystem::create_directories(path);
  }

  ~TemporaryDirectory() { std::filesystem::remove_all(path); }

  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::filesystem::path path;
};

std::string load_error(const std::filesystem::path& dir) {
  const auto tokenizer = Tokenizer::load(dir);
  return tokenizer ? "" : tokenizer.error().message;
}

}  // namespace

TEST_CASE("Tokenizer: every split variant agrees with Hugging Face", "[text]") {
  std::set<std::string> classes;
  for (const auto& [name, pre_tokenizer] : golden()["variants"].items()) {
    json spec = golden()["tokenizer"];
    spec["pre_tokenizer"] = pre_tokenizer;
    const auto tokenizer = Tokenizer::from_tokenizer_json(spec.dump());
    INFO("variant " << name << ": " << (tokenizer ? "" : tokenizer.error().message));
    REQUIRE(static_cast<bool>(tokenizer));
    int count = 0;
    for (const json& c : golden()["cases"]) {
      if (c[0] != name)
        continue;
      classes.insert(c[1].get<std::string>());
      check_case(tokenizer.value(), {c[1], c[2], c[3], c[4]});
      ++count;
    }
    CHECK(count >= 45);
  }
  CHECK(golden()["variants"].size() >= 17);
  CHECK(classes.size() >= 15);
}

TEST_CASE("Tokenizer: long runs take linear time with every model's split", "[text]") {
  for (const std::string variant : {"deepseek_v2", "kimi", "gpt4", "gpt2", "no_split"}) {
    json spec = golden()["tokenizer"];
    spec["pre_tokenizer"] = golden()["variants"][variant];
    const auto tokenizer = Tokenizer::from_tokenizer_json(spec.dump());
    REQUIRE(static_cast<bool>(tokenizer));
    for (const std::string unit : {"A", "a", "7", " ", "\n", "!", "\xE5\xAD\x97", "\xCC\x81"}) {
      std::string text;
      while (text.size() < (size_t{1} << 18))
        text += unit;
      const double start = cpu_seconds();
      CHECK(!tokenizer.value().encode(text + "z", AddedTokens::parse).empty());
      const double seconds = cpu_seconds() - start;
      INFO(variant << ", first byte " << int{unit[0]});
      CHECK(seconds < 5.0);  // quadratic time would be minutes
    }
  }
}

TEST_CASE("Tokenizer: a rank file agrees with tiktoken", "[text]") {
  const TemporaryDirectory dir("hadal-tiktoken");
  const json& reference = golden()["tiktoken"];
  write_file(dir.path / "tiktoken.model", reference["ranks"].get<std::string>());
  write_file(dir.path / "tokenizer_config.json", reference["config"].dump());
  const auto loaded = Tokenizer::load(dir.path);
  INFO((loaded ? "" : loaded.error().message));
  REQUIRE(static_cast<bool>(loaded));
  const Tokenizer& tokenizer = loaded.value();
  REQUIRE(reference["cases"].size() >= 150);
  for (const json& c : reference["cases"])
    check_case(tokenizer, c);
  CHECK(tokenizer.bos_id() == tokenizer.added_token("[BOS]"));
  CHECK(tokenizer.eos_id() == tokenizer.added_token("[EOS]"));
  CHECK_FALSE(tokenizer.adds_bos());
  CHECK(tokenizer.is_special(*tokenizer.eos_id()));
  const TokenId reserved = *tokenizer.eos_id() + 1;
  CHECK(tokenizer.bytes(reserved) == "<|reserved_token_" + std::to_string(reserved) + "|>");
  CHECK(tokenizer.vocab_size() == *tokenizer.bos_id() + 258);
  // Kimi's tokenizer cuts runs of 25,000 characters before tiktoken sees them.
  const auto half = tokenizer.encode(std::string(25'000, 'a'), AddedTokens::parse);
  auto twice = half;
  twice.insert(twice.end(), half.begin(), half.end());
  CHECK(tokenizer.encode(std::string(50'000, 'a'), AddedTokens::parse) == twice);
}

TEST_CASE("Tokenizer: a damaged rank file is an error with its line", "[text]") {
  const TemporaryDirectory dir("hadal-tiktoken-bad");
  const std::string good = golden()["tiktoken"]["ranks"];
  const auto error_with = [&](const std::string& ranks) {
    write_file(dir.path / "tiktoken.model", ranks);
    return load_error(dir.path);
  };
  CHECK(error_with(good).empty());
  CHECK(error_with("QQ== 0\n!!!! 1\n").find("line 2") != std::string::npos);
  CHECK(error_with("QQ==\n").find("line 1") != std::string::npos);
  CHECK(error_with("QQ== -1\n").find("rank") != std::string::npos);
  CHECK(error_with("QQ== 0\nQg== 0\n").find("used twice") != std::string::npos);
  CHECK(error_with("QQ== 0\n").find("byte") != std::string::npos);
  CHECK(error_with("QQ== 7\n").find("every rank") != std::string::npos);
  CHECK(error_with(good + "QQ== 1000000000000\n").find("rank") != std::string::npos);
  CHECK_FALSE(error_with("").empty());
}

TEST_CASE("Tokenizer: a directory without either tokenizer file names both", "[text]") {
  const TemporaryDirectory dir("hadal-no-tokenizer");
  const auto tokenizer = Tokenizer::load(dir.path);
  REQUIRE_FALSE(static_cast<bool>(tokenizer));
  CHECK(tokenizer.error().code == hadal::ErrorCode::not_found);
  CHECK(tokenizer.error().message.find("tokenizer.json") != std::string::npos);
  CHECK(tokenizer.error().message.find("tiktoken.model") != std::string::npos);
}

TEST_CASE("Tokenizer: tokenizer_config.json names BOS and EOS and adds missing tokens", "[text]") {
  const TemporaryDirectory dir("hadal-config");
  write_file(dir.path / "tokenizer.json", golden()["tokenizer"].dump());
  json config = {{"bos_token", {{"content", "<｜begin▁of▁sentence｜>"}}},
                 {"eos_token", "<｜User｜>"},
                 {"add_bos_token", true},
                 {"added_tokens_decoder", {{"2000", {{"content", "<new>"}, {"special", true}}}}}};
  const auto rewrite = [&] { write_file(dir.path / "tokenizer_config.json", config.dump()); };
  rewrite();
  auto loaded = Tokenizer::load(dir.path);
  INFO((loaded ? "" : loaded.error().message));
  REQUIRE(static_cast<bool>(loaded));
  CHECK(loaded.value().bos_id() == loaded.value().added_token("<｜begin▁of▁sentence｜>"));
  CHECK(loaded.value().eos_id() == loaded.value().added_token("<｜User｜>"));
  CHECK(loaded.value().adds_bos());
  CHECK(loaded.value().encode("a<new>", AddedTokens::parse).back() == 2000);
  CHECK(loaded.value().vocab_size() == 2001);
  config["eos_token"] = "<missing>";
  rewrite();
  CHECK(load_error(dir.path).find("eos_token") != std::string::npos);
  config["eos_token"] = nullptr;
  config["add_bos_token"] = "yes";
  rewrite();
  CHECK(load_error(dir.path).find("add_bos_token") != std::string::npos);
  config.erase("add_bos_token");
  rewrite();
  loaded = Tokenizer::load(dir.path);
  REQUIRE(static_cast<bool>(loaded));
  CHECK_FALSE(loaded.value().adds_bos());
  CHECK_FALSE(loaded.value().eos_id().has_value());
}
