// Written as a tokenizer.json, so that it is loaded the way every other tokenizer is.
#include "byte_model.h"

#include <array>

#include <nlohmann/json.hpp>

namespace hadal {

namespace {

using nlohmann::json;

constexpr std::array<const char*, 6> kAddedTokens = {"<｜begin▁of▁sentence｜>",
                                                     "<｜end▁of▁sentence｜>",
                                                     "<｜User｜>",
                                                     "<｜Assistant｜>",
                                                     "<think>",
                                                     "</think>"};

constexpr const char* kTemplate =
    "{{ '<｜begin▁of▁sentence｜>' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' }}{{ message['content'] }}{{ '<｜end▁of▁sentence｜>' }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}"
    "{% else %}{{ '<｜User｜>' }}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}";

void append_utf8(uint32_t code, std::string& out) {
  if (code < 0x80) {
    out.push_back(static_cast<char>(code));
  } else {  // the alphabet ends below 0x800
    out.push_back(static_cast<char>(0xC0U | (code >> 6U)));
    out.push_back(static_cast<char>(0x80U | (code & 0x3FU)));
  }
}

/// The printable stand-in of a byte in byte-level vocabularies: itself where it is printable
/// Latin-1, else the next free code from 256 on.
json byte_vocabulary() {
  json vocabulary = json::object();
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool is_printable =
        (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    std::string stand_in;
    append_utf8(is_printable ? byte : next++, stand_in);
    vocabulary[stand_in] = byte;
  }
  return vocabulary;
}

json added_tokens() {
  json tokens = json::array();
  for (size_t i = 0; i < kAddedTokens.size(); ++i) {
    const bool is_special = i < 4;  // the think markers are text to clients
    tokens.push_back({{"id", 256 + i},
                      {"content", kAddedTokens[i]},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", false},
                      {"special", is_special}});
  }
  return tokens;
}

}  // namespace

Result<TextParts> make_byte_model() {
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  const json document = {
      {"version", "1.0"},
      {"added_tokens", added_tokens()},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", json::array({byte_level})}}},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"vocab", byte_vocabulary()},
        {"merges", json::array()}}}};
  auto tokenizer = Tokenizer::from_tokenizer_json(document.dump());
  if (!tokenizer) {
    return tokenizer.error();
  }
  auto chat_template = ChatTemplate::parse(kTemplate);
  if (!chat_template) {
    return chat_template.error();
  }
  return TextParts{std::move(tokenizer).value(), std::move(chat_template).value()};
}

}  // namespace hadal
