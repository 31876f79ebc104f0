// A byte-level tokenizer made by the test: ids 0-255 are the bytes, then DeepSeek's control tokens.
// Every text has tokens and every token has a text, so answers of the null runner can be predicted.
#pragma once

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include <hadal/text/chat_template.h>
#include <hadal/text/tokenizer.h>

#include "catch.h"

#include <unistd.h>

namespace hadal_test {

struct TinyTokenizer {
  static constexpr std::array<std::string_view, 11> kControlTokens = {"<｜begin▁of▁sentence｜>",
                                                                      "<｜end▁of▁sentence｜>",
                                                                      "<｜User｜>",
                                                                      "<｜Assistant｜>",
                                                                      "<think>",
                                                                      "</think>",
                                                                      "<｜tool▁calls▁begin｜>",
                                                                      "<｜tool▁calls▁end｜>",
                                                                      "<｜tool▁call▁begin｜>",
                                                                      "<｜tool▁call▁end｜>",
                                                                      "<｜tool▁sep｜>"};
  static constexpr hadal::TokenId kBos = 256;
  static constexpr hadal::TokenId kEos = 257;
  static constexpr hadal::TokenId kUser = 258;
  static constexpr hadal::TokenId kAssistant = 259;
  static constexpr hadal::TokenId kThink = 260;
  static constexpr hadal::TokenId kThinkEnd = 261;
  static constexpr int32_t kVocabSize = 256 + static_cast<int32_t>(kControlTokens.size());
};

/// The character that stands for `byte` in the byte-level alphabet, as JSON text.
inline std::string byte_level_json(int byte) {
  const auto is_plain = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  };
  int code_point = byte;
  if (!is_plain(byte)) {
    code_point = 256;
    for (int b = 0; b < byte; ++b) {
      code_point += is_plain(b) ? 0 : 1;
    }
  }
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "\\u%04x", static_cast<unsigned>(code_point));
  return text.data();
}

inline std::string tiny_tokenizer_json() {
  std::string json = R"({"version":"1.0","added_tokens":[)";
  int id = 256;
  for (const std::string_view token : TinyTokenizer::kControlTokens) {
    const bool is_special = id <= TinyTokenizer::kEos;
    json += (id > 256 ? "," : "");
    json += R"({"id":)" + std::to_string(id) + R"(,"content":")" + std::string(token) +
            R"(","special":)" + (is_special ? "true" : "false") + R"(,"normalized":false})";
    ++id;
  }
  json += R"(],"normalizer":{"type":"Sequence","normalizers":[]},)"
          R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":false},)"
          R"("decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)";
  for (int byte = 0; byte < 256; ++byte) {
    json += (byte > 0 ? ",\"" : "\"") + byte_level_json(byte) + "\":" + std::to_string(byte);
  }
  return json + R"(},"merges":[]}})";
}

inline hadal::Tokenizer make_tiny_tokenizer() {
  namespace fs = std::filesystem;
  std::string name = (fs::temp_directory_path() / "hadal-tokenizer-XXXXXX").string();
  REQUIRE(mkdtemp(name.data()) != nullptr);
  const fs::path dir = name;
  std::ofstream(dir / "tokenizer.json") << tiny_tokenizer_json();
  std::ofstream(dir / "tokenizer_config.json")
      << R"({"add_bos_token":true,"bos_token":"<｜begin▁of▁sentence｜>",)"
         R"("eos_token":"<｜end▁of▁sentence｜>"})";
  auto tokenizer = hadal::Tokenizer::load(dir);
  fs::remove_all(dir);
  INFO((tokenizer ? "" : tokenizer.error().message));
  REQUIRE(static_cast<bool>(tokenizer));
  return std::move(tokenizer).value();
}

/// R1's shape in small: the last system message, turns, thinking cut from history, and an opened
/// think marker at the end. Knows tool calls and tool results, not the list of tools.
inline hadal::ChatTemplate make_tiny_template() {
  auto parsed = hadal::ChatTemplate::parse(
      "{% set ns = namespace(system='') %}"
      "{% for m in messages %}{% if m['role'] == 'system' %}{% set ns.system = m['content'] %}"
      "{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
      "{% for m in messages %}"
      "{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% endif %}"
      "{% if m['role'] == 'assistant' and m['tool_calls'] is defined %}{{ '<｜Assistant｜>' }}"
      "{% for c in m['tool_calls'] %}"
      "{{ '<｜tool▁call▁begin｜>' + c['type'] + '<｜tool▁sep｜>' + c['function']['name'] + "
      "c['function']['arguments'] + '<｜tool▁call▁end｜>' }}{% endfor %}"
      "{% elif m['role'] == 'assistant' %}"
      "{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}"
      "{% if m['role'] == 'tool' %}{{ '<tool>' + m['content'] }}{% endif %}"
      "{% endfor %}"
      "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}"
      "{% if thinking is not defined or thinking %}{{ '<think>\\n' }}{% endif %}{% endif %}");
  INFO((parsed ? "" : parsed.error().message));
  REQUIRE(static_cast<bool>(parsed));
  return std::move(parsed).value();
}

}  // namespace hadal_test
