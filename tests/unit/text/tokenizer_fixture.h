// A small byte-level tokenizer.json for tests: the 256 bytes and a few merges.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include <hadal/text/tokenizer.h>

#include "catch.h"

namespace hadal_test {

using json = nlohmann::json;

/// The character that stands for `byte` in the byte-level alphabet.
inline std::string byte_symbol(int byte) {
  int code_point = byte;
  if (!((byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173))) {
    int before = 0;
    for (int b = 0; b < byte; ++b)
      before += (b >= 33 && b <= 126) || (b >= 161 && b != 173) ? 0 : 1;
    code_point = 256 + before;
  }
  if (code_point < 0x80)
    return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 63))};
}

/// No split at all; "aa", "aaaa" and "hello" are merged.
inline json make_spec() {
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte)
    vocab[byte_symbol(byte)] = byte;
  json merges = json::array();
  const auto merge = [&](const std::string& left, const std::string& right) {
    vocab[left + right] = vocab.size();
    merges.push_back(left + " " + right);
  };
  merge("l", "l");
  merge("a", "a");
  merge("h", "e");
  merge("aa", "aa");
  merge("ll", "o");
  merge("he", "llo");
  return {
      {"version", "1.0"},
      {"added_tokens", json::array()},
      {"normalizer", {{"type", "Sequence"}, {"normalizers", json::array()}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

inline void add_token(json* spec, const std::string& content, bool is_special = false) {
  const size_t id = (*spec)["model"]["vocab"].size() + (*spec)["added_tokens"].size();
  (*spec)["added_tokens"].push_back(
      {{"id", id}, {"content", content}, {"special", is_special}, {"normalized", false}});
}

inline json split_of(const std::string& pattern, const std::string& behavior = "Isolated") {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", behavior}};
}

inline void set_split(json* spec, const std::string& pattern) {
  const json bytes = (*spec)["pre_tokenizer"];
  (*spec)["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split_of(pattern), bytes}}};
}

/// The three splits of DeepSeek-V3 and R1.
inline void set_deepseek_split(json* spec) {
  const json bytes = (*spec)["pre_tokenizer"];
  (*spec)["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {split_of("\\p{N}{1,3}"),
        split_of("[一-龥\u3040-ゟ゠-ヿ]+"),
        split_of("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
                 "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
        bytes}}};
}

inline hadal::Tokenizer must_load(const json& spec) {
  auto tokenizer = hadal::Tokenizer::from_tokenizer_json(spec.dump());
  INFO((tokenizer ? "" : tokenizer.error().message));
  REQUIRE(static_cast<bool>(tokenizer));
  return std::move(tokenizer).value();
}

}  // namespace hadal_test
